"""Wires the service together; the only file that knows all the others."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI

from service.api import guardrails, native, openinference, operations, tag, tei, vllm
from service.api.classify import Classifier
from service.api.failures import Failures
from service.api.fast_path import FastPath
from service.board import Seat, State
from service.engine.session_options import CPU
from service.errors import StartupError
from service.folders import find_bundles
from service.limits import BodyLimitMiddleware
from service.metrics import Metrics, RequestMetricsMiddleware
from service.registry import Model, Registry, load_model
from service.settings import AUTO, Settings

log = logging.getLogger(__name__)

_REFRESH_S = 1.0


def create_app(
    settings: Settings, *, on_startup_error: Callable[[StartupError], None] | None = None, seat: Seat | None = None
) -> FastAPI:
    """Return the service as an ASGI app whose lifespan loads the models and drains them at the end.

    Models load in a background thread: /health/live answers from the start, /health/ready only once all are loaded,
    warmed up and checked. When one cannot be, nothing is served: readiness stays false, and `on_startup_error` is
    called on the event loop; `service.server.serve` ends the process there. `app.state.registry` is the Registry.
    `seat` is this process's among several workers; `settings` are then its share.
    """
    seat = seat or Seat()
    metrics = Metrics(seat.board, seat.slot)
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
        metrics.refresh()  # other workers may be asked for them in the next moment
        seat.report(State.READY)
        log.info("ready: %s", ", ".join(registry.names()))

    def fail(error: StartupError) -> None:
        log.error("%s", " ".join(str(error).split()))  # foreign messages may have several lines
        if on_startup_error is not None:
            on_startup_error(error)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ending = threading.Event()
        metrics.workers.set_function(lambda: float(registry.ready))
        _load_in_background(settings, publish, fail, ending)
        telling = asyncio.create_task(_tell_others(metrics)) if seat.board.workers > 1 else None
        try:
            yield
        finally:
            if telling is not None:
                telling.cancel()
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
    classifier = Classifier(settings)
    failures = Failures(
        metrics, [tei.DIALECT, openinference.DIALECT, vllm.DIALECT, guardrails.V1, guardrails.DETECTORS]
    )
    app.include_router(native.router(registry, classifier))
    app.include_router(tag.router(registry, classifier))
    app.include_router(tei.router(registry, classifier, settings))
    app.include_router(openinference.router(registry, classifier, settings, metrics))
    app.include_router(vllm.router(registry, classifier))
    app.include_router(guardrails.router(registry, classifier))
    app.include_router(operations.router(registry, metrics, seat.board))
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    failures.install(app)
    app.add_middleware(RequestMetricsMiddleware, metrics=metrics)  # outermost: it sees every status
    app.state.fast_path = FastPath(  # for `service.protocol`
        registry, classifier, failures, metrics, settings.max_body_bytes
    )
    return app


async def _tell_others(metrics: Metrics) -> None:
    """Keep this process's gauges fresh for the workers that are asked for everybody's metrics."""
    while True:
        metrics.refresh()
        await asyncio.sleep(_REFRESH_S)


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
                _check_device(models[-1], settings.workers)
        except StartupError as error:
            _tell(loop, fail, error)
        except Exception as error:  # a fault of ours, or no memory left: the traceback is needed, and so is the end
            log.exception("loading failed")
            _tell(loop, fail, StartupError(f"loading failed: {type(error).__name__}: {error}"))
        else:
            _tell(loop, publish, models)

    threading.Thread(target=load, name="limbeck-load").start()


def _check_device(model: Model, workers: int | str) -> None:
    provider = model.session.provider
    if provider != CPU and workers not in (1, AUTO):
        raise StartupError(
            f"workers is {workers}, but {model.manifest.name} runs on {provider}, which one process owns: "
            "set LIMBECK_WORKERS=1, or LIMBECK_VARIANT to a variant for the CPU"
        )


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], argument: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the service ended while it was loading
        loop.call_soon_threadsafe(callback, argument)
