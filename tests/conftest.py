"""Fixtures shared by all tests, and the watch over what the service logs."""

from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from bundle import Bundle
from tests.support.bundles import make_bundle
from tests.support.leaks import LEAKS

# Hypothesis fails an example that takes 200 ms; on a busy machine that says nothing about the code.
settings.register_profile("limbeck", deadline=None)
settings.load_profile("limbeck")


def pytest_configure() -> None:
    LEAKS.listen()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail the test whose service has written to its log what no log may have."""
    report = yield
    for name, output in report.sections:
        if name in (f"Captured stdout {report.when}", f"Captured stderr {report.when}"):
            LEAKS.look_at_output(output)
    if found := LEAKS.take():
        report.outcome = "failed"
        report.longrepr = "\n".join(["a log has what no log may have (tests/support/leaks.py):", *found])
    return report


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Bundle:
    """A complete bundle with the labels negative and positive, made in this test's own folder."""
    return make_bundle(tmp_path / "tiny")
