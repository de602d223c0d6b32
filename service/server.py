"""Runs the service in uvicorn until a signal ends it."""

import logging
import sys
from types import FrameType

import uvicorn

from service.app import create_app
from service.errors import StartupError
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
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say, after a line in the log, that it cannot have the port
        return 1
    return 1 if startup_errors else 0


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin a graceful stop; unlike uvicorn's, it does not raise the signal again, so the exit status is 0."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.config.app.state.registry.begin_draining()  # type: ignore[union-attr]
