"""Seconds of ``prepare`` against one DuckDB process that sorts, groups and writes the same events with the same cores.

    python tests/benchmarks/ingestion.py [--events 20000000] [--source FILE] [--pairs 5] [--threads 2] [--env FOLDER]

Both number the items, sort each user's events by time and place in the log, and write them as lists, one row a user, in
Parquet with zstd. ``prepare`` does more: it checks every value, cuts and counts, hashes what it wrote and waits until
the disk has it. It is timed from reading the log to the manifest, on a Ray that is started already. The log is one
Parquet file of made-up events, popular items and busy users with a long tail, unless ``--source`` names another with
the columns user, item, reward and time in seconds. They run by turns; the first pair warms up.

DuckDB lives in its own virtual environment, which is made on the first run. The last line is one JSON object; in it
``peak_mb`` is the most memory that a process of either side ever had, shared memory included (VmHWM).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.benchmarks.measuring import alternate, ratio
from tests.benchmarks.memory import peaks

from retilt import artifact
from retilt.cluster import ingest, session
from retilt.config import PrepareConfig, build

DUCKDB = "duckdb==2.0.*"
USER_EVENTS, ITEMS = 143, 27_000
"""About MovieLens-20M's."""
ROW_GROUP = 1 << 20


def environment(folder: Path) -> Path:
    """The Python of DuckDB's environment; made in ``folder`` if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import duckdb"], check=False).returncode:
        print(f"installing {DUCKDB} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", DUCKDB], check=True)
    return python


def make_log(place: Path, events: int) -> None:
    """Write a log in random order: popularity falls like 1 / (rank + 20), activity is log-normal."""
    random = np.random.default_rng(0)
    users = max(1, events // USER_EVENTS)
    popularity = np.cumsum(1 / (np.arange(ITEMS) + 20))
    activity = np.cumsum(random.lognormal(0, 1, users))
    item_ids = random.permutation(4 * ITEMS)[:ITEMS]
    schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("reward", pa.float32()), ("time", pa.int64())])
    with pq.ParquetWriter(place, schema, compression="zstd", write_page_checksum=True) as writer:
        for first in range(0, events, ROW_GROUP):
            rows = min(ROW_GROUP, events - first)
            user = np.searchsorted(activity, random.random(rows) * activity[-1])
            item = item_ids[np.searchsorted(popularity, random.random(rows) * popularity[-1])]
            reward = random.integers(1, 11, rows) / np.float32(2)
            second = 978_300_760 + random.integers(0, 600_000_000, rows)
            writer.write_table(pa.table([user, item, reward, second], schema=schema), row_group_size=rows)


class DuckDB:
    """A process that makes ``output`` of ``source`` whenever it is asked."""

    def __init__(self, python: Path, settings: dict[str, Any]) -> None:
        script = Path(__file__).with_name("duckdb_side.py")
        self.process = subprocess.Popen(
            [python, script, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def write(self) -> None:
        """Do it once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise SystemExit(f"DuckDB ended with exit code {self.process.wait()}; its error is above")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def prepare(source: str, dataset: str) -> None:
    """Do the job once, from the beginning."""
    shutil.rmtree(dataset, ignore_errors=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        ingest.run(build(PrepareConfig, {"source": source, "dataset": dataset}))


def require_same(rows: str, dataset: str) -> int:
    """Number of events; refuses a comparison of different work, where DuckDB's lists are not all of them, sorted."""
    counts = artifact.read_manifest(dataset, "dataset", [1])["counts"]
    events, file = 0, pq.ParquetFile(rows)
    for group in range(file.num_row_groups):
        lists = file.read_row_group(group, columns=["time"])["time"].combine_chunks()
        begins = np.zeros(len(lists.flatten()), dtype=bool)
        begins[lists.offsets.to_numpy()[:-1] - lists.offsets[0].as_py()] = True
        falls = np.diff(lists.flatten().to_numpy(), prepend=0) < 0
        if (falls & ~begins).any():
            raise SystemExit("DuckDB's lists are not sorted")
        events += len(begins)
    if events != counts["source_rows"]:
        raise SystemExit(f"DuckDB wrote {events:,} events of {counts['source_rows']:,}")
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description="prepare against DuckDB on the same log.")
    cache = Path.home() / ".cache" / "retilt" / "duckdb-2.0"
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--source", help="Parquet file with user, item, reward and time; by default one is made")
    parser.add_argument("--env", type=Path, default=cache, help="virtual environment that holds DuckDB, or will")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    python = environment(options.env)
    with tempfile.TemporaryDirectory() as folder:
        source, rows, dataset = options.source or f"{folder}/log.parquet", f"{folder}/rows.parquet", f"{folder}/dataset"
        if not options.source:
            make_log(Path(source), options.events)
        load = os.getloadavg()[0]
        duckdb = DuckDB(python, {"source": source, "output": rows, "threads": options.threads})
        with session.connect(options.threads, dashboard=False), peaks() as processes:
            ways = {"prepare": lambda: prepare(source, dataset), "DuckDB": duckdb.write}
            seconds = alternate(ways, options.pairs)
        events = require_same(rows, dataset)
        duckdb.close()
    print(f"{events:,} events, {options.threads} cores; load average {load:.1f} before the first")
    print(f"{'pair':>4} {'prepare':>9} {'DuckDB':>9} {'ratio':>7}")
    for pair, (ours, theirs) in enumerate(zip(*seconds.values(), strict=True), start=1):
        print(f"{pair:>4} {ours:>9.2f} {theirs:>9.2f} {ours / theirs:>7.2f}")
    (_, duckdb_mb) = processes.pop(duckdb.process.pid)
    for name, peak in [*sorted(processes.values(), key=lambda each: -each[1])[:6], ("DuckDB", duckdb_mb)]:
        print(f"{peak:>6} MB  {name}")
    result: dict[str, Any] = {"benchmark": "ingestion", "events": events, "threads": options.threads}
    result |= {"ratio": ratio(*seconds.values()), "pairs": options.pairs, "load_before": load}
    result |= {"peak_mb": max(peak for _, peak in processes.values()), "duckdb_peak_mb": duckdb_mb}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
