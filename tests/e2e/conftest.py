"""The tiny exported model and its server, made once for all end-to-end tests of serving."""

from collections.abc import Iterator

import pytest

from tests.e2e.serving import Exported, ServerProcess, served, tiny_export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run of the preset `tiny` and its exported model; tests copy what they change."""
    return tiny_export(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of that model; tests leave it as it is."""
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    with served(exported.models, log, "--workers", 2) as running:
        yield running
