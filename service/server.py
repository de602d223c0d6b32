"""Runs the service in uvicorn until a signal ends it."""

import logging
import socket
import sys
from types import FrameType

import uvicorn

from bundle import LAYOUT
from bundle.reader import missing_bundle
from service.app import create_app
from service.errors import StartupError
from service.folders import find_bundles
from service.settings import Settings

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, answer what was accepted, and return the process's exit status.

    On the signal readiness turns false and the port closes; requests that were accepted have `shutdown_timeout_s`
    seconds to finish, the rest get 503; the status is 0. A second signal ends at once. When a bundle cannot be loaded
    or the port cannot be had, the log has one line about it and the status is 1.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        for folder in find_bundles(settings):
            if not (folder / LAYOUT.manifest).is_file():
                raise StartupError(missing_bundle(folder))
        listener = _listen(settings.host, settings.port)
    except StartupError as error:
        log.error("%s", error)
        return 1
    startup_errors: list[StartupError] = []

    def stop(error: StartupError) -> None:
        startup_errors.append(error)
        server.should_exit = True

    app = create_app(settings, on_startup_error=stop)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_timeout_s,
        )
    )
    server.run(sockets=[listener])
    return 1 if startup_errors else 0


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; raises StartupError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port or LIMBECK_PORT"
        ) from error
    return listener


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin a graceful stop; unlike uvicorn's, it does not raise the signal again, so the exit status is 0."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.config.app.state.registry.begin_draining()  # type: ignore[union-attr]
