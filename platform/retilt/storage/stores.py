"""Which file system a URI means, and what its errors mean to a user.

File systems stay in this package: others are given URIs, and nobody can send one to another process.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from retilt.storage import s3
from retilt.storage.paths import is_local, is_s3, local_path, scheme, within_store
from retilt.types import InputError, StorageError

attempts: ContextVar[int | None] = ContextVar("retilt_storage_attempts", default=None)
"""Of the S3 clients that ``resolve`` hands out, where not s3.ATTEMPTS."""
timeout: ContextVar[int | None] = ContextVar("retilt_storage_timeout", default=None)
"""Of the same, in seconds, where less than s3.REQUEST_TIMEOUT."""

_REFUSED = re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|\b40[134]\b")
"""In errors of stores other than S3."""
_NETWORK = re.compile(r"AWS Error|google::cloud|curl|time[d ]*out|onnect", re.IGNORECASE)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


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
        return pafs.LocalFileSystem(), local_path(uri)
    path = within_store(uri)
    if kind == "memory":
        return _fsspec("memory"), "/" + path.lstrip("/")
    with translated(uri, "opened"):
        if is_s3(uri):
            limits = attempts.get() or s3.ATTEMPTS, timeout.get() or s3.REQUEST_TIMEOUT
            return s3.filesystem(path.split("/", 1)[0], *limits), path
        if kind in ("gs", "gcs"):
            return pafs.GcsFileSystem(), path
        try:
            return _fsspec(kind), path
        except (ValueError, ImportError) as problem:
            raise InputError(f"{uri}: no file system for {kind}:// is installed") from problem


def plain(problem: object) -> str:
    """The message of an error on one line of at most 300 characters, without the secrets of the environment."""
    text = " ".join(str(problem).split())
    for variable in _SECRETS:
        if value := os.environ.get(variable):
            text = text.replace(value, "***")
    return text[:300]


def transient(uri: str, message: str) -> StorageError:
    """A StorageError that ``retried`` repeats."""
    # An attribute and no subclass, because errors cross to other processes by the name of their class.
    problem: Any = StorageError(f"{uri}: {message}")
    problem.transient = True
    return problem  # type: ignore[no-any-return]


def is_transient(problem: BaseException) -> bool:
    """Whether the same action may succeed a moment later."""
    return isinstance(problem, StorageError) and getattr(problem, "transient", False)


@contextlib.contextmanager
def translated(uri: str, action: str) -> Iterator[None]:
    """Raise what goes wrong inside as InputError (the file, the request) or StorageError (the store, the disk)."""
    try:
        yield
    except (InputError, StorageError):
        raise
    except FileNotFoundError as problem:
        raise InputError(f"{uri}: no such file or folder") from problem
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as problem:
        raise InputError(f"{uri}: cannot be {action}: {os.strerror(problem.errno or errno.EACCES)}") from problem
    except pa.ArrowException as problem:
        raise InputError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
    except OSError as problem:
        # Parquet's decoders report damaged data as an OSError without a number.
        damaged = problem.errno is None and not _NETWORK.search(str(problem))
        if damaged or (reason := _refusal(uri, problem)):
            raise InputError(f"{uri}: cannot be {action}: {plain(problem) if damaged else reason}") from problem
        if is_local(uri) or problem.errno in _OURS:
            raise StorageError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
        raise transient(uri, f"cannot be {action}: {plain(problem)}") from problem


def _refusal(uri: str, problem: OSError) -> str | None:
    """In words, why a store will not do it; None where it may a moment later."""
    if is_s3(uri):
        return s3.refusal_in(str(problem), uri.split("://", 1)[1].split("/", 1)[0])
    return plain(problem) if not is_local(uri) and _REFUSED.search(str(problem)) else None


def reading(uri: str) -> contextlib.AbstractContextManager[None]:
    """Translates errors of code that reads from an open file: InputError (the file), StorageError (the store)."""
    return translated(uri, "read")
