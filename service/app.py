"""Wires the service together; the only file that knows all the others."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from service.api import (
    admin,
    docs,
    explain,
    guardrails,
    native,
    openinference,
    operations,
    playground,
    rollouts,
    tag,
    tei,
    vllm,
)
from service.api.classify import Classifier
from service.api.failures import Failures
from service.api.fast_path import FastPath
from service.board import Seat, State
from service.connections import Connections
from service.engine.session_options import CPU
from service.errors import StartupError
from service.folders import bundle_name, find_bundles
from service.journal import Journal, JournalMiddleware
from service.keys import Keyring
from service.lifecycle import Lifecycle
from service.limits import BodyLimitMiddleware
from service.metrics import Metrics
from service.model import Model, load_model
from service.ports import CorsMiddleware, PortsMiddleware
from service.registry import Registry
from service.request_log import RequestLog
from service.security_headers import SecurityHeadersMiddleware
from service.settings import AUTO, Settings
from service.tei_metrics import TeiMetrics
from service.trials import Trials
from service.wishes import WishFolder

if TYPE_CHECKING:
    from service.tracing import Tracing

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
    keyring = None if settings.keys_file is None else Keyring(settings.keys_file, seat.board.workers)
    trials = Trials(registry, metrics, None if seat.folder is None else WishFolder(seat.folder, seat.slot))
    lifecycle = Lifecycle(
        registry,
        settings,
        metrics,
        seat,
        trials,
        check=lambda model: _check_device(model, settings.workers),
        often=lambda: _read_again(keyring),
    )
    tasks: set[asyncio.Task[None]] = set()

    def publish(models: list[Model]) -> None:
        if registry.draining:
            return
        try:
            trials.follow()
            registry.publish(models, some=bool(lifecycle.unloaded))
        except StartupError as error:
            fail(error)
            return
        for model in models:
            model.start(settings, metrics)
        tasks.update(asyncio.create_task(follow) for follow in (lifecycle.run(), trials.run()))
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
        _load_in_background(settings, lifecycle.unloaded, publish, fail, ending)
        if seat.board.workers > 1:
            tasks.add(asyncio.create_task(_tell_others(metrics)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ending.set()
            await asyncio.gather(registry.close(settings.shutdown_timeout_s), lifecycle.close())
            journal.finish()

    app = FastAPI(
        title="Limbeck",
        version="1",
        description="Text classification from Limbeck bundles.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # `service.api.docs` has them, without a CDN
        redoc_url=None,
    )
    app.state.registry, app.state.lifecycle = registry, lifecycle
    classifier = Classifier(settings)
    failures = Failures(
        metrics, [tei.DIALECT, openinference.DIALECT, vllm.DIALECT, guardrails.V1, guardrails.DETECTORS]
    )
    if settings.tei_metrics:
        metrics.registry.register(TeiMetrics(metrics.instruments))
    routers = {
        "native": [native.router(registry, classifier), tag.router(registry, classifier)],
        "tei": [tei.router(registry, classifier, settings)],
        "v2": [openinference.router(registry, classifier, settings, metrics, lifecycle)],
        "vllm": [vllm.router(registry, classifier)],
        "guardrails": [guardrails.router(registry, classifier)],
        "operations": [operations.router(registry, metrics.registry, seat.board), docs.router(app.title)],
    }
    for kind, router in _optional_routers(settings, registry, classifier, lifecycle, trials):
        routers[kind].append(router)
    dialects = _include(app, routers, secured=keyring is not None)
    request_log = RequestLog(settings.log_texts) if settings.request_log else None
    journal = Journal(metrics, dialects, keyring, request_log, _tracing(settings))
    _wrap(app, settings, journal, failures)
    # for `service.protocol`
    app.state.fast_path = FastPath(registry, classifier, failures, journal, settings)
    app.state.connections = Connections(settings)
    return app


def _optional_routers(
    settings: Settings, registry: Registry, classifier: Classifier, lifecycle: Lifecycle, trials: Trials
) -> Iterator[tuple[str, APIRouter]]:
    """Yield the routes that settings turn on, with their kind."""
    if settings.explain:
        yield "native", explain.router(registry, classifier, settings)
    if settings.playground:
        yield "operations", playground.router(registry, classifier, settings)
    if settings.admin:
        yield "operations", admin.router(registry, lifecycle)
        yield "operations", rollouts.router(lifecycle, trials)


def _include(app: FastAPI, routers: Mapping[str, Sequence[APIRouter]], *, secured: bool) -> dict[str, str]:
    """Give `app` the routes; return each one's dialect by the template of its path."""
    documented = [Security(HTTPBearer(auto_error=False))] if secured else []  # `service.journal` is who checks
    dialects: dict[str, str] = {}
    for dialect, several in routers.items():
        for router in several:
            app.include_router(router, dependencies=documented)
            dialects |= {route.path: dialect for route in router.routes if isinstance(route, APIRoute)}
    return dialects


def _wrap(app: FastAPI, settings: Settings, journal: Journal, failures: Failures) -> None:
    """Give `app` what every request passes, from the inside out."""
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    if settings.operations_port is not None:
        app.add_middleware(PortsMiddleware, operations_port=settings.operations_port)
    failures.install(app)
    app.add_middleware(JournalMiddleware, journal=journal, failures=failures)  # it sees every status
    if settings.cors_origins:  # outside of the journal: a preflight has no key
        app.add_middleware(
            CorsMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("*",),
        )
    app.add_middleware(SecurityHeadersMiddleware)  # outermost: every answer has them


def _tracing(settings: Settings) -> "Tracing | None":
    """Return what sends traces, if the settings name a collector."""
    if settings.otlp_endpoint is None:
        return None
    from service.tracing import Tracing  # of the extra `otel`

    return Tracing(settings.otlp_endpoint, settings.trace_share)


def _read_again(keyring: Keyring | None) -> None:
    """Read the keys again; those that were read before go on when the file is wrong."""
    if keyring is None:
        return
    try:
        keyring.reload()
    except StartupError as error:
        log.error("%s; the keys read before stay in force", error)


async def _tell_others(metrics: Metrics) -> None:
    """Keep this process's gauges fresh for the workers that are asked for everybody's metrics."""
    while True:
        metrics.refresh()
        await asyncio.sleep(_REFRESH_S)


def _load_in_background(
    settings: Settings,
    unloaded: frozenset[str],
    publish: Callable[[list[Model]], None],
    fail: Callable[[StartupError], None],
    ending: threading.Event,
) -> None:
    """Load all bundles but the `unloaded` in a thread and hand the models, or the first error, to the event loop.

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
                if bundle_name(folder) in unloaded:
                    continue
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
