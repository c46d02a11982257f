"""Writes on a condition, so that of several processes exactly one succeeds: create, and compare and swap.

S3 decides by the headers If-None-Match and If-Match, a local file system by a hard link and a locked file. Other stores
get the same calls without the promise: they look, then write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from retilt.storage.files import exists, local_output, read_bytes, sync, write_bytes
from retilt.storage.paths import is_local, local_path, scheme, within_store
from retilt.storage.patience import retried
from retilt.storage.stores import CONNECT_TIMEOUT, plain, s3_keys, s3_place, transient, translated
from retilt.types import InputError

S3_TIMEOUT = 10
"""Seconds to wait for an answer: the files are small, and who holds a lease must know in time."""
_LOST = 412
_REFUSED = {301, 307, 400, 401, 403, 404, 405, 501}


def create(uri: str, data: bytes) -> bool:
    """Write a small file if it does not exist: True if this call made it, False if it was there.

    Whole or not at all, and on S3 and local file systems only one of several callers gets True, if each brings data
    of its own (a random token in it): by that a call whose answer was lost knows its file.
    """
    if is_local(uri):
        with translated(uri, "written"):
            return _create_local(Path(local_path(uri)), data)
    if _is_s3(uri):
        return _put(uri, data, IfNoneMatch="*")
    if exists(uri):
        return False
    write_bytes(uri, data)
    return True


def read_tagged(uri: str) -> tuple[bytes, str] | None:
    """(content, tag for ``replace``) of a small file; None where there is none."""
    if _is_s3(uri):
        return retried(functools.partial(_get_s3, uri))
    if is_local(uri):
        path = Path(local_path(uri))
        with translated(uri, "read"), contextlib.suppress(FileNotFoundError):
            return _tagged(path.read_bytes())
        return None
    return _tagged(read_bytes(uri)) if exists(uri) else None


def replace(uri: str, data: bytes, tag: str) -> bool:
    """Compare and swap: write a small file if it still has ``tag``; False, and nothing is written, if it has not.

    On S3 and local file systems only one of several callers with the same tag gets True, if each brings data of its
    own, as with ``create``.
    """
    if is_local(uri):
        path = Path(local_path(uri))
        if read_tagged(uri) is None:  # nor, perhaps, a folder for the lock
            return False
        with translated(uri, "written"), _locked(path):
            found = read_tagged(uri)
            if found is None or found[1] != tag:
                return False
            with local_output(path) as file:
                file.write(data)
            return True
    if _is_s3(uri):
        return _put(uri, data, IfMatch=tag)
    found = read_tagged(uri)
    if found is None or found[1] != tag:
        return False
    write_bytes(uri, data)
    return True


def _is_s3(uri: str) -> bool:
    return scheme(uri) in ("s3", "s3a")


def _tagged(data: bytes) -> tuple[bytes, str]:
    return data, hashlib.sha256(data).hexdigest()


def _create_local(path: Path, data: bytes) -> bool:
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        while not temporary.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # whoever else made the folder has just removed it, empty
                temporary.write_bytes(data)
        sync(temporary)
        try:
            # Not O_EXCL, which would show others an empty file.
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as problem:
            if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with _locked(path):  # a mount without hard links
                if path.exists():
                    return False
                os.replace(temporary, path)
        sync(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``.<name>.lock`` beside a file; it is gone afterwards."""
    place = path.parent / f".{path.name}.lock"
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(place).st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)  # who held it has deleted it meanwhile
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(handle)


@functools.cache
def _s3(bucket: str, place: tuple[str | None, str | None], keys: tuple[str | None, ...], process: int) -> Any:
    import s3fs

    endpoint, region = place
    return s3fs.S3FileSystem(
        endpoint_url=endpoint,
        client_kwargs={"region_name": region or pafs.resolve_s3_region(bucket)},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": S3_TIMEOUT,
            "retries": {"total_max_attempts": 1},  # those of ``retried`` are counted
        },
        skip_instance_cache=True,
    )


def _call(uri: str, action: str, operation: str, **arguments: Any) -> Any:
    """One request to S3; its answer with the body as bytes, or the status where a condition or the file is absent.

    Raises:
        InputError: refused.
        StorageError: no answer, or one that promises that a later request may succeed.
    """
    import aiohttp
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )
    from fsspec.asyn import sync as wait

    bucket, _, key = within_store(uri).partition("/")

    async def ask(filesystem: Any) -> Any:
        client = await filesystem.set_session()
        answer = await getattr(client, operation)(Bucket=bucket, Key=key, **arguments)
        if "Body" in answer:
            async with answer["Body"] as body:
                answer["Body"] = await body.read()
        return answer

    try:
        filesystem = _s3(bucket, s3_place(), s3_keys(), os.getpid())
        return wait(filesystem.loop, ask, filesystem)
    except ClientError as problem:
        status = problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = problem.response.get("Error", {}).get("Code")
        if status == _LOST or code == "NoSuchKey":
            return status
        if status in _REFUSED:
            raise InputError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
        raise transient(uri, f"cannot be {action}: {plain(problem)}") from problem
    except (NoCredentialsError, PartialCredentialsError) as problem:
        raise InputError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
    except (BotoCoreError, aiohttp.ClientError, OSError) as problem:
        raise transient(uri, f"cannot be {action}: {type(problem).__name__}: {plain(problem)}") from problem


def _get_s3(uri: str) -> tuple[bytes, str] | None:
    answer = _call(uri, "read", "get_object")
    if isinstance(answer, int):
        return None
    if len(answer["Body"]) != answer["ContentLength"]:
        raise transient(uri, f"cannot be read: {len(answer['Body'])} bytes of {answer['ContentLength']} came")
    return answer["Body"], answer["ETag"]


def _put(uri: str, data: bytes, **condition: str) -> bool:
    def once() -> bool:
        if not isinstance(_call(uri, "written", "put_object", Body=data, **condition), int):
            return True
        # A request that got no answer may have been carried out, and then stands in the way of its own repetition, by
        # ``retried`` or unseen: aiohttp sends a PUT again whose connection breaks.
        found = _get_s3(uri)
        return found is not None and found[0] == data

    return retried(once)
