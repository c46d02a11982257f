"""Reading, writing, copying and deleting whole files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from retilt.storage import patience, s3, stores
from retilt.storage.paths import is_local, is_s3, local_path, scheme, within_store
from retilt.storage.patience import retried, within
from retilt.storage.stores import reading, resolve, transient, translated
from retilt.types import InputError, StorageError

CHUNK = 1 << 20
LARGE = 8 << 20
"""Bytes from which on an upload has several parts."""
FIRST_CONTACT = 10
"""Seconds for which a job asks a store that it does not know yet."""


def _info(uri: str) -> Any:
    def info() -> Any:
        filesystem, path = resolve(uri)
        with reading(uri):
            return filesystem.get_file_info(path)

    return retried(info)


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    return bool(_info(uri).type != pafs.FileType.NotFound)


def is_file(uri: str) -> bool:
    """Whether a file (not a folder) is there."""
    return bool(_info(uri).type == pafs.FileType.File)


def size(uri: str) -> int:
    """Bytes of a file."""
    info = _info(uri)
    if info.type != pafs.FileType.File:
        raise InputError(f"{uri}: no such file")
    return int(info.size)


def require_writable(uri: str) -> None:
    """Refuse a local folder that cannot be made or written to, before hours of work end there.

    What a store allows shows when it is written to.

    Raises:
        InputError: a part of the path is a file, or the folder is not ours to write.
    """
    if not is_local(uri):
        return
    place = Path(local_path(uri))
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{uri}: cannot be written: {place} is a file, not a folder")
    with translated(uri, "written"), tempfile.TemporaryDirectory(dir=place):
        pass  # trying is the only answer: root, NFS and read-only mounts each have their own rules


def require_reachable(uri: str) -> None:
    """Ask an S3 store for a place before a job begins, for FIRST_CONTACT seconds and not for PATIENCE.

    A wrong endpoint and an outage look the same, but for a person who waits the first is likelier and two minutes are
    long. For the driver only: workers may start again in the middle of an outage, and wait for its end.

    Raises:
        InputError: refused credentials, no such bucket, an endpoint that is none.
        StorageError: no answer. A store that answers that it is busy is there; what follows waits for it.
    """
    if not is_s3(uri):
        return
    bucket = within_store(uri).split("/", 1)[0]
    try:
        with within(min(FIRST_CONTACT, patience.PATIENCE), silently=True):
            if _info(uri).type == pafs.FileType.NotFound and not _bucket_exists(uri, bucket):
                raise InputError(f"{uri}: there is no bucket {bucket} at {s3.address()}")
    except StorageError as problem:
        if reason := s3.unanswered(str(problem)):
            raise StorageError(
                f"{uri}: cannot be read: no answer from {s3.address()} ({reason}); check AWS_ENDPOINT_URL, and whether "
                "this machine reaches it"
            ) from problem


def _bucket_exists(uri: str, bucket: str) -> bool:
    try:
        return exists(f"{scheme(uri)}://{bucket}")
    except InputError:
        return True  # who may use a part of a bucket need not be allowed to ask for the whole


def open_input(uri: str) -> Any:
    """A pyarrow NativeFile with random access; wrap reads in ``reading(uri)``, and all of it in ``retried``."""
    filesystem, path = resolve(uri)
    with reading(uri):
        return filesystem.open_input_file(path)


def _blocks(uri: str, length: int) -> Iterator[bytes]:
    """A file in pieces of at most ``length`` bytes, each retried by itself.

    A store that fails now and then would never give the whole of a large file in one go.
    """
    file = retried(lambda: open_input(uri))

    def block(start: int, wanted: int) -> bytes:
        with reading(uri):
            data = bytes(file.read_at(wanted, start))
        if len(data) != wanted:
            raise transient(uri, f"cannot be read: {len(data)} bytes of {wanted} came")
        return data

    with reading(uri), file:
        end = int(file.size())
        for start in range(0, end, length):
            yield retried(lambda start=start: block(start, min(length, end - start)))  # type: ignore[misc]


def read_bytes(uri: str) -> bytes:
    """The whole of a (small) file."""
    whole = io.BytesIO()  # its value is not copied, as that of a joined list would be
    for block in _blocks(uri, LARGE):
        whole.write(block)
    return whole.getvalue()


def read_json(uri: str) -> Any:
    """A JSON file's value; InputError where it is not JSON."""
    try:
        return json.loads(read_bytes(uri).decode("utf-8"))
    except ValueError as problem:
        raise InputError(f"{uri}: not valid JSON ({problem})") from problem


def sha256(uri: str) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for block in _blocks(uri, CHUNK):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[Any]:
    """A pyarrow output stream; the file appears whole when the block ends, or not at all when it raises.

    A remote file is written to a temporary local one (in TMPDIR) and uploaded when the block ends.
    """
    if is_local(uri):
        with translated(uri, "written"), local_output(Path(local_path(uri))) as file:
            yield file
        return
    # Not straight to the store: an S3 stream cannot be repeated, and closing it completes the upload of a half file.
    with translated(uri, "written"), tempfile.TemporaryDirectory(prefix="retilt-") as folder:
        temporary = os.path.join(folder, "file")
        with pa.OSFile(temporary, "wb") as file:
            yield file
        _upload(uri, temporary)


@contextlib.contextmanager
def local_output(path: Path) -> Iterator[Any]:
    """A pyarrow output stream to a temporary file beside ``path``, which it replaces, on disk, when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with pafs.LocalFileSystem().open_output_stream(str(temporary)) as file:
            yield file
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(uri: str, data: bytes) -> None:
    """Write a small remote file by one request, with retries."""

    def once() -> None:
        filesystem, path = resolve(uri)
        with translated(uri, "written"):
            # No ``with``: closing is what uploads, and nothing shall be uploaded where the write is interrupted.
            stream = filesystem.open_output_stream(path)
            stream.write(data)
            stream.close()

    retried(once)


def _upload(uri: str, source: str) -> None:
    """Write a remote file from a local one, with retries."""
    if os.path.getsize(source) <= LARGE:
        return _put(uri, Path(source).read_bytes())

    def once() -> None:
        # Many parts: the client repeats a part that fails, because repeating all parts for each would never end.
        token = stores.attempts.set(s3.ATTEMPTS)
        try:
            filesystem, path = resolve(uri)
        finally:
            stores.attempts.reset(token)
        with translated(uri, "written"):
            # One call outside Python: a signal cannot interrupt it half-way, which would upload half a file.
            pafs.copy_files(
                source,
                path,
                source_filesystem=pafs.LocalFileSystem(),
                destination_filesystem=filesystem,
                chunk_size=LARGE,
                use_threads=False,
            )

    return retried(once)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, whole or not at all."""
    if not is_local(uri) and len(data) <= LARGE:
        _put(uri, data)
        return
    with open_output(uri) as file:
        file.write(data)


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON (NaN and infinity are refused), whole or not at all."""
    write_bytes(uri, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def copy(source: str, destination: str) -> str:
    """Copy one file, streaming, between any two stores; returns the sha256 of what was copied."""
    digest = hashlib.sha256()
    with open_output(destination) as out:
        for block in _blocks(source, LARGE):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def delete(uri: str) -> None:
    """Delete a file or a folder with all that is in it; nothing there is fine."""
    below = local_path(uri).strip("/") if is_local(uri) else uri.split("://", 1)[1].strip("/").partition("/")[2]
    if not below:
        raise InputError(f"{uri}: a whole store is never deleted")

    kind = _info(uri).type  # retried by itself, because each request more is one more that can fail

    def once() -> None:
        filesystem, path = resolve(uri)
        # Gone already where the store has done what it did not answer.
        with translated(uri, "deleted"), contextlib.suppress(FileNotFoundError):
            if kind == pafs.FileType.File:
                filesystem.delete_file(path)
            elif kind == pafs.FileType.Directory:
                filesystem.delete_dir(path)

    retried(once)
