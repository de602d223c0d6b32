"""Start several processes of the same command that train together, and end them together."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from compress.machine import usable_cores
from compress.team import PIPE

_POLL_S = 0.05
_GRACE_S = 10.0
"""For a process that has lost another to end by itself, and for one that was told to."""
_INTERRUPTED = 130


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `limbeck ARGUMENTS` in so many processes and return the first one's exit code.

    The first talks; what the others say is shown only where one of them fails first. When one ends early, all others
    are ended: training goes on from its last checkpoint when the same command is given again. They end with this
    process, too, whatever ends it.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    read_end, write_end = os.pipe()
    threads = max(1, usable_cores() // processes)
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as said:
        for rank in range(processes):
            environment = {
                "OMP_NUM_THREADS": str(threads),
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                PIPE: str(read_end),
            }
            output = None if rank == 0 else subprocess.DEVNULL
            command = [sys.executable, "-m", "limbeck", *arguments]
            # a session of its own: Ctrl-C reaches it once, through this process
            started.append(
                subprocess.Popen(  # noqa: S603 - the command that the user gave, again
                    command,
                    env=environment,
                    stdout=output,
                    stderr=None if rank == 0 else said,
                    pass_fds=(read_end,),
                    start_new_session=True,
                )
            )
        os.close(read_end)
        try:
            return _wait(started, said)
        except KeyboardInterrupt:
            _end(started, signal.SIGINT)
            return _INTERRUPTED
        finally:
            _end(started, signal.SIGTERM)
            os.close(write_end)


def _wait(started: list["subprocess.Popen[bytes]"], said: IO[bytes]) -> int:
    """Wait until all have ended, or one has failed and the first has ended or been ended; return its exit code."""
    first = started[0]
    while True:
        codes = [process.poll() for process in started]
        if codes[0] is not None and (codes[0] != 0 or None not in codes):
            if _killed(codes[0]):
                _tell(0, codes[0], "")  # what it said is on the terminal
            return _exit_code(codes[0])
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            how = codes[failed] or 0
            try:
                code = first.wait(_GRACE_S)  # it notices, and says so
            except subprocess.TimeoutExpired:
                _tell(failed, how, _last_words(said))
                return 1
            if _killed(code):
                if _killed(how):  # and the first, which noticed, ended for that
                    _tell(failed, how, _last_words(said))
                else:
                    _tell(0, code, "")
            return _exit_code(code)
        time.sleep(_POLL_S)


def _killed(code: int) -> bool:
    """Return whether a signal ended a process, which then said nothing, other than Ctrl-C's."""
    return code < 0 and code != -signal.SIGINT


def _exit_code(code: int) -> int:
    """Return a process's exit code as shells give it."""
    return code if code >= 0 else 128 - code


def _last_words(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]


def _tell(rank: int, code: int, words: str) -> None:
    """Say on standard error that a process is gone, in the words it left."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    told = f": {words}" if words else ""
    print(  # noqa: T201 - this process has no console
        f"error: training process {rank} ended with {how}{told}; the others were stopped; give the same command again "
        "to go on from the last checkpoint",
        file=sys.stderr,
    )


def _end(started: list["subprocess.Popen[bytes]"], number: signal.Signals) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + _GRACE_S
    for process in started:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
