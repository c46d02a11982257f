"""Fixtures that more than one test module needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data import small_dataset
from tests.spawning import Ranks

HERE = Path(__file__).parent
WHOLE_MACHINE = {"cluster", "faults", "jobs", "workflows"}
"""Folders of tests that start Ray, or many processes: never two of them at a time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``-n 2 --dist loadgroup`` one process takes those folders; the other one module after the other."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        item.add_marker(pytest.mark.xdist_group("machine" if folder in WHOLE_MACHINE else item.path.name))


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
