"""An event log → a data set on a real, local Ray: contents, determinism, and what bad input leaves behind."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retilt import artifact, storage
from retilt.cluster import ingest, session
from retilt.config import PrepareConfig, build
from retilt.data import events, vocabulary
from retilt.types import InputError

TIME = 978_300_760


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One local Ray for this module."""
    with session.connect(2, dashboard=False):
        yield


def log(users=60, seed=0, kind="string", rare=False):
    """A synthetic event log in random order: user k has 3 to 12 events."""
    random = np.random.default_rng(seed)
    length = random.integers(3, 13, users)
    user = np.repeat(np.arange(users), length)
    item = random.integers(0, 20, len(user))
    if rare:
        item[0] = 99
    time = TIME + random.integers(0, 50, len(user))
    order = random.permutation(len(user))
    reward = random.integers(1, 6, len(user)).astype(np.float32)
    ids = pa.array(user[order])
    if kind == "string":
        ids = pa.array([f"user-{each}" for each in user[order]])
    return pa.table({"user": ids, "item": item[order], "reward": reward[order], "time": time[order]})


def prepare(source, dataset, **keys):
    """Run the ingestion with the given keys."""
    return ingest.run(build(PrepareConfig, {"source": str(source), "dataset": str(dataset), "split": "last", **keys}))


def contents(folder):
    """Every file below a folder with its bytes, the manifest left out."""
    files = storage.list_files(str(folder))
    return {file.path: (Path(folder) / file.path).read_bytes() for file in files if file.path != artifact.MANIFEST}


def rows(folder, manifest):
    """All rows of a data set."""
    return pa.concat_tables([pq.read_table(Path(folder) / shard["path"]) for shard in manifest["shards"]])


def test_a_data_set_holds_what_the_log_says(tmp_path):
    events_in = log()
    pq.write_table(events_in, tmp_path / "a.parquet")
    manifest = prepare(tmp_path / "a.parquet", tmp_path / "set", name="mine")
    assert manifest == artifact.read_manifest(str(tmp_path / "set"), "dataset", [1])
    artifact.verify(str(tmp_path / "set"), manifest)
    assert (manifest["name"], manifest["users"], manifest["items"], manifest["events"]) == (
        "mine",
        60,
        20,
        len(events_in),
    )
    assert manifest["lanes"] == 8
    assert manifest["split"] == {"name": "last", "k": 1}
    assert manifest["statistics"]["refit"]["events"] == len(events_in) - 60
    assert manifest["statistics"]["select"]["events"] == len(events_in) - 120
    assert sorted(os.listdir(tmp_path / "set")) == ["manifest.json", "shards", "vocabulary"]
    expected = {}
    columns = (events_in[name].to_pylist() for name in ("user", "item", "reward", "time"))
    for order, (user, item, reward, time) in enumerate(zip(*columns, strict=True)):
        expected.setdefault(user, []).append((time * 10**6, order, item + 1, reward))
    table = rows(tmp_path / "set", manifest)
    found = {row["user"]: row for row in table.to_pylist()}
    assert set(found) == set(expected)
    for user, sequence in expected.items():
        time, order, item, reward = (list(each) for each in zip(*sorted(sequence), strict=True))
        row = found[user]
        assert (row["time"], row["order"], row["item"], row["reward"]) == (time, order, item, reward)
    words = pq.read_table(tmp_path / "set" / manifest["vocabulary"][0]["path"])
    assert words["item"].to_pylist() == list(range(20))
    assert sum(words["count_refit"].to_pylist()) == len(events_in) - 60
    assert json.dumps(manifest).count("NaN") == 0


def test_shards_do_not_depend_on_files_blocks_or_tasks(tmp_path, monkeypatch):
    table = log(200)
    (tmp_path / "one").mkdir()
    pq.write_table(table, tmp_path / "one" / "a.parquet", row_group_size=100)
    monkeypatch.setattr(ingest, "SHARD_EVENTS", len(table) // 3)
    a = prepare(tmp_path / "one", tmp_path / "a")
    assert len(a["shards"]) > 2
    assert sum(shard["rows"] for shard in a["shards"]) == a["users"] == 200
    monkeypatch.setattr(events, "TASK_ROWS", 150)
    monkeypatch.setattr(ingest, "BLOCKS", 2)
    b = prepare(tmp_path / "one", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {**a, "config": 0, "name": 0} == {**b, "config": 0, "name": 0}


def test_options_drop_and_count(tmp_path):
    table = log(30, kind="int", rare=True)
    short = pa.table({"user": [1000, 1000], "item": [1, 2], "reward": [1.0, 2.0], "time": [TIME, TIME + 1]})
    table = pa.concat_tables([table, short.cast(table.schema)])
    again = table.slice(0, 1)
    bad = table.slice(0, 2).set_column(2, "reward", pa.array([math.nan, None], pa.float32()))
    table = pa.concat_tables([table, again, bad])
    pq.write_table(table, tmp_path / "a.parquet")
    options = {"on_bad_rows": "drop", "on_duplicates": "drop", "min_item_events": 2, "max_events_per_user": 8}
    manifest = prepare(tmp_path / "a.parquet", tmp_path / "set", **options)
    counts = manifest["counts"]
    assert (counts["rows_null"], counts["rows_not_finite"], counts["events_rare_items"]) == (1, 1, 1)
    assert counts["events_duplicate"] >= 1
    assert counts["events_too_many"] > 0
    assert counts["users_too_short"] >= 1
    assert counts["source_rows"] == len(table)
    kept = rows(tmp_path / "set", manifest)
    assert max(len(each) for each in kept["item"].to_pylist()) == 8
    lost = sum(count for name, count in counts.items() if name.startswith("events_")) + 2
    assert manifest["events"] == len(table) - lost
    assert 99 not in pq.read_table(tmp_path / "set" / "vocabulary")["item"].to_pylist()


def test_the_same_command_again_and_another_one(tmp_path, capsys):
    pq.write_table(log(), tmp_path / "a.parquet")
    first = prepare(tmp_path / "a.parquet", tmp_path / "set")
    before = contents(tmp_path / "set")
    capsys.readouterr()
    assert prepare(tmp_path / "a.parquet", tmp_path / "set") == first
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"holds a data set prepared from .*a\.parquet with other settings"):
        prepare(tmp_path / "a.parquet", tmp_path / "set", min_user_events=4)
    pq.write_table(log(seed=1), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="its source has changed"):
        prepare(tmp_path / "a.parquet", tmp_path / "set")
    assert contents(tmp_path / "set") == before


def test_leftovers_of_a_crashed_run_are_replaced_and_other_files_are_not_touched(tmp_path):
    pq.write_table(log(), tmp_path / "a.parquet")
    crashed = tmp_path / "crashed"
    (crashed / "shards").mkdir(parents=True)
    (crashed / "shards" / "part-00099.parquet").write_bytes(b"half")
    (crashed / "preparing.json").write_text("{}")
    manifest = prepare(tmp_path / "a.parquet", crashed)
    assert sorted(contents(crashed)) == [file["path"] for file in manifest["files"]]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(thesis\.tex\)"):
        prepare(tmp_path / "a.parquet", other)
    assert os.listdir(other) == ["thesis.tex"]
    artifact.write_manifest(str(other), "policy", 1, {}, [])
    with pytest.raises(InputError, match="expected a dataset, found 'policy'"):
        prepare(tmp_path / "a.parquet", other)


@pytest.mark.parametrize(
    ("table", "keys", "said"),
    [
        (log(5).drop_columns(["reward"]), {}, r"no column 'reward' \(columns\.reward\)"),
        (log(5).set_column(2, "reward", pa.array(["x"] * len(log(5)))), {}, "holds string; a reward is a number"),
        (log(5).set_column(2, "reward", pa.array([math.inf] * len(log(5)))), {}, r"row 1: reward is inf"),
        (log(5).set_column(3, "time", pa.array([TIME * 1000] * len(log(5)))), {}, r"columns\.time_unit=ms"),
        (
            log(5).set_column(2, "reward", pa.nulls(len(log(5)), pa.float32())),
            {"on_bad_rows": "drop"},
            "no row is left",
        ),
        (log(5), {"min_user_events": 50}, "none of 5 users has the 3 events"),
        (log(5), {"min_item_events": 500}, "no item has min_item_events = 500"),
        (log(5).slice(0, 0), {}, "no rows"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, table, keys, said):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet.*{said}") as caught:
        prepare(tmp_path / "a.parquet", tmp_path / "set", **keys)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_files_that_cannot_be_read_leave_nothing(tmp_path):
    place = tmp_path / "in" / "a.parquet"
    place.parent.mkdir()
    pq.write_table(log(500), place, write_page_checksum=True)
    data = bytearray(place.read_bytes())
    for damaged in (data[:-30], b"", data[:200] + bytes([data[200] ^ 1]) + data[201:]):
        place.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.parquet"):
            prepare(place, tmp_path / "set")
    for source in ("nosuch://bucket/a.parquet", str(tmp_path / "none"), str(tmp_path / "*.csv")):
        with pytest.raises(InputError):
            prepare(source, tmp_path / "set")
    with pytest.raises(InputError, match="memory://"):
        prepare("memory://a", tmp_path / "set")
    assert os.listdir(tmp_path) == ["in"]


def test_an_error_in_the_second_pass_is_unwrapped(tmp_path, monkeypatch):
    pq.write_table(log(), tmp_path / "a.parquet")
    scan = ingest._scan

    def scan_then_damage(plan):
        found = scan(plan)
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        return found

    monkeypatch.setattr(ingest, "_scan", scan_then_damage)
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read"):
        prepare(tmp_path / "a.parquet", tmp_path / "set")
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path, monkeypatch):
    pq.write_table(log(), tmp_path / "a.parquet")
    scan = ingest._scan

    def scan_then_shorten(plan):
        found = scan(plan)
        pq.write_table(log(50), tmp_path / "a.parquet")
        return found

    monkeypatch.setattr(ingest, "_scan", scan_then_shorten)
    with pytest.raises(InputError, match="changed while it was read"):
        prepare(tmp_path / "a.parquet", tmp_path / "set")
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_dry_run_reads_nothing_and_writes_nothing(tmp_path):
    pq.write_table(log(), tmp_path / "a.parquet")
    config = build(PrepareConfig, {"source": str(tmp_path / "a.parquet"), "dataset": str(tmp_path / "set")})
    assert ingest.run(config, dry_run=True)["rows"] == len(log())
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_movielens_100k(tmp_path):
    manifest = prepare("ml-100k", tmp_path / "set", split="last_k", k=10)
    assert (manifest["users"], manifest["items"], manifest["events"], manifest["name"]) == (
        943,
        1682,
        100_000,
        "ml-100k",
    )
    assert manifest["vocabulary_sha256"] == vocabulary.identity(pa.array(range(1, 1683)))
    table = rows(tmp_path / "set", manifest)
    targets = [reward for each in table["reward"].to_pylist() for reward in each[-10:]]
    # The count that issue 2 states; every user has 20 events or more.
    assert sum(reward >= 4.5 for reward in targets) == 2_118
