"""What all tests with a real engine need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import built, skip_without_engine
from tests.support.bundles import make_bundle


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip where there is no Docker engine, and say why."""
    skip_without_engine()


@pytest.fixture(scope="session")
def cpu_image(engine: None) -> Iterator[str]:
    with built("Dockerfile") as tag:
        yield tag


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder / "tiny")
    folder.chmod(0o755)  # pytest makes it private; the container's user must read it
    return folder
