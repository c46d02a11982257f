"""What tasks send to shards, against the same events sorted by hand; what a task's process loads."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retilt.data import survey, tasks, vocabulary
from retilt.data.hashing import hash_ids
from retilt.data.schema import Columns
from retilt.data.shards import Limits
from retilt.types import InputError

TIME = 978_300_760


def log(users, seed=0, events=400):
    """A log of random users and items 0 … 29."""
    random = np.random.default_rng(seed)
    ids = pa.array(random.integers(0, users, events))
    item = random.integers(0, 30, events)
    return pa.table(
        {"user": ids, "item": item, "reward": np.ones(events), "time": TIME + random.integers(0, 9, events)}
    )


@pytest.fixture
def plan(tmp_path):
    """Three files of one task."""
    for number in range(3):
        pq.write_table(log(40, number), tmp_path / f"{number}.parquet", row_group_size=90)
    return survey.survey(sorted(map(str, tmp_path.glob("*.parquet"))), Columns(), False)


def lookups(plan, parts, min_item_events=1):
    """Number and lookups of the plan's items."""
    (task,) = plan.tasks()
    found, counts = tasks.count(task, plan.layout, parts)
    assert found == {"rows": 1200, "rows_null": 0, "rows_not_finite": 0}
    numbered = vocabulary.number(pa.concat_tables(counts), min_item_events, None)
    split = np.split(numbered.number, np.cumsum([len(each) for each in counts])[:-1])
    return numbered, [vocabulary.Lookup.of(each["item"], n) for each, n in zip(counts, split, strict=True)]


@pytest.mark.parametrize(("shards", "groups"), [(1, 1), (5, 5), (5, 2), (300, 7)])
def test_every_event_is_sent_to_its_user_s_shard_in_the_order_of_the_input(plan, monkeypatch, shards, groups):
    monkeypatch.setattr(tasks, "GROUP_ROWS", 1)
    monkeypatch.setattr(tasks.events, "BLOCK_ROWS", 500)
    (task,) = plan.tasks()
    _, found = lookups(plan, 3)
    shuffle = tasks.Shuffle(shards, groups)
    stream = tasks.send(task, plan.layout, shuffle, found)
    sent: dict[int, list[dict]] = {shard: [] for shard in range(shards)}
    blocks = 0
    for sizes in stream:
        blocks += 1
        for first, last in itertools.pairwise(shuffle.edges):
            if sizes[first:last].any():
                rows = next(stream).to_pylist()
                assert len(rows) == sizes[first:last].sum()
                for shard in range(first, last):
                    sent[shard] += rows[: sizes[shard]]
                    del rows[: sizes[shard]]
    assert blocks == 2  # 400 and 400 rows, and 400
    whole = pa.concat_tables([log(40, number) for number in range(3)])
    home = (hash_ids(whole["user"]) % np.uint64(shards)).tolist()
    expected: dict[int, list[tuple]] = {shard: [] for shard in range(shards)}
    for row, (shard, event) in enumerate(zip(home, whole.to_pylist(), strict=True)):
        expected[shard].append((event["user"], event["item"] + 1, (row // 400 << 40) + row % 400))
    assert {s: [(r["user"], r["item"], r["order"]) for r in rows] for s, rows in sent.items()} == expected


def test_the_shards_of_a_group_are_written_one_by_one(plan, tmp_path):
    (task,) = plan.tasks()
    _, found = lookups(plan, 2)
    shuffle = tasks.Shuffle(5, 2)
    stream = tasks.send(task, plan.layout, shuffle, found)
    written = []
    for sizes in stream:
        for group, (first, last) in enumerate(itertools.pairwise(shuffle.edges)):
            sent = [(sizes[first:last], next(stream))]
            written += list(tasks.write(str(tmp_path / "set"), shuffle, group, Limits(k=1), sent))
    assert [each.shard for each, _ in written] == [0, 1, 2, 3, 4]
    assert sum(each.events for each, _ in written) == 1200
    assert sum(occurring.counts["kept"].to_numpy().sum() for _, occurring in written) == 1200
    for shard, (each, _) in enumerate(written):
        table = pq.read_table(tmp_path / "set" / each.entry["path"])
        assert (hash_ids(table["user"]) % np.uint64(5)).tolist() == [shard] * len(table)


def test_texts_go_to_the_shards_of_their_hashes():
    users = pa.array([f"user-{i % 7}" for i in range(100)])
    assert tasks.Shuffle(11, 11).shard(users).tolist() == (hash_ids(users) % np.uint64(11)).tolist()


def test_the_first_fault_ends_a_task(tmp_path):
    bad = log(5).set_column(2, "reward", pa.array([np.inf] * 400))
    pq.write_table(log(5), tmp_path / "a.parquet")
    pq.write_table(bad, tmp_path / "b.parquet")
    plan = survey.survey([str(tmp_path / name) for name in ("a.parquet", "b.parquet")], Columns(), False)
    with pytest.raises(InputError, match=r"b\.parquet, row 1: reward is inf"):
        tasks.count(plan.tasks()[0], plan.layout, 1)


def test_a_task_s_process_needs_no_torch():
    """It would be 200 MB and two seconds in every process that prepares data."""
    command = "import retilt.cluster.passes, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False, cwd="/").returncode == 0
