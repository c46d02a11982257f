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

from retilt.storage import s3
from retilt.storage.files import exists, local_output, read_bytes, sync, write_bytes
from retilt.storage.paths import is_local, is_s3, local_path, within_store
from retilt.storage.patience import retried
from retilt.storage.stores import plain, transient, translated
from retilt.types import InputError

_LOST = 412


def create(uri: str, data: bytes) -> bool:
    """Write a small file if it does not exist: True if this call made it, False if it was there.

    Whole or not at all, and on S3 and local file systems only one of several callers gets True, if each brings data
    of its own (a random token in it): by that a call whose answer was lost knows its file.
    """
    if is_local(uri):
        with translated(uri, "written"):
            return _create_local(Path(local_path(uri)), data)
    if is_s3(uri):
        return _put(uri, data, IfNoneMatch="*")
    if exists(uri):
        return False
    write_bytes(uri, data)
    return True


def read_tagged(uri: str) -> tuple[bytes, str] | None:
    """(content, tag for ``replace``) of a small file; None where there is none."""
    if is_s3(uri):
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
    if is_s3(uri):
        return _put(uri, data, IfMatch=tag)
    found = read_tagged(uri)
    if found is None or found[1] != tag:
        return False
    write_bytes(uri, data)
    return True


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


def _call(uri: str, action: str, operation: str, **arguments: Any) -> Any:
    """One request to S3; its answer with the body as bytes, or the status where a condition or the file is absent.

    Raises:
        InputError: refused.
        StorageError: no answer, or one that promises that a later request may succeed.
    """
    import aiohttp
    from botocore import exceptions  # type: ignore[import-untyped]

    bucket, _, key = within_store(uri).partition("/")
    try:
        return _ask(bucket, operation, {"Bucket": bucket, "Key": key, **arguments})
    except exceptions.ClientError as problem:
        code, status = _answer(problem)
        if status == _LOST or code == "NoSuchKey":
            return status
        if reason := s3.refusal(code, status, problem.operation_name, bucket):
            raise InputError(f"{uri}: cannot be {action}: {reason}") from problem
        raise transient(uri, f"cannot be {action}: {plain(problem)}") from problem
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ProfileNotFound,
        exceptions.ParamValidationError,
    ) as problem:
        raise InputError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
    except (exceptions.BotoCoreError, aiohttp.ClientError, OSError) as problem:
        raise transient(uri, f"cannot be {action}: {type(problem).__name__}: {plain(problem)}") from problem


def _ask(bucket: str, operation: str, arguments: dict[str, Any]) -> Any:
    """The answer to a request, asked a second time by a new client where the credentials were refused.

    botocore reads a profile's keys once, but whoever hands out temporary ones writes new ones there before they end;
    pyarrow's client reads them every five minutes.
    """
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]
    from fsspec.asyn import sync as wait

    async def ask(filesystem: Any) -> Any:
        client = await filesystem.set_session()
        answer = await getattr(client, operation)(**arguments)
        if "Body" in answer:
            async with answer["Body"] as body:
                answer["Body"] = await body.read()
        return answer

    filesystem = s3.client(bucket)
    try:
        return wait(filesystem.loop, ask, filesystem)
    except ClientError as problem:
        if not s3.is_stale(_answer(problem)[0]):
            raise
        s3.forget_client()
        filesystem = s3.client(bucket)
        return wait(filesystem.loop, ask, filesystem)


def _answer(problem: Any) -> tuple[str, int]:
    """(code, status) of a ClientError; status 0 where there is none."""
    response = problem.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", "")), int(status)


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
