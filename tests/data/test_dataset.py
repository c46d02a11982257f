"""Opening and reading a data set, and every way in which its files can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.small_dataset import sequences, write, write_shard

from retilt import artifact
from retilt.data.dataset import Dataset, RowGroup
from retilt.data.split import bounds
from retilt.data.vocabulary import identity
from retilt.types import InputError

ITEMS = 10
USERS = sequences(30, ITEMS, seed=4)
SHARDS = [[6, 9], [15]]
FIRST, SECOND = "shards/part-00000.parquet", "shards/part-00001.parquet"


@pytest.fixture
def place(tmp_path):
    return write(str(tmp_path / "small"), USERS, ITEMS, shards=SHARDS)


def change(place, **values):
    """Replace values of the manifest; None deletes."""
    path = Path(place, "manifest.json")
    manifest = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in manifest.items() if value is not None}))


def flip(place, relative, offset):
    path = Path(place, relative)
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def test_a_data_set_says_what_it_holds(place):
    dataset = Dataset.open(place)
    assert (dataset.users, dataset.items, dataset.lanes, dataset.k) == (30, ITEMS, 2, 2)
    assert dataset.events == sum(map(len, USERS))
    assert dataset.row_groups == (RowGroup(0, 0, 6, 0), RowGroup(0, 1, 9, 6), RowGroup(1, 0, 15, 15))


def test_a_row_group_holds_its_users_sequences(place):
    table = Dataset.open(place).read(0, 1)
    assert table["item"].to_pylist() == [[event[0] for event in user] for user in USERS[6:15]]
    assert table["reward"].to_pylist() == [[event[1] for event in user] for user in USERS[6:15]]
    assert table["time"].to_pylist() == [[event[2] for event in user] for user in USERS[6:15]]


def test_counts_and_activity_start_with_padding(place):
    dataset = Dataset.open(place)
    for protocol in ("select", "refit"):
        expected = np.zeros(ITEMS + 1, dtype=np.int64)
        for user in USERS:
            cuts = bounds(len(user), 2)
            for event in user[: cuts.train if protocol == "select" else cuts.validation]:
                expected[event[0]] += 1
        assert torch.equal(dataset.train_counts(protocol), torch.from_numpy(expected))
    assert dataset.active().tolist() == [False] + [True] * (ITEMS - 1) + [False]
    assert dataset.vocabulary()["item"].to_pylist() == [f"item-{i}" for i in range(1, ITEMS + 1)]


@pytest.mark.parametrize("items", [1, 4, 5, 6, ITEMS])
def test_a_vocabulary_extends_those_it_begins_with(place, items):
    """The parts hold five items each."""
    dataset = Dataset.open(place)
    ids = [f"item-{i}" for i in range(1, ITEMS + 1)]
    assert dataset.extends(identity([pa.array(ids[:items])]), items)
    assert not dataset.extends(identity([pa.array(ids[:items])]), items - 1)
    assert not dataset.extends(identity([pa.array([*ids[: items - 1], "another"])]), items)
    longer = identity([pa.array([*ids, "another"])])
    assert not dataset.extends(longer, ITEMS + 1)
    assert dataset.item_type == pa.string()


def test_a_policy_trained_here_records_what_it_saw(place):
    change(place, source_fingerprint="5" * 64)
    dataset = Dataset.open(place)
    assert dataset.lineage("refit", "bc") == {
        "name": "bc",
        "data": dataset.fingerprint,
        "source": "5" * 64,
        "split": {"name": "last_k", "k": 2},
        "protocol": "refit",
    }


def complaint(dataset, rank, world):
    try:
        dataset.verify_share(rank, world)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_shares_of_all_ranks_verify_every_file(place, world):
    dataset = Dataset.open(place)
    for rank in range(world):
        dataset.verify_share(rank, world)
    for entry in dataset.manifest["files"]:
        original = Path(place, entry["path"]).read_bytes()
        flip(place, entry["path"], -1)
        found = [problem for rank in range(world) if (problem := complaint(dataset, rank, world))]
        assert len(found) == 1
        assert f"{entry['path']}: sha256 differs" in found[0]
        Path(place, entry["path"]).write_bytes(original)


def test_a_flipped_byte_is_found_when_the_page_is_read_and_by_the_hash(place):
    metadata = pq.ParquetFile(Path(place, FIRST)).metadata.row_group(1).column(1)
    assert metadata.path_in_schema.startswith("item")
    # The last byte of the column's last page is data, never a header.
    end = (metadata.dictionary_page_offset or metadata.data_page_offset) + metadata.total_compressed_size
    flip(place, FIRST, end - 1)
    dataset = Dataset.open(place)
    dataset.read(0, 0)
    with pytest.raises(InputError, match=r"part-00000\.parquet.*(CRC|checksum|corrupt)"):
        dataset.read(0, 1)
    with pytest.raises(InputError, match=r"part-00000\.parquet: sha256 differs"):
        dataset.verify()


def test_a_truncated_shard_is_found(place):
    path = Path(place, SECOND)
    path.write_bytes(path.read_bytes()[:-100])
    dataset = Dataset.open(place)
    with pytest.raises(InputError, match=r"part-00001\.parquet"):
        dataset.read(1, 0)
    with pytest.raises(InputError, match=r"part-00001\.parquet: \d+ bytes, but manifest\.json says"):
        dataset.verify()


def test_a_listed_shard_that_is_absent_is_found(place):
    Path(place, SECOND).unlink()
    dataset = Dataset.open(place)
    with pytest.raises(InputError, match=r"part-00001\.parquet: listed in manifest\.json but absent"):
        dataset.verify()
    with pytest.raises(InputError, match=r"part-00001\.parquet: no such file"):
        dataset.read(1, 0)


@pytest.mark.parametrize("item", [0, -3, ITEMS + 1])
def test_an_item_outside_the_vocabulary_is_found(place, item):
    users = [*USERS[:14], [*USERS[14][:-1], (item, 1.0, USERS[14][-1][2])]]
    write_shard(str(Path(place, FIRST)), users, SHARDS[0])
    dataset = Dataset.open(place)
    dataset.read(0, 0)
    expected = rf"part-00000\.parquet, row group 1: item {item} is outside the vocabulary \(1 … {ITEMS}\)"
    with pytest.raises(InputError, match=expected):
        dataset.read(0, 1)


@pytest.mark.parametrize("reward", [-1.0, 7.5])
def test_a_reward_outside_the_declared_range_is_found(place, reward):
    last = USERS[14][-1]
    users = [*USERS[:14], [*USERS[14][:-1], (last[0], reward, last[2])]]
    write_shard(str(Path(place, FIRST)), users, SHARDS[0])
    expected = rf"row group 1: reward {reward:g} is outside the declared range \(1 … 5 by manifest\.json\)"
    with pytest.raises(InputError, match=expected):
        Dataset.open(place).read(0, 1)


def test_other_row_groups_than_listed_are_found(place):
    write_shard(str(Path(place, FIRST)), USERS[:15], [9, 6])
    with pytest.raises(InputError, match=r"row groups of \[9, 6\] users, but manifest\.json says \[6, 9\]"):
        Dataset.open(place).read(0, 0)


def test_lists_of_different_lengths_are_found(place):
    table = pq.read_table(Path(place, SECOND))
    short = [row[:-1] for row in table["reward"].to_pylist()]
    field = table.schema.field("reward")
    changed = table.set_column(table.schema.get_field_index("reward"), field, pa.array(short, field.type))
    pq.write_table(changed, Path(place, SECOND))
    with pytest.raises(InputError, match="row group 0: a user's lists hold nulls or differ in length"):
        Dataset.open(place).read(1, 0)


def test_a_column_of_another_type_is_found(place):
    table = pq.read_table(Path(place, SECOND))
    changed = table.set_column(1, "item", table["item"].cast(pa.list_(pa.int64())))
    pq.write_table(changed, Path(place, SECOND))
    with pytest.raises(InputError, match="needs a column 'item' of lists of int32"):
        Dataset.open(place).read(1, 0)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no dataset here"):
        Dataset.open(str(tmp_path))


def test_an_artifact_of_another_kind_or_format_is_refused(tmp_path, place):
    artifact.write_manifest(str(tmp_path / "policy"), "checkpoint", 1, {}, [])
    with pytest.raises(InputError, match="expected a dataset, found 'checkpoint'"):
        Dataset.open(str(tmp_path / "policy"))
    change(place, format=99)
    with pytest.raises(InputError, match="format 99"):
        Dataset.open(place)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"statistics": None}, "'statistics' is missing"),
        ({"users": 31}, "'users' is 31"),
        ({"items": 11}, "'items' is 11"),
        ({"lanes": 4}, "4 lanes for 3 row groups"),
        ({"shards": [{"path": "shards/other.parquet"}]}, "shards/other.parquet is not among 'files'"),
        ({"split": {"name": "last"}}, "missing or has the wrong type"),
        ({"shards": [{"path": FIRST, "row_groups": "many"}]}, "missing or has the wrong type"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(place, values, problem):
    change(place, **values)
    with pytest.raises(InputError, match=problem):
        Dataset.open(place)


def test_a_vocabulary_out_of_order_is_refused(place):
    path = Path(place, "vocabulary/part-00001.parquet")
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    with pytest.raises(InputError, match="the indices are not 1 … 10"):
        Dataset.open(place).active()
