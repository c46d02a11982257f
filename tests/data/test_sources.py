"""Known data sets: where they are looked for, what becomes of the published text, and that a wrong one is noticed."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data import published

from retilt import storage
from retilt.command_line import read_config
from retilt.config import PrepareConfig, build
from retilt.data import sources
from retilt.types import InputError, StorageError

TEXTS = {
    "ml-100k": "196\t242\t3\t881250949\n186\t302\t4\t891717742\n",
    "ml-1m": "1::1193::5::978300760\n1::661::3::978302109\n",
    "ml-20m": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,0.5,1112484676\n",
    "amazon-books": "AH2L9G3DQHHAJ,0000000116,4.0,1019865600\nA2IIIDRK3PRRZY,000000011X,1.0,1395619200\n",
}
"""The first lines of each file as it is published."""
ROWS = {
    "ml-100k": [[196, 186], [242, 302], [3.0, 4.0], [881250949, 891717742]],
    "ml-1m": [[1, 1], [1193, 661], [5.0, 3.0], [978300760, 978302109]],
    "ml-20m": [[1, 1], [2, 29], [3.5, 0.5], [1112486027, 1112484676]],
    "amazon-books": [
        ["AH2L9G3DQHHAJ", "A2IIIDRK3PRRZY"], ["0000000116", "000000011X"], [4.0, 1.0], [1019865600, 1395619200],
    ],
}  # fmt: skip
ANSWERS_NOTHING = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No mirror, no publisher, no package index, an empty cache."""

    def fail(*_, **__):
        raise subprocess.CalledProcessError(1, "pip download")

    monkeypatch.delenv("RETILT_DATA_MIRROR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", fail)
    for name, known in sources.KNOWN.items():
        address = f"{ANSWERS_NOTHING}/{known.address.rsplit('/', 1)[1]}"
        monkeypatch.setitem(sources.KNOWN, name, replace(known, address=address))


@pytest.fixture
def publisher(tmp_path):
    """A folder and the address at which its files are served."""
    folder = tmp_path / "published"
    folder.mkdir()
    with published.served(folder) as address:
        yield folder, address


def offer(monkeypatch, publisher, name, text):
    """Have the publisher offer ``text`` under the known ``name``."""
    folder, address = publisher
    checksum = published.publish(folder / name, text, sources.KNOWN[name].lines.member)
    monkeypatch.setitem(
        sources.KNOWN, name, replace(sources.KNOWN[name], address=f"{address}/{name}", checksum=checksum)
    )


def ignored(_: str) -> None: ...


def test_the_mirror_comes_first(monkeypatch, tmp_path):
    storage.write_bytes(str(tmp_path / "mirror" / "ml-1m.parquet"), b"x")
    monkeypatch.setenv("RETILT_DATA_MIRROR", str(tmp_path / "mirror"))
    assert sources.locate("ml-1m", "unused", ignored) == str(tmp_path / "mirror" / "ml-1m.parquet")


def test_what_was_tried_is_said(monkeypatch):
    with pytest.raises(StorageError, match=r"ml-1m could not be fetched \(RETILT_DATA_MIRROR is not set; .*ml-1m\.zip"):
        sources.locate("ml-1m", "unused", ignored)
    monkeypatch.setenv("RETILT_DATA_MIRROR", "/nonexistent")
    with pytest.raises(StorageError, match=r"has no ml-100k\.parquet; .*ml-100k\.zip.*recbole"):
        sources.locate("ml-100k", "unused", ignored)


def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(monkeypatch, publisher, tmp_path):
    offer(monkeypatch, publisher, "amazon-books", TEXTS["amazon-books"])
    (tmp_path / "published" / "amazon-books").write_text("something else")
    with pytest.raises(StorageError, match=r"amazon-books: sha256 is not [0-9a-f]{64}\)"):
        sources.locate("amazon-books", str(tmp_path / "staging"), ignored)
    assert not (tmp_path / "staging").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", sources.KNOWN)
def test_published_text_becomes_the_columns_of_the_mirror(monkeypatch, publisher, tmp_path, name):
    offer(monkeypatch, publisher, name, TEXTS[name])
    staged = sources.locate(name, str(tmp_path / "staging"), ignored)
    table = pq.read_table(staged, page_checksum_verification=True)
    assert table.column_names == ["user_id", "item_id", "rating", "timestamp"]
    assert table.schema.types[2:] == [pa.float32(), pa.int64()]
    assert list(table.to_pydict().values()) == ROWS[name]


def test_what_was_fetched_is_said_kept_and_not_fetched_again(monkeypatch, publisher, tmp_path):
    offer(monkeypatch, publisher, "ml-20m", TEXTS["ml-20m"])
    said = []
    first = storage.read_bytes(sources.locate("ml-20m", str(tmp_path / "one"), said.append))
    assert said == [f"fetching ml-20m from {publisher[1]}/ml-20m; it is kept in {tmp_path / 'cache' / 'retilt'}"]
    (tmp_path / "published" / "ml-20m").unlink()
    assert storage.read_bytes(sources.locate("ml-20m", str(tmp_path / "two"), said.append)) == first
    assert len(said) == 1


def test_a_long_text_is_converted_a_block_at_a_time(monkeypatch, publisher, tmp_path):
    """In the order of the lines; a row group a block, so never more than a few blocks are held."""
    monkeypatch.setattr(sources, "_BLOCK", 1 << 12)
    lines = [f"{i // 50},{i},{i % 10 / 2},{1112486027 + i}" for i in range(5000)]
    offer(monkeypatch, publisher, "ml-20m", "\n".join(["userId,movieId,rating,timestamp", *lines]))
    file = pq.ParquetFile(sources.locate("ml-20m", str(tmp_path / "staging"), ignored))
    assert file.metadata.num_row_groups > 20
    table = file.read()
    assert table["item_id"].to_pylist() == list(range(5000))
    assert table["rating"].to_pylist() == [i % 10 / 2 for i in range(5000)]


def test_an_incomplete_known_data_set_is_refused():
    sources.check("ml-100k", 100_000, 943, 1_682)
    with pytest.raises(InputError, match=r"ml-100k: 99,999 events, .*published data set has 100,000"):
        sources.check("ml-100k", 99_999, 943, 1_682)


def test_the_counts_that_others_published():
    """Of ml-20m in the paper's Table 1; of Books the whole file's, and what Meta's filters leave."""
    sources.check("ml-20m", 20_000_263, 138_493, 26_744)
    sources.check("amazon-books", 22_507_155, 8_026_324, 2_330_066)
    sources.check_filtered("amazon-books", {5}, 694_897, 695_762)
    with pytest.raises(InputError, match=r"minimums of 5 events leave 694,897 users and 695,761 items, but .*695,762"):
        sources.check_filtered("amazon-books", {5}, 694_897, 695_761)


def test_the_preset_filters_as_the_counts_were_published():
    place = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "amazon-books" / "prepare.yaml"
    preset = build(PrepareConfig, read_config(str(place)))
    published_ones = sources.KNOWN["amazon-books"].filtered
    assert published_ones is not None
    minimums = {preset.min_user_events, preset.min_item_events, preset.min_sequence_events}
    assert minimums == {published_ones.minimum}


def test_other_filters_have_no_published_counts():
    sources.check_filtered("amazon-books", {5, 3}, 1, 1)
    sources.check_filtered("amazon-books", {4}, 1, 1)
    sources.check_filtered("ml-20m", {5}, 1, 1)
