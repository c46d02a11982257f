"""Fixtures that more than one test module needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.spawning import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two gloo processes; a failed test may leave them out of step, so it should end the session's use of them."""
    ranks = Ranks(2)
    yield ranks
    ranks.stop()
