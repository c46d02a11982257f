"""Data sets known by name: where they come from, how to be sure of them, and their columns.

MovieLens (Harper and Konstan 2015) may be used for research and not redistributed, so it is fetched: from the folder or
URI ``RETILT_DATA_MIRROR`` if that is set, from GroupLens, and ml-100k at last out of a RecBole wheel.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from retilt import storage
from retilt.data.schema import Columns
from retilt.types import InputError, StorageError

COLUMNS = Columns(user="user_id", item="item_id", reward="rating", time="timestamp", time_unit="s")
_TIMEOUT = 30
_WHEEL = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
_WHEEL_MEMBER_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


@dataclass(frozen=True)
class Known:
    """A published data set."""

    address: str
    md5: str
    member: str
    separator: bytes
    rows: int
    users: int
    items: int


KNOWN = {
    "ml-100k": Known(
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "0e33842e24a9c977be4e0107933c0723",
        "ml-100k/u.data",
        b"\t",
        100_000,
        943,
        1_682,
    ),
    "ml-1m": Known(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "c4d9eecfca2ab87c1945afe126590906",
        "ml-1m/ratings.dat",
        b"::",
        1_000_209,
        6_040,
        3_706,
    ),
}
"""Rows, users and items as in Table 1 of the paper."""


def locate(name: str, staging: str) -> str:
    """URI of a known data set's Parquet file, in the mirror or else put into the folder ``staging``.

    Raises:
        StorageError: no source could be reached; says what was tried.
    """
    mirror = os.environ.get("RETILT_DATA_MIRROR")
    if mirror and storage.is_file(storage.join(mirror, f"{name}.parquet")):
        return storage.absolute(storage.join(mirror, f"{name}.parquet"))
    cached = storage.join(_cache(), f"{name}.parquet")
    if not storage.exists(cached):
        storage.write_bytes(cached, _fetch(name, mirror))
    staged = storage.join(staging, f"{name}.parquet")
    storage.copy(cached, staged)
    return staged


def check(name: str, rows: int, users: int, items: int) -> None:
    """Compare what was read with what was published. Raises InputError on a difference."""
    known = KNOWN[name]
    if (rows, users, items) != (known.rows, known.users, known.items):
        raise InputError(
            f"{name}: {rows:,} events, {users:,} users and {items:,} items, but the published data set has "
            f"{known.rows:,}, {known.users:,} and {known.items:,}; is the file in RETILT_DATA_MIRROR complete?"
        )


def _cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "retilt")


def _fetch(name: str, mirror: str | None) -> bytes:
    known = KNOWN[name]
    tried = [f"RETILT_DATA_MIRROR={mirror} has no {name}.parquet" if mirror else "RETILT_DATA_MIRROR is not set"]
    ways: list[tuple[str, Callable[[], bytes]]] = [
        (known.address, lambda: parquet_of(_published(known), known.separator))
    ]
    if name == "ml-100k":
        ways.append((f"the wheel {_WHEEL}", lambda: parquet_of(_from_wheel(), b"\t")))
    for place, way in ways:
        try:
            return way()
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError) as problem:
            tried.append(f"{place}: {' '.join(str(problem).split())[:200]}")
    raise StorageError(f"{name} could not be fetched ({'; '.join(tried)}); give RETILT_DATA_MIRROR=folder")


def _published(known: Known) -> bytes:
    with urllib.request.urlopen(known.address, timeout=_TIMEOUT) as answer:
        data: bytes = answer.read()
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != known.md5:
        raise OSError(f"MD5 is not {known.md5}")
    return zipfile.ZipFile(io.BytesIO(data)).read(known.member)


def _from_wheel() -> bytes:
    """ml-100k as RecBole ships it, its typed header cut off."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder,
            _WHEEL,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        wheel = next(Path(folder).glob("*.whl")).read_bytes()
    if hashlib.sha256(wheel).hexdigest() != _WHEEL_SHA256:
        raise OSError(f"sha256 of the wheel is not {_WHEEL_SHA256}")
    member = zipfile.ZipFile(io.BytesIO(wheel)).read(_WHEEL_MEMBER)
    if hashlib.sha256(member).hexdigest() != _WHEEL_MEMBER_SHA256:
        raise OSError(f"sha256 of {_WHEEL_MEMBER} is not {_WHEEL_MEMBER_SHA256}")
    return member.split(b"\n", 1)[1]


def parquet_of(text: bytes, separator: bytes) -> bytes:
    """Parquet bytes of lines ``user, item, rating, seconds`` without a header, in their order."""
    names = [COLUMNS.user, COLUMNS.item, COLUMNS.reward, COLUMNS.time]
    kinds = dict(zip(names, (pa.int64(), pa.int64(), pa.float32(), pa.int64()), strict=True))
    table = pacsv.read_csv(
        io.BytesIO(text.replace(separator, b"\t") if separator != b"\t" else text),
        read_options=pacsv.ReadOptions(column_names=names),
        parse_options=pacsv.ParseOptions(delimiter="\t"),
        convert_options=pacsv.ConvertOptions(column_types={**kinds, names[3]: pa.float64()}),
    )
    table = table.set_column(3, names[3], table[names[3]].cast(pa.int64()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
