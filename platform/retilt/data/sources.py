"""Data sets known by name: where they come from, how to be sure of them, and their columns.

MovieLens (Harper and Konstan 2015) may be used for research and not redistributed, so it is fetched: from the folder or
URI ``RETILT_DATA_MIRROR`` if that is set, from GroupLens, and ml-100k at last out of a RecBole wheel. Amazon's ratings
of books (McAuley et al. 2015) come from SNAP. A download goes to a temporary file and from there, a block of lines at a
time, into Parquet: the largest has 22 million lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from retilt import storage
from retilt.data.schema import Columns
from retilt.types import InputError, StorageError

COLUMNS = Columns(user="user_id", item="item_id", reward="rating", time="timestamp", time_unit="s")
_TIMEOUT = 30
_BLOCK = 4 << 20
"""Bytes of text that are parsed at a time; Arrow reads up to 32 such blocks ahead."""
_WHEEL = "recbole==1.2.1"
_WHEEL_CHECKSUM = "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"


@dataclass(frozen=True)
class Lines:
    """How a published file holds its ratings: a line each, of user, item, rating and seconds since 1970."""

    member: str | None
    """Place in the ZIP archive; None where the file is none."""
    separator: str
    header: bool = False
    ids: Literal["int64", "string"] = "int64"


@dataclass(frozen=True)
class Filtered:
    """What is left of a data set in a published preparation that drops rare users, rare items and short sequences."""

    minimum: int
    """Events that a user and an item need, both counted once on all rows, and that a sequence needs after that."""
    users: int
    """Users with such a sequence."""
    items: int
    """Items with an event of such a user, those of short sequences included."""


@dataclass(frozen=True)
class Known:
    """A published data set."""

    address: str
    checksum: str
    """``md5:`` or ``sha256:`` and the hexadecimal digest of what is at the address."""
    lines: Lines
    rows: int
    users: int
    items: int
    filtered: Filtered | None = None


_MOVIELENS = "https://files.grouplens.org/datasets/movielens"

KNOWN = {
    "ml-100k": Known(
        f"{_MOVIELENS}/ml-100k.zip",
        "md5:0e33842e24a9c977be4e0107933c0723",
        Lines("ml-100k/u.data", "\t"),
        100_000, 943, 1_682,
    ),
    "ml-1m": Known(
        f"{_MOVIELENS}/ml-1m.zip",
        "md5:c4d9eecfca2ab87c1945afe126590906",
        Lines("ml-1m/ratings.dat", "::"),
        1_000_209, 6_040, 3_706,
    ),
    "ml-20m": Known(
        f"{_MOVIELENS}/ml-20m.zip",
        "md5:cd245b17a1ae2cc31bb14903e1204af3",
        Lines("ml-20m/ratings.csv", ",", header=True),
        20_000_263, 138_493, 26_744,
    ),
    "amazon-books": Known(
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Books.csv",
        "sha256:87d923ddac2aacf40c1d0e0e056dbf4bf69c9c7d41852c6b434e781e759c0707",
        Lines(None, ",", ids="string"),
        22_507_155, 8_026_324, 2_330_066,
        Filtered(5, users=694_897, items=695_762),
    ),
}  # fmt: skip
"""MovieLens as in Table 1 of the paper, MD5 as GroupLens publishes it. SNAP publishes none: two public loaders pin that
sha256. The users and items of ``filtered`` are those of Meta's public experiments, whose items are the paper's."""


def locate(name: str, staging: str, say: Callable[[str], None]) -> str:
    """URI of a known data set's Parquet file, in the mirror or else put into the folder ``staging``.

    ``say`` is told before a download begins.

    Raises:
        StorageError: no source could be reached; says what was tried.
    """
    mirror = os.environ.get("RETILT_DATA_MIRROR")
    if mirror and storage.is_file(storage.join(mirror, f"{name}.parquet")):
        return storage.absolute(storage.join(mirror, f"{name}.parquet"))
    cached = storage.join(_cache(), f"{name}.parquet")
    if not storage.exists(cached):
        _fetch(name, mirror, cached, say)
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


def check_filtered(name: str, minimums: set[int], users: int, items: int) -> None:
    """Compare what a published preparation's filters left with its counts; any other ``minimums`` have none.

    Raises:
        InputError: a difference.
    """
    published = KNOWN[name].filtered
    if published and minimums == {published.minimum} and (users, items) != (published.users, published.items):
        raise InputError(
            f"{name}: minimums of {published.minimum} events leave {users:,} users and {items:,} items, but published "
            f"were {published.users:,} and {published.items:,}; is the file in RETILT_DATA_MIRROR the published one?"
        )


def _cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "retilt")


def _fetch(name: str, mirror: str | None, target: str, say: Callable[[str], None]) -> None:
    """Write the Parquet file ``target`` from the first source that can be reached."""
    known = KNOWN[name]
    tried = [f"RETILT_DATA_MIRROR={mirror} has no {name}.parquet" if mirror else "RETILT_DATA_MIRROR is not set"]
    ways: list[tuple[str, Callable[[Path], Path], str, Lines]] = [
        (known.address, lambda folder: _download(known.address, folder), known.checksum, known.lines)
    ]
    if name == "ml-100k":
        ways.append((f"the wheel {_WHEEL}", _wheel, _WHEEL_CHECKSUM, Lines(_WHEEL_MEMBER, "\t", header=True)))
    for place, get, checksum, lines in ways:
        say(f"fetching {name} from {place}; it is kept in {_cache()}")
        try:
            with tempfile.TemporaryDirectory(prefix="retilt-") as folder:
                file = get(Path(folder))
                _require_checksum(file, checksum)
                with _text(file, lines.member) as text:
                    convert(text, lines, target)
            return
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError) as problem:
            tried.append(f"{place}: {' '.join(str(problem).split())[:200]}")
    raise StorageError(f"{name} could not be fetched ({'; '.join(tried)}); give RETILT_DATA_MIRROR=folder")


def _download(address: str, folder: Path) -> Path:
    target = folder / "download"
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer, target.open("wb") as file:
        while block := answer.read(storage.CHUNK):
            file.write(block)
    return target


def _wheel(folder: Path) -> Path:
    """ml-100k as RecBole ships it."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, _WHEEL]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


def _require_checksum(file: Path, checksum: str) -> None:
    kind, wanted = checksum.split(":")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, kind).hexdigest() != wanted:
            raise OSError(f"{kind} is not {wanted}")


@contextlib.contextmanager
def _text(file: Path, member: str | None) -> Iterator[BinaryIO]:
    if member is None:
        with file.open("rb") as stream:
            yield stream
    else:
        with zipfile.ZipFile(file) as archive, archive.open(member) as inner:
            yield inner  # type: ignore[misc]


def convert(text: BinaryIO, lines: Lines, target: str) -> None:
    """Write the ratings in ``text`` as the Parquet file ``target``, in their order, a few blocks in memory."""
    names = [COLUMNS.user, COLUMNS.item, COLUMNS.reward, COLUMNS.time]
    ids = pa.type_for_alias(lines.ids)
    schema = pa.schema(zip(names, (ids, ids, pa.float32(), pa.int64()), strict=True))
    # Arrow separates by one character; of a longer separator the others leave empty columns between.
    width = len(lines.separator)
    columns = [name + "-" * i for name in names for i in range(width)][: 3 * width + 1]
    # Times are read as floats, because the wheel's have a decimal point.
    types = dict(zip(names, (ids, ids, pa.float32(), pa.float64()), strict=True))
    reader = pacsv.open_csv(
        text,
        read_options=pacsv.ReadOptions(column_names=columns, skip_rows=int(lines.header), block_size=_BLOCK),
        parse_options=pacsv.ParseOptions(delimiter=lines.separator[0]),
        convert_options=pacsv.ConvertOptions(column_types=types, include_columns=names),
    )
    with (
        storage.open_output(target) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
