"""Amazon S3 and what speaks its protocol: where it is, by whose credentials, and what its error answers ask for.

Two clients are needed: pyarrow's moves the data, s3fs writes on a condition, which pyarrow cannot. One rule for both,
from the environment of the process that makes them and never from a URI:

- *Endpoint*: ``AWS_ENDPOINT_URL_S3``, else ``AWS_ENDPOINT_URL``, as ``http://host:port`` or ``https://host``; without
  one Amazon. That of a profile is not read, because pyarrow knows none.
- *Region*: ``AWS_REGION``, else ``AWS_DEFAULT_REGION``, else us-east-1 at an endpoint and the bucket's at Amazon.
- *Certificates*: a store whose authority is not publicly known has its own in the file ``AWS_CA_BUNDLE``.
- *Credentials*: AWS's standard chain: the variables ``AWS_ACCESS_KEY_ID`` and so on, a web identity, the profile in
  ``~/.aws``, those of the container, those of the machine.

No client is given keys. It finds them itself, in the process that uses it, and so renews temporary ones itself; nor
could one that was pickled carry keys, as pyarrow's does that was given some (apache/arrow#47348).
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from retilt.types import InputError

ATTEMPTS = 10
"""Of the client, for streams that cannot be repeated: a store that is gone is reported after one to two minutes."""
CONNECT_TIMEOUT = 5
REQUEST_TIMEOUT = 60
"""Seconds; pyarrow's own values (1, 3) fail on busy stores."""
CONDITIONAL_TIMEOUT = 10
"""Seconds to wait for s3fs' answers: those files are small, and who holds a lease must know in time."""

Environment = tuple[tuple[str, str], ...]

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_PYARROW = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+)")
_UNKNOWN = re.compile(r"ExceptionName: (\w+)")

# Codes of error answers, as _spelt.
_STALE = {"expiredtoken", "invalidtoken", "invalidaccesskeyid", "signaturedoesnotmatch", "tokenrefreshrequired"}
_DENIED = _STALE | {"accessdenied", "allaccessdisabled", "authorizationheadermalformed", "requesttimetooskewed"}
_DAMAGED = {"requesttimeout", "incompletebody", "baddigest"}
"""On the way to the store; they come with the status of a bad request."""


def environment() -> Environment:
    """What of the environment the clients read; they are made anew when it changes."""
    return tuple(sorted(each for each in os.environ.items() if each[0].startswith("AWS_")))


def endpoint() -> str | None:
    """Address of the store, None for Amazon. Raises InputError where it is not one."""
    name = next((each for each in _ENDPOINTS if os.environ.get(each)), None)
    if name is None:
        return None
    value = os.environ[name]
    if "@" in value or "?" in value:
        raise InputError(f"{name} holds more than an address; credentials belong into variables of their own")
    if (found := _bare(value)) is None:
        raise InputError(f"{name} = {value}: must be http:// or https://, a host, perhaps a port, and nothing after it")
    return found


def _bare(value: str) -> str | None:
    """``http://host:port`` if that is all that a value holds."""
    try:
        split = urlsplit(value)
        whole = split.scheme in ("http", "https") and split.hostname and split.port != 0
    except ValueError:  # a port that is no number
        return None
    return None if not whole or split.path.strip("/") or split.fragment else f"{split.scheme}://{split.netloc}"


def address() -> str:
    """The endpoint, for a sentence."""
    return endpoint() or "Amazon S3"


def filesystem(bucket: str, attempts: int, timeout: int) -> Any:
    """pyarrow's client for a bucket, the same one as long as the environment is.

    Args:
        bucket: its region is the client's, where the environment names none.
        attempts: how often it tries a request.
        timeout: seconds to wait for an answer, at most REQUEST_TIMEOUT.
    """
    return _filesystem(_region(bucket), environment(), attempts, min(timeout, REQUEST_TIMEOUT))


def client(bucket: str) -> Any:
    """The s3fs file system of this process for requests with a condition; one attempt each."""
    return _client(_region(bucket), environment(), os.getpid())


def forget_client() -> None:
    """Have ``client`` make a new one, which reads the credentials again."""
    _client.cache_clear()


def _region(bucket: str) -> str:
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or ("us-east-1" if endpoint() else _region_at_amazon(bucket))


@functools.cache
def _region_at_amazon(bucket: str) -> str:
    return str(pafs.resolve_s3_region(bucket))


@functools.cache
def _filesystem(region: str, variables: Environment, attempts: int, timeout: int) -> Any:
    options: dict[str, Any] = {}
    if place := endpoint():
        options["scheme"], options["endpoint_override"] = place.split("://")
    if certificates := os.environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = certificates
    return pafs.S3FileSystem(
        region=region,
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=timeout,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        # A small file is then one request. Not for streams of several parts: where the first request fails, pyarrow
        # would still write an empty file when it destroys the stream.
        allow_delayed_open=attempts == 1,
        **options,
    )


@functools.cache
def _client(region: str, variables: Environment, process: int) -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        key=None, secret=None, token=None,  # not those of fsspec's own configuration, which pyarrow does not read
        endpoint_url=endpoint(),
        client_kwargs={"region_name": region},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": CONDITIONAL_TIMEOUT,
            "retries": {"total_max_attempts": 1},  # those of ``retried`` are counted
            "ignore_configured_endpoint_urls": True,
        },
        skip_instance_cache=True,
    )  # fmt: skip


def _spelt(code: str) -> str:
    """One spelling for the codes of both clients: ``NoSuchBucket`` and ``NO_SUCH_BUCKET`` → ``nosuchbucket``."""
    return code.replace("_", "").lower()


def is_stale(code: str) -> bool:
    """Whether an error answer says that the credentials are not, or no longer, valid."""
    return _spelt(code) in _STALE


def refusal_in(message: str, bucket: str) -> str | None:
    """``refusal`` of an error of pyarrow's; None also where it is no answer of a store."""
    found = _PYARROW.search(message)
    if found is None:
        return None
    code, status, operation = found.groups()
    named = _UNKNOWN.search(message)
    return refusal(named[1] if named else code, int(status or 0), operation, bucket)


def refusal(code: str, status: int, operation: str, bucket: str) -> str | None:
    """What an error answer of the store means to the user, None where the same request may succeed a moment later."""
    known, where = _spelt(code), address()
    if known == "nosuchbucket":
        return f"there is no bucket {bucket} at {where}"
    if known in _DAMAGED:
        return None
    # Expired credentials are a bad request, whose code is lost where pyarrow gets no error's body: HEAD, and GET.
    if known in _DENIED or status in (401, 403) or (status == 400 and known == "unknown"):
        return (
            f"{where} refuses {operation} ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            f"AWS_SESSION_TOKEN or the role of this machine, and what it may do in the bucket {bucket}"
        )
    if status in (301, 307):
        return f"the bucket {bucket} is in another region; check AWS_REGION"
    if known in ("nosuchkey", "resourcenotfound") or status in (400, 404, 405, 501):
        return f"{where} answers {operation} with {code}"
    return None


def unanswered(message: str) -> str | None:
    """Why there was no answer at all, out of an error of pyarrow's; None where a store has answered."""
    if "NETWORK_CONNECTION" not in message:
        return None
    reason = re.search(r"curlCode: \d+, ([^;]+)", message)
    return reason[1] if reason else "no connection"
