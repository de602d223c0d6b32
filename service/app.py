"""Wires the service together; the only file that knows all the others."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI

from service.api import failures, native, operations
from service.errors import StartupError
from service.folders import find_bundles
from service.limits import BodyLimitMiddleware
from service.metrics import Metrics, RequestMetricsMiddleware
from service.registry import Model, Registry, load_model
from service.settings import Settings

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, on_startup_error: Callable[[StartupError], None] | None = None) -> FastAPI:
    """Return the service as an ASGI app whose lifespan loads the models and drains them at the end.

    Models load in a background thread: /health/live answers from the start, /health/ready only once all are loaded,
    warmed up and checked. When one cannot be, nothing is served: readiness stays false, and `on_startup_error` is
    called on the event loop; `service.server.serve` ends the process there. `app.state.registry` is the Registry.
    """
    metrics = Metrics()
    registry = Registry(settings.default_model)

    def publish(models: list[Model]) -> None:
        if registry.draining:
            return
        try:
            registry.publish(models)
        except StartupError as error:
            fail(error)
            return
        for model in models:
            model.start(settings, metrics)
        log.info("ready: %s", ", ".join(registry.names()))

    def fail(error: StartupError) -> None:
        log.error("%s", " ".join(str(error).split()))  # foreign messages may have several lines
        if on_startup_error is not None:
            on_startup_error(error)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ending = threading.Event()
        _load_in_background(settings, publish, fail, ending)
        try:
            yield
        finally:
            ending.set()
            await registry.close(settings.shutdown_timeout_s)

    app = FastAPI(
        title="Limbeck",
        version="1",
        description="Text classification from Limbeck bundles.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.registry = registry
    app.include_router(native.router(registry, settings.max_inputs))
    app.include_router(operations.router(registry, metrics))
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    failures.install(app, metrics)
    app.add_middleware(RequestMetricsMiddleware, metrics=metrics)  # outermost: it sees every status
    return app


def _load_in_background(
    settings: Settings,
    publish: Callable[[list[Model]], None],
    fail: Callable[[StartupError], None],
    ending: threading.Event,
) -> None:
    """Load all bundles in a thread and hand the models, or the first error, to the running event loop.

    Once `ending` is set no further bundle is begun. The thread is no daemon: the interpreter waits for the bundle that
    is being loaded, because a thread that it leaves inside ONNX Runtime aborts the process.
    """
    loop = asyncio.get_running_loop()

    def load() -> None:
        try:
            models = []
            for folder in find_bundles(settings):
                if ending.is_set():
                    return
                models.append(load_model(folder, settings))
        except StartupError as error:
            _tell(loop, fail, error)
        except Exception as error:  # a fault of ours, or no memory left: the traceback is needed, and so is the end
            log.exception("loading failed")
            _tell(loop, fail, StartupError(f"loading failed: {type(error).__name__}: {error}"))
        else:
            _tell(loop, publish, models)

    threading.Thread(target=load, name="limbeck-load").start()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], argument: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the service ended while it was loading
        loop.call_soon_threadsafe(callback, argument)
