"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

from bundle import Bundle
from tests.support.bundles import make_bundle

# Hypothesis fails an example that takes 200 ms; on a busy machine that says nothing about the code.
settings.register_profile("limbeck", deadline=None)
settings.load_profile("limbeck")


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Bundle:
    """A complete bundle with the labels negative and positive, made in this test's own folder."""
    return make_bundle(tmp_path / "tiny")
