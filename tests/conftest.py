"""Fixtures that more than one test module needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.data import small_dataset
from tests.spawning import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two gloo processes; a failed test may leave them out of step, so it should end the session's use of them."""
    ranks = Ranks(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 60 users and 50 items in six row groups and three lanes. Not to be written to."""
    users = small_dataset.sequences(60, 50, longest=30)
    place = str(tmp_path_factory.mktemp("data"))
    return small_dataset.write(place, users, 50, lanes=3, shards=[[11, 9, 10], [10, 10, 10]])
