"""Files by URI: local paths, file://, s3://, gs://, memory://. The only door to pyarrow.fs and fsspec.

Everything takes and returns URIs as strings, and file systems are built in the process that uses them: a pickled
pyarrow S3FileSystem carries the secret key in clear and loses its retries (apache/arrow#47348).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from retilt.types import InputError, StorageError

CHUNK = 1 << 20
S3_ATTEMPTS = 10
"""With the client's growing pauses a store that is gone is reported after one to two minutes."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_WILDCARD = re.compile(r"[*?\[]")
_TEMPORARY = re.compile(r"(^|/)\.[^/]*\.tmp$")
_REFUSED = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY|SIGNATURE|NOT_FOUND|\b40[134]\b")
_NETWORK = re.compile(r"AWS Error|google::cloud|curl|time[d ]*out|onnect", re.IGNORECASE)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class FileInfo:
    """A file below a folder: its path relative to the folder, with ``/``, and its size in bytes."""

    path: str
    size: int


def scheme(uri: str) -> str:
    """``file``, ``s3``, ``gs``, ``memory``, …; ``file`` for plain paths."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else "file"


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine's file system."""
    return scheme(uri) == "file"


def _local_path(uri: str) -> str:
    if not _SCHEME.match(uri):
        return os.path.abspath(os.path.expanduser(uri))
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri}: a file URI has three slashes, file:///folder/name")
    return os.path.abspath(unquote(uri.split("://", 1)[1].removeprefix("localhost")))


def absolute(uri: str) -> str:
    """The same place as an absolute path (local) or URI without a trailing slash."""
    return _local_path(uri) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def parent(uri: str) -> str:
    """The URI of the folder that holds ``uri``."""
    return absolute(uri).rsplit("/", 1)[0] or "/"


def name(uri: str) -> str:
    """The last part of a URI."""
    return absolute(uri).rsplit("/", 1)[1]


@functools.cache
def _s3(bucket: str) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {}
    if endpoint:
        split = urlsplit(endpoint)
        options = {"endpoint_override": split.netloc or split.path, "scheme": split.scheme or "https"}
        region = region or "us-east-1"
    return pafs.S3FileSystem(
        region=region or pafs.resolve_s3_region(bucket),
        # pyarrow's own values (1 s, 3 s, 3 attempts) fail on busy stores.
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        **options,
    )


@functools.cache
def _fsspec(protocol: str) -> Any:
    import fsspec

    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(protocol)))


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a URI and the path within it.

    Raises:
        InputError: unknown scheme, credentials in the URI.
    """
    kind = scheme(uri)
    if kind == "file":
        return pafs.LocalFileSystem(), _local_path(uri)
    path = uri.split("://", 1)[1].rstrip("/")
    if "@" in path.split("/", 1)[0]:
        raise InputError(f"a {kind}:// URI holds credentials; give them in the environment, never in a URI")
    if kind == "memory":
        return _fsspec("memory"), "/" + path.lstrip("/")
    if not path.split("/", 1)[0]:
        raise InputError(f"{uri}: no bucket; write {kind}://bucket/folder")
    with _translated(uri, "opened"):
        if kind in ("s3", "s3a"):
            return _s3(path.split("/", 1)[0]), path
        if kind in ("gs", "gcs"):
            return pafs.GcsFileSystem(), path
        try:
            return _fsspec(kind), path
        except (ValueError, ImportError) as problem:
            raise InputError(f"{uri}: no file system for {kind}:// is installed") from problem


def _plain(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    for variable in _SECRETS:
        if value := os.environ.get(variable):
            text = text.replace(value, "***")
    return text[:300]


@contextlib.contextmanager
def _translated(uri: str, action: str) -> Iterator[None]:
    try:
        yield
    except (InputError, StorageError):
        raise
    except FileNotFoundError as problem:
        raise InputError(f"{uri}: no such file or folder") from problem
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as problem:
        raise InputError(f"{uri}: cannot be {action}: {os.strerror(problem.errno or errno.EACCES)}") from problem
    except pa.ArrowException as problem:
        raise InputError(f"{uri}: cannot be {action}: {_plain(problem)}") from problem
    except OSError as problem:
        # Parquet's decoders report damaged data as an OSError without a number.
        damaged = problem.errno is None and not _NETWORK.search(str(problem))
        if damaged or (not is_local(uri) and _REFUSED.search(str(problem))):
            raise InputError(f"{uri}: cannot be {action}: {_plain(problem)}") from problem
        raise StorageError(f"{uri}: cannot be {action}: {_plain(problem)}") from problem


def reading(uri: str) -> contextlib.AbstractContextManager[None]:
    """Translates errors of code that reads from an open file: InputError (the file), StorageError (the store)."""
    return _translated(uri, "read")


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    filesystem, path = resolve(uri)
    with reading(uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def require_writable(uri: str) -> None:
    """Refuse a local folder that cannot be made or written to, before hours of work end there.

    What a store allows shows when it is written to.

    Raises:
        InputError: a part of the path is a file, or the folder is not ours to write.
    """
    if not is_local(uri):
        return
    place = Path(_local_path(uri))
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{uri}: cannot be written: {place} is a file, not a folder")
    with _translated(uri, "written"), tempfile.TemporaryDirectory(dir=place):
        pass  # trying is the only answer: root, NFS and read-only mounts each have their own rules


def is_file(uri: str) -> bool:
    """Whether a file (not a folder) is there."""
    filesystem, path = resolve(uri)
    with reading(uri):
        return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def size(uri: str) -> int:
    """Bytes of a file."""
    filesystem, path = resolve(uri)
    with reading(uri):
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise InputError(f"{uri}: no such file")
        return int(info.size)


def open_input(uri: str) -> Any:
    """A pyarrow NativeFile with random access; wrap reads in ``reading(uri)``."""
    filesystem, path = resolve(uri)
    with reading(uri):
        return filesystem.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """The whole of a (small) file."""
    with reading(uri), open_input(uri) as file:
        return bytes(file.read())


def read_json(uri: str) -> Any:
    """A JSON file's value; InputError where it is not JSON."""
    try:
        return json.loads(read_bytes(uri).decode("utf-8"))
    except ValueError as problem:
        raise InputError(f"{uri}: not valid JSON ({problem})") from problem


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[Any]:
    """A pyarrow output stream; the file appears whole when the block ends, or not at all when it raises."""
    filesystem, path = resolve(uri)
    if is_local(uri):
        with _translated(uri, "written"), _local_output(filesystem, Path(path)) as file:
            yield file
        return
    with _translated(uri, "written"):
        file = filesystem.open_output_stream(path)
        try:
            yield file
        except BaseException:
            # Closing completes an upload; there is no abort. What it leaves is deleted.
            with contextlib.suppress(Exception):
                file.close()
                filesystem.delete_file(path)
            raise
        file.close()


@contextlib.contextmanager
def _local_output(filesystem: Any, path: Path) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with filesystem.open_output_stream(str(temporary)) as file:
            yield file
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with open_output(uri) as file:
        file.write(data)


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON (NaN and infinity are refused), whole or not at all."""
    write_bytes(uri, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def copy(source: str, destination: str) -> None:
    """Copy one file, streaming, between any two stores."""
    with reading(source), open_input(source) as file, open_output(destination) as out:
        while block := file.read(CHUNK):
            out.write(block)


def delete(uri: str) -> None:
    """Delete a file or a folder with all that is in it; nothing there is fine."""
    below = _local_path(uri).strip("/") if is_local(uri) else uri.split("://", 1)[1].strip("/").partition("/")[2]
    if not below:
        raise InputError(f"{uri}: a whole store is never deleted")
    filesystem, path = resolve(uri)
    with _translated(uri, "deleted"):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            filesystem.delete_file(path)
        elif info.type == pafs.FileType.Directory:
            filesystem.delete_dir(path)


def _walk(uri: str, recursive: bool) -> list[FileInfo]:
    filesystem, path = resolve(uri)
    with reading(uri):
        if filesystem.get_file_info(path).type != pafs.FileType.Directory:
            return []
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive))
    files = [info for info in found if info.type == pafs.FileType.File and not _TEMPORARY.search(info.path)]
    start = len(path.strip("/"))
    relative = [FileInfo(info.path.strip("/")[start:].lstrip("/"), int(info.size)) for info in files]
    return sorted(relative, key=lambda file: file.path)


def list_files(uri: str) -> list[FileInfo]:
    """Every file below a folder, sorted by path; empty where there is no such folder."""
    return _walk(uri, recursive=True)


def expand(source: str) -> list[str]:
    """URIs of a file, of the data files below a folder (not those starting with ``_`` or ``.``), or of a glob, sorted.

    In a glob ``*`` and ``?`` stay within one folder, ``**`` does not.

    Raises:
        InputError: nothing found.
    """
    if is_file(source):
        return [absolute(source)]
    if not _WILDCARD.search(source):
        if not exists(source):
            raise InputError(f"{source}: no such file or folder")
        found = [file.path for file in list_files(source) if not re.search(r"(^|/)[_.]", file.path)]
        if not found:
            raise InputError(f"{source}: the folder holds no data files")
        return [join(absolute(source), path) for path in found]
    wildcard = _WILDCARD.search(source)
    assert wildcard is not None
    folder, _, pattern = source[: wildcard.start()].rpartition("/")
    pattern += source[wildcard.start() :]
    folder = folder or ("/" if source.startswith("/") else ".")
    matches = re.compile(_glob(pattern)).fullmatch
    recursive = "/" in pattern or "**" in pattern
    found = [file.path for file in _walk(folder, recursive) if matches(file.path)]
    if not found:
        raise InputError(f"{source}: no file matches")
    return [join(absolute(folder), path) for path in found]


def _glob(pattern: str) -> str:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(part: str) -> str:
        if part in tokens:
            return tokens[part]
        return "[" + part[1:-1].replace("!", "^", 1) + "]" if len(part) > 1 else re.escape(part)

    return "".join(translate(part) for part in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern))


def sha256(uri: str) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with reading(uri), open_input(uri) as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()
