"""Ranks for the whole session, on one worker of pytest."""

from collections.abc import Iterator

import pytest

from tests.dist.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Up to four processes."""
    pool = Ranks()
    yield pool
    pool.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests that ask for ranks run on one worker, so that there is one set of processes."""
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))
