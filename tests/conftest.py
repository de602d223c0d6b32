"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

from bundle import Bundle
from tests.support.bundles import make_bundle


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Bundle:
    """A complete bundle with the labels negative and positive, made in this test's own folder."""
    return make_bundle(tmp_path / "tiny")
