"""Fixtures of `bulk`'s tests."""

from pathlib import Path

import pytest

from bundle import Bundle
from tests.bulk.helpers import exact_bundle


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A complete bundle with the labels negative and positive, whose scores do not depend on batch mates."""
    return exact_bundle(tiny_bundle, tmp_path / "bundle")
