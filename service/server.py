"""Runs the service until a signal ends it: in this process, or in several workers behind one port."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import uvicorn

from bundle import LAYOUT
from bundle.reader import missing_bundle
from service.board import Seat, State
from service.errors import StartupError
from service.folders import find_bundles
from service.keys import Keyring
from service.logs import configure, report_loop_error
from service.rollout import Plan
from service.rollout_file import read_rollouts
from service.settings import ENV_PREFIX, Settings
from service.supervisor import CANNOT_START, Supervisor
from service.wishes import Wishes, WishFolder
from service.workers import count_workers, has_gpu, share

log = logging.getLogger(__name__)

# Python's own are 700, 10 and 10: with thousands of open connections and waiting requests, of which few are garbage in
# cycles, its collector took a fifth of the event loop's CPU.
_COLLECT_AFTER = (20_000, 20, 50)

_OTHER_FILES = 256  # than connections: bundles, libraries, channels


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, answer what was accepted, and return the process's exit status.

    On the signal readiness turns false and the port closes; requests that were accepted have `shutdown_timeout_s`
    seconds to finish, the rest get 503; the status is 0. A second signal ends at once. SIGHUP reads bundles and keys
    again. When a bundle cannot be loaded
    or the port cannot be had, the log has one line about it and the status is 1.
    """
    configure(settings.log_level)
    try:
        workers = count_workers(settings)
        if settings.keys_file is not None:
            Keyring(settings.keys_file, workers)
        rollouts = {} if settings.rollouts_file is None else read_rollouts(settings.rollouts_file)
        if workers == 1:
            _check_bundles(settings)
        listeners = [_listen(settings.host, settings.port, "port")]
        if settings.operations_port is not None:
            listeners.append(_listen(settings.host, settings.operations_port, "operations_port"))
    except StartupError as error:
        log.error("%s", error)
        return CANNOT_START
    _allow_files(settings.max_connections)
    mine = share(settings, workers)
    if (
        workers > 1 and find_spec("onnxruntime") is None
    ):  # said once, here, and not by each worker that cannot import it
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    if settings.otlp_endpoint is not None and find_spec("opentelemetry") is None:
        raise ModuleNotFoundError("No module named 'opentelemetry'", name="opentelemetry")
    if hasattr(signal, "SIGHUP"):  # until there is something to read again
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
        if rollouts:
            WishFolder(Path(folder), 0).ask(lambda wishes: _begun(wishes, rollouts), look=False)
        if workers == 1:
            return _run(mine, Seat(folder=Path(folder)), listeners, None)
        supervisor = Supervisor(
            workers,
            listeners,
            partial(_work, mine),
            folder=Path(folder),
            shutdown_timeout_s=settings.shutdown_timeout_s,
        )
        return supervisor.run()


def _begun(wishes: Wishes, rollouts: Mapping[str, Plan]) -> Wishes:
    """Begin all rollouts."""
    for model, plan in rollouts.items():
        wishes = wishes.with_rollout(model, plan)
    return wishes


def _work(settings: Settings, seat: Seat, channel: socket.socket) -> int:
    """Be one of several workers."""
    try:
        _check_bundles(settings)
        return _run(settings, seat, [], channel)
    except StartupError as error:
        log.error("%s", error)
        return CANNOT_START


def _check_bundles(settings: Settings) -> None:
    """Raise StartupError when a folder that should be a bundle is none, before anything is loaded."""
    for folder in find_bundles(settings):
        if not (folder / LAYOUT.manifest).is_file():
            raise StartupError(missing_bundle(folder))


def _run(settings: Settings, seat: Seat, listeners: list[socket.socket], channel: socket.socket | None) -> int:
    """Serve connections from the listeners or the channel; return the exit status."""
    from service.app import create_app
    from service.protocol import Protocol

    if not has_gpu():  # inference keeps every CPU busy: threads of the tokenizer's own double its CPU and save no time
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    gc.set_threshold(*_COLLECT_AFTER)
    _let_others_go_on()
    startup_errors: list[StartupError] = []

    def stop(error: StartupError) -> None:
        startup_errors.append(error)
        server.should_exit = True

    app = create_app(settings, on_startup_error=stop, seat=seat)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="asyncio" if sys.platform == "win32" else "uvloop",  # which has no Windows build
        http=Protocol,
        ws="none",
        lifespan="on",
        proxy_headers=False,  # nothing here asks for the client's address
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    server = _Server(config) if channel is None else _Worker(config, seat, channel)
    server.run(sockets=listeners)
    return CANNOT_START if startup_errors else 0


def _allow_files(connections: int) -> None:
    """Let each process open as many files as all connections are, as far as the system lets it; shells allow 1,024."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _let_others_go_on() -> None:
    """Do not let each packet that comes interrupt the model on a busy CPU.

    Under SCHED_BATCH a thread that wakes waits for the end of the running one's time slice, and an idle CPU takes it at
    once. So requests are read and refused in bunches, and inference keeps its caches: docs/experiments.md.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a container's rules may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _listen(host: str, port: int, setting: str) -> socket.socket:
    """Return a bound socket; raises StartupError when the address cannot be had."""
    option = f"--port or {ENV_PREFIX}PORT" if setting == "port" else ENV_PREFIX + setting.upper()
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with {option}"
        ) from error
    return listener


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, to SIGHUP too."""
        asyncio.get_running_loop().set_exception_handler(report_loop_error)
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP") and not isinstance(self, _Worker):  # it is the supervisor's
            reload = self.config.app.state.lifecycle.reload  # type: ignore[union-attr]
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin a graceful stop; unlike uvicorn's, it does not raise the signal again, so the exit status is 0."""
        self.force_exit = self.should_exit
        self.begin_exit()

    def begin_exit(self) -> None:
        """Begin a graceful stop."""
        self.should_exit = True
        self.config.app.state.registry.begin_draining()  # type: ignore[union-attr]


class _Worker(_Server):
    """Takes connections from the supervisor's channel instead of a port, and stops when the channel is closed."""

    def __init__(self, config: uvicorn.Config, seat: Seat, channel: socket.socket) -> None:
        super().__init__(config)
        self._seat = seat
        self._channel = channel
        self._opening: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._take)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        while self._take():  # what was passed on before the supervisor knew
            pass
        asyncio.get_running_loop().remove_reader(self._channel)
        await asyncio.gather(*self._opening, return_exceptions=True)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin a graceful stop, however often it is asked for: ending at once is the supervisor's to do."""
        self.begin_exit()

    def begin_exit(self) -> None:
        super().begin_exit()
        self._seat.report(State.LEAVING)

    def _take(self) -> bool:
        """Serve the next connection in the channel; return whether there was one."""
        try:
            letter, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        except BlockingIOError:
            return False
        except ConnectionError:
            letter, descriptors = b"", []
        for descriptor in descriptors:
            task = asyncio.get_running_loop().create_task(self._open(socket.socket(fileno=descriptor)))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        if not letter:
            asyncio.get_running_loop().remove_reader(self._channel)
            self.begin_exit()
        return bool(letter)

    async def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
