"""Fixtures of the service's tests."""

import pytest

from tests.service.rollouts import make_version


@pytest.fixture
def models(tmp_path):
    """A folder with versions 1 and 2, whose weights differ."""
    make_version(tmp_path / "models" / "one", "1", 0)
    make_version(tmp_path / "models" / "two", "2", 5)
    for scratch in (tmp_path / "models").glob("scratch-*"):
        scratch.rename(tmp_path / scratch.name)
    return tmp_path / "models"
