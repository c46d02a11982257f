"""Known data sets: where they are looked for, and that an incomplete one is noticed."""

from __future__ import annotations

import io
import subprocess
import urllib.error
import urllib.request

import pyarrow.parquet as pq
import pytest

from retilt import storage
from retilt.data import sources
from retilt.types import InputError, StorageError


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No mirror, no network, no package index, an empty cache."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    def fail(*_, **__):
        raise subprocess.CalledProcessError(1, "pip download")

    monkeypatch.delenv("RETILT_DATA_MIRROR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(subprocess, "run", fail)


def test_the_mirror_comes_first(monkeypatch, tmp_path):
    storage.write_bytes(str(tmp_path / "mirror" / "ml-1m.parquet"), b"x")
    monkeypatch.setenv("RETILT_DATA_MIRROR", str(tmp_path / "mirror"))
    assert sources.locate("ml-1m", "unused") == str(tmp_path / "mirror" / "ml-1m.parquet")


def test_what_was_tried_is_said(monkeypatch):
    with pytest.raises(StorageError, match=r"ml-1m could not be fetched \(RETILT_DATA_MIRROR is not set; .*grouplens"):
        sources.locate("ml-1m", "unused")
    monkeypatch.setenv("RETILT_DATA_MIRROR", "/nonexistent")
    with pytest.raises(StorageError, match=r"has no ml-100k\.parquet; .*ml-100k\.zip.*recbole"):
        sources.locate("ml-100k", "unused")


def test_a_download_with_another_checksum_is_refused(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"something else"))
    with pytest.raises(StorageError, match="MD5 is not c4d9eecf"):
        sources.locate("ml-1m", "unused")


def test_what_was_fetched_is_kept_and_staged(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_fetch", lambda name, mirror: b"data")
    staged = sources.locate("ml-1m", str(tmp_path / "staging"))
    assert storage.read_bytes(staged) == b"data"
    monkeypatch.setattr(sources, "_fetch", None)
    sources.locate("ml-1m", str(tmp_path / "staging"))


def test_published_text_becomes_the_columns_of_the_mirror():
    data = sources.parquet_of(b"1::1193::5::978300760\n1::661::3::978302109\n", b"::")
    assert pq.read_table(io.BytesIO(data)).to_pydict() == {
        "user_id": [1, 1],
        "item_id": [1193, 661],
        "rating": [5.0, 3.0],
        "timestamp": [978300760, 978302109],
    }


def test_an_incomplete_known_data_set_is_refused():
    sources.check("ml-100k", 100_000, 943, 1_682)
    with pytest.raises(InputError, match=r"ml-100k: 99,999 events, .*published data set has 100,000"):
        sources.check("ml-100k", 99_999, 943, 1_682)
