"""Reading Parquet and CSV logs: tasks, order, and every kind of bad input with its place."""

from __future__ import annotations

import gzip
import math

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from retilt.data import events, survey
from retilt.data.schema import Columns
from retilt.types import InputError

TIME = 978_300_760
COLUMNS = Columns(user="u", item="i", reward="r", time="t")


def table(rows=6, **columns):
    """A small event log; keywords replace columns."""
    found = {"u": [i % 2 for i in range(rows)], "i": [10 * i for i in range(rows)], "r": [i / 2 for i in range(rows)]}
    found |= {"t": [TIME + i for i in range(rows)]}
    return pa.table({**found, **columns})


def everything(uris, drop=False):
    """All events of a source and what was dropped."""
    plan = survey.survey([str(uri) for uri in uris], COLUMNS, drop)
    blocks = [block for task in plan.tasks() for block in events.blocks(task, plan.layout)]
    dropped = {name: sum(each.dropped[name] for each in blocks) for name in blocks[0].dropped}
    return pa.concat_tables([each.events for each in blocks]), dropped, plan


def test_parquet_is_read_by_row_groups_and_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "TASK_ROWS", 4)
    monkeypatch.setattr(survey, "_OPENING_ROWS", 0)
    for name in "ab":
        pq.write_table(table(10, x=list(range(10))), tmp_path / f"{name}.parquet", row_group_size=2)
    found, dropped, plan = everything([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    # The two rows that are left of the first file share a task with the second's.
    assert [[(piece.file, piece.groups, piece.first) for piece in task] for task in plan.tasks()] == [
        [(0, (0, 1), 0)],
        [(0, (2, 3), 4)],
        [(0, (4,), 8), (1, (0, 1), 0)],
        [(1, (2, 3), 4)],
        [(1, (4,), 8)],
    ]
    assert plan.rows == 20
    assert found["order"].to_pylist() == [file * 2**40 + row for file in (0, 1) for row in range(10)]
    assert found["item"].to_pylist() == [10 * i for i in range(10)] * 2
    assert found["time"].to_pylist()[:2] == [TIME * 10**6, (TIME + 1) * 10**6]
    assert dropped == {"rows_null": 0, "rows_not_finite": 0}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_many_small_files_share_tasks_and_blocks(tmp_path, kind):
    for number in range(100):
        log = table(3, i=[number, number, 7])
        place = tmp_path / f"{number:03d}.{kind}"
        pq.write_table(log, place) if kind == "parquet" else pacsv.write_csv(log, place)
    uris = sorted(tmp_path.iterdir())
    found, _, plan = everything(uris)
    assert [len(task) for task in plan.tasks()] == [64, 36]  # to open a file takes as long as to read 16,384 rows
    assert [len(list(events.blocks(task, plan.layout))) for task in plan.tasks()] == [1, 1]
    assert found["order"].to_pylist() == [file * 2**40 + row for file in range(100) for row in range(3)]
    assert found["item"].to_pylist() == [item for number in range(100) for item in (number, number, 7)]


def test_a_large_row_group_is_read_in_blocks_and_small_ones_share_them(tmp_path):
    pq.write_table(table(1000), tmp_path / "a.parquet")
    pq.write_table(table(300), tmp_path / "b.parquet", row_group_size=30)
    plan = survey.survey([str(tmp_path / name) for name in ("a.parquet", "b.parquet")], COLUMNS, False)
    assert [piece.groups for piece in plan.pieces] == [(0,), tuple(range(10))]
    (task,) = plan.tasks()
    lengths = [len(block.events) for block in events.blocks(task, plan.layout, 100)]
    assert sum(lengths) == 1300
    assert all(100 <= length < 200 for length in lengths[:-1])


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv"])
def test_csv_gives_the_same_events_as_parquet(tmp_path, suffix):
    log = table(5, u=["x", "y", "x", "y", "x"])
    pq.write_table(log, tmp_path / "a.parquet")
    options = pacsv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
    place = tmp_path / f"a{suffix}"
    with gzip.open(place, "wb") if suffix.endswith("gz") else place.open("wb") as file:
        pacsv.write_csv(log, file, options)
    assert everything([place])[0].equals(everything([tmp_path / "a.parquet"])[0])


def test_csv_with_timestamps(tmp_path):
    (tmp_path / "a.csv").write_text("u,i,r,t\n1,2,3.5,2000-12-31 22:12:40\n1,3,4,2000-12-31 22:12:41\n")
    assert everything([tmp_path / "a.csv"])[0]["time"].to_pylist() == [TIME * 10**6, (TIME + 1) * 10**6]


def test_a_csv_file_that_changes_its_mind(tmp_path):
    (tmp_path / "a.csv").write_text(f"u,i,r,t\n1,2,3,{TIME}\n")
    (tmp_path / "b.csv").write_text(f"u,i,r,t\nx,2,3,{TIME}\n")
    with pytest.raises(InputError, match=r"b\.csv: cannot be read.*column #0.*int64.*'x'"):
        everything([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_bad_rows_are_dropped_and_counted_or_named(tmp_path):
    place = tmp_path / "a.parquet"
    log = table(r=[1.0, math.nan, math.inf, None, 1e39, 2.0], i=[1, 2, 3, 4, 5, None])
    pq.write_table(log, place)
    found, dropped, _ = everything([place], drop=True)
    assert found["item"].to_pylist() == [1]
    assert found["order"].to_pylist() == [0]
    assert dropped == {"rows_null": 2, "rows_not_finite": 3}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"r": [0.0, 1.0, math.nan, 1.0, 1.0, 1.0]}, "row 3: r is nan"),
        ({"r": [0.0, 1.0, 2.0, -math.inf, 1.0, 1.0]}, "row 4: r is -inf"),
        ({"r": [0.0, None, 2.0, 1.0, 1.0, 1.0]}, "row 2: r is null"),
        ({"u": [0, 1, 0, 1, 0, None]}, "row 6: u is null"),
        ({"t": [None] + [TIME] * 5}, "row 1: t is null"),
        ({"r": ["a"] * 6}, r"column 'r' \(columns\.reward\) holds string"),
        ({"u": [0.5] * 6}, r"column 'u' \(columns\.user\) holds double"),
        ({"t": [TIME * 1000] * 6}, "row 1: t = .*columns.time_unit=ms"),
    ],
)
def test_bad_values_are_named(tmp_path, columns, said):
    pq.write_table(table(**columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet.*{said}"):
        everything([tmp_path / "a.parquet"])


def test_ids_of_another_type_in_a_later_file(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet")
    pq.write_table(table(u=["x"] * 6), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: column 'u' .* holds string, in the files before it int64"):
        everything([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    pq.write_table(table().rename_columns(["user_id", "i", "r", "t"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'userid' \(columns\.user\); the file has user_id, i.*'user_id'"):
        survey.survey([str(tmp_path / "a.parquet")], COLUMNS.model_copy(update={"user": "userid"}), False)
    (tmp_path / "a.csv").write_text("u,i,rating,t\n")
    with pytest.raises(InputError, match=r"a\.csv: no column 'r' \(columns\.reward\)"):
        survey.survey([str(tmp_path / "a.csv")], COLUMNS, False)


@pytest.mark.parametrize("damage", ["empty", "cut", "no magic", "empty csv"])
def test_damaged_files_are_named(tmp_path, damage):
    name = "a.csv" if damage == "empty csv" else "a.parquet"
    place = tmp_path / name
    pq.write_table(table(), place)
    data = place.read_bytes()
    place.write_bytes({"empty": b"", "cut": data[:-20], "no magic": b"hello", "empty csv": b""}[damage])
    with pytest.raises(InputError, match=rf"{name}: "):
        survey.survey([str(place)], COLUMNS, False)


def test_a_damaged_page_is_named(tmp_path):
    place = tmp_path / "a.parquet"
    pq.write_table(table(3000), place, write_page_checksum=True)
    data = bytearray(place.read_bytes())
    data[len(data) // 4] ^= 4
    place.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read"):
        everything([place])


def test_a_source_without_rows(tmp_path):
    pq.write_table(table().slice(0, 0), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("u,i,r,t\n")
    for name in ("a.parquet", "b.csv"):
        with pytest.raises(InputError, match=f"{name}: no rows"):
            survey.survey([str(tmp_path / name)], COLUMNS, False)
    pq.write_table(table(), tmp_path / "c.parquet")
    assert len(everything([tmp_path / "a.parquet", tmp_path / "b.csv", tmp_path / "c.parquet"])[0]) == 6


def test_the_fingerprint_sees_names_sizes_and_contents(tmp_path):
    for folder, log in (("1", table()), ("2", table()), ("3", table(i=[9] * 6))):
        (tmp_path / folder).mkdir()
        pq.write_table(log, tmp_path / folder / "a.parquet")
    found = [survey.survey([str(tmp_path / folder / "a.parquet")], COLUMNS, False).fingerprint for folder in "123"]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("time", [[TIME + 1, TIME + 899, TIME + 900], [float(TIME) + each for each in (1, 899, 900)]])
def test_times_are_rounded_down_to_multiples_of_the_floor(tmp_path, time):
    pq.write_table(table(3, t=time), tmp_path / "a.parquet")
    plan = survey.survey([str(tmp_path / "a.parquet")], COLUMNS, False, time_floor=15)
    (block,) = events.blocks(plan.tasks()[0], plan.layout)
    expected = [(each - each % 900) * 10**6 for each in (TIME + 1, TIME + 899, TIME + 900)]
    assert block.events["time"].to_pylist() == expected
    assert block.events["order"].to_pylist() == [0, 1, 2]
