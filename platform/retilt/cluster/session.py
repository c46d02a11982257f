"""The connection to Ray: the cluster that RAY_ADDRESS names, or one started here for as long as the job lasts."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray

from retilt import storage
from retilt.cluster.stopping import released_on_sigterm
from retilt.types import InputError, StorageError


@contextlib.contextmanager
def connect(cpus: int | None = None, dashboard: bool = True) -> Iterator[None]:
    """Be connected to Ray inside the block: join the cluster of RAY_ADDRESS, else start one and stop it at the end.

    ``dashboard`` serves Ray's State API on 127.0.0.1, which Ray Train needs to clean up after a controller that died.
    A connection that is there already is used and left open. ``cpus`` limits a cluster started here; None takes all.

    SIGTERM inside the block ends it at once, as Stopped, unless the work inside sees to it (stopping.Checkpointing).

    Raises:
        InputError: the cluster of RAY_ADDRESS cannot be joined, or RAY_AUTH_MODE is not ``token``.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    # Unset is right: ray.init then turns token mode on and makes the token. Set after the import of ray, the variable
    # reaches Ray's servers but not this process, and they fail without a token.
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        raise InputError("RAY_AUTH_MODE must be 'token': without it anyone who reaches this machine can run code on it")
    try:
        if address:
            _join(address)
        else:
            _start(cpus, dashboard)
        # Only now: ray.init sets a handler of its own.
        with released_on_sigterm():
            yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        raise InputError(
            f"RAY_ADDRESS={address}: cannot join the cluster ({' '.join(str(problem).split())})"
        ) from problem


def _start(cpus: int | None, dashboard: bool) -> None:
    # Read when worker processes start; without them each prints warnings about settings that only matter to others.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def require_shared(uri: str, key: str, shared_filesystem: bool) -> None:
    """Refuse a place that not every process of the cluster sees as the same; before a connection, what is never that.

    Raises:
        InputError: ``memory://``; a local path on several nodes, unless ``shared_filesystem``; a relative path in a
            job submitted to a cluster; before a connection, a store that refuses, or has no such bucket.
        StorageError: before a connection, a store that does not answer.
    """
    if storage.scheme(uri) == "memory":
        raise InputError(f"{key} = {uri}: memory:// lives in one process; give a folder or a bucket")
    if not storage.is_local(uri):
        if not ray.is_initialized():
            storage.require_reachable(uri)
        return
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in uri and not os.path.isabs(uri):
        raise InputError(f"{key} = {uri}: a submitted job runs in a folder of its own; give an absolute path or a URI")
    nodes = [node for node in _nodes() if node["Alive"]] if ray.is_initialized() else []
    if len(nodes) > 1 and not shared_filesystem:
        raise InputError(
            f"{key} = {uri}: a local path, but the cluster has {len(nodes)} nodes; give a bucket, or set "
            "storage.shared_filesystem=true if all of them mount it"
        )


def _nodes() -> list[dict[str, Any]]:
    nodes: Any = ray.nodes  # not annotated by Ray
    return list(nodes())


def unwrapped(problem: BaseException) -> BaseException:
    """The error that a task raised, out of what Ray wraps around it; ``problem`` itself if there is none of ours."""
    seen: set[int] = set()
    pending = [problem]
    while pending:
        each = pending.pop()
        if isinstance(each, InputError | StorageError) and type(each) in (InputError, StorageError):
            return each
        if id(each) in seen:
            continue
        seen.add(id(each))
        pending.extend(found for found in (getattr(each, "cause", None), each.__cause__, each.__context__) if found)
    return problem
