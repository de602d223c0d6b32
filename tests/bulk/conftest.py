"""Fixtures of `bulk`'s tests."""

from pathlib import Path

import pytest

from bundle import Bundle
from tests.bulk.helpers import exact_bundle


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of progress depend on how fast the machine is."""
    monkeypatch.setattr("bulk.progress._LOG_EVERY_SECONDS", 1e9)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A complete bundle with the labels negative and positive, whose scores do not depend on batch mates."""
    return exact_bundle(tiny_bundle, tmp_path / "bundle")
