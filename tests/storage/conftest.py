"""One real S3 server for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.faults.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket; the environment holds the keys."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"
