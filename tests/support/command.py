"""The `limbeck` command in processes of its own, forked from one that has imported everything: seconds saved a run."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.imports"])


@dataclass(frozen=True)
class Result:
    returncode: int
    """As in subprocess: negative where a signal ended it."""
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    process: Any
    folder: Path

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.is_alive(), f"the command ended too early: {self.result()}"
            assert time.monotonic() < deadline, "nothing happened for too long"
            time.sleep(0.001)

    def result(self, timeout_s: float = 280) -> Result:
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "the command does not end"
        return Result(self.process.exitcode, self.stdout(), (self.folder / "stderr").read_text(encoding="utf-8"))


@contextlib.contextmanager
def started(*arguments: object, setup: Callable[[], None] | None = None) -> Iterator[Running]:
    """Start `limbeck ARGUMENTS`; `setup`, a function of a module, is called in its process first."""
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        words = [str(argument) for argument in arguments]
        process = _CONTEXT.Process(target=_main, args=(words, Path(folder), Path.cwd(), setup))
        # the first command starts the process that others are forked from, which finds what to import only from here
        with contextlib.chdir(_ROOT):
            forkserver.ensure_running()
        process.start()
        try:
            yield Running(process, Path(folder))
        finally:
            if process.is_alive():
                process.kill()
            process.join()


def limbeck(*arguments: object, setup: Callable[[], None] | None = None) -> Result:
    """Run `limbeck ARGUMENTS` to its end."""
    with started(*arguments, setup=setup) as running:
        return running.result()


def _main(arguments: list[str], folder: Path, working_folder: Path, setup: Callable[[], None] | None) -> None:
    # a shell that starts tests in the background has it ignored, and children keep that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "stdout"), (2, "stderr")):
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(working_folder)
    sys.argv = ["limbeck", *arguments]
    if setup:
        setup()
    import torch

    import limbeck as front_door

    torch.set_num_threads(1)  # two threads for models this small only wait for each other
    front_door.main()
