"""Runs that several files look at, each made once."""

from collections.abc import Callable

import pytest
import torch

from tests.support.runs import Finished, finish

# two threads for models this small only wait for each other
torch.set_num_threads(1)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure an endpoint is asked again at once."""
    monkeypatch.setattr("compress.llm_client._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("compress.llm_client._LONGEST_PAUSE_S", 0.01)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """task -> an uninterrupted run of a tiny recipe, made by the command; nobody may change it."""
    runs: dict[str, Finished] = {}

    def of(task: str) -> Finished:
        if task not in runs:
            runs[task] = finish(tmp_path_factory.mktemp(f"run-{task}"), task)
        return runs[task]

    return of
