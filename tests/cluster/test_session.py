"""Where a job may read and write, and what is left of Ray's wrapping of an error; no cluster is started."""

from __future__ import annotations

import pytest

from retilt.cluster import session
from retilt.types import InputError, StorageError


def test_an_open_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match="RAY_AUTH_MODE must be 'token'"), session.connect():
        pytest.fail("connected")


def test_places_that_are_not_the_same_everywhere_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"dataset = memory://x: memory:// lives in one process"):
        session.require_shared("memory://x", "dataset", shared_filesystem=True)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(session, "_nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    with pytest.raises(InputError, match=r"/data: a local path, but the cluster has 2 nodes.*shared_filesystem"):
        session.require_shared("/data", "output", shared_filesystem=False)
    session.require_shared("/data", "output", shared_filesystem=True)
    session.require_shared("s3://bucket/x", "output", shared_filesystem=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match=r"output = runs/x: a submitted job .* absolute path"):
        session.require_shared("runs/x", "output", shared_filesystem=True)


def test_our_error_is_found_in_what_ray_raises():
    inner = StorageError("the store is gone")
    for wrapped in (RuntimeError("x"), RuntimeError("y")):
        wrapped.cause = inner
        outer = RuntimeError("outer")
        outer.__cause__ = wrapped
        assert session.unwrapped(outer) is inner
    other = ValueError("a programming error")
    assert session.unwrapped(other) is other
