"""Takes models into service and out of it while requests are answered.

What should be served follows from files: the bundles of the settings and of the model folder, less those that an
operator has unloaded (`service.wishes`). Every worker compares that with what it serves, when it is told to and, with
`watch_models_s`, as often as that says. A bundle is verified, loaded, warmed up and has answered its golden inputs
before it takes a request; one that fails never serves, and what was served in its place goes on.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bundle import LAYOUT
from service.board import Seat, State
from service.errors import LoadError, NotReadyError, StartupError, UnknownModelError
from service.folders import find_bundles
from service.metrics import Metrics
from service.model import Model, load_model
from service.registry import Registry, same_model
from service.settings import Settings
from service.wishes import Report, WishFolder

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_OFTEN_S = 1.0
_PATIENCE_S = 600.0  # for the slowest worker to load a bundle

Identity: TypeAlias = tuple[tuple[str, int, int], ...]


class _Failure(NamedTuple):
    """Why a bundle could not be loaded as its folder was then."""

    name: str
    identity: Identity
    reason: str


class Lifecycle:
    """One for each process; use it on the event loop.

    `check` raises StartupError for a model that cannot serve here; `often` is called every second.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        seat: Seat,
        *,
        check: Callable[[Model], None],
        often: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._board = seat.board
        self._check = check
        self._often = often
        self._wishes = None if seat.folder is None else WishFolder(seat.folder, seat.slot)
        self._loaded: dict[Path, Identity] = {}
        self._looked: dict[Path, Identity] = {}  # at, last time
        self._failed: dict[Path, _Failure] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def failures(self) -> dict[str, str]:
        """Bundles that could not be loaded, by name, and why."""
        return {failure.name: failure.reason for failure in self._failed.values()}

    @property
    def unloaded(self) -> frozenset[str]:
        """Names of models that are kept out of service."""
        return frozenset() if self._wishes is None else self._wishes.read().unloaded

    def reload(self) -> None:
        """Have all workers look at the files again."""
        if self._wishes is not None:
            self._wishes.ask()

    async def load(self, name: str) -> None:
        """Take a model into service, or its bundle again if it has changed; return when all workers have.

        Raises UnknownModelError when no bundle has that name, LoadError when it cannot be loaded.
        """
        if name not in await asyncio.to_thread(self._names):
            raise UnknownModelError(f"no bundle {name[:64]!r} in the model folder or among the bundles")
        failures = await self._have(lambda unloaded: unloaded - {name})
        if name in failures:
            raise LoadError(failures[name])

    async def unload(self, name: str) -> None:
        """Take a model out of service, all its versions; return when no worker takes requests for it any more.

        Raises UnknownModelError when it is not served.
        """
        if name not in {model.name for model in self._registry.all()}:
            raise UnknownModelError(f"no model {name[:64]!r} is served")
        await self._have(lambda unloaded: unloaded | {name})

    async def run(self) -> None:
        """Follow the files for as long as the service runs; call it when the first models are published."""
        self._loaded = {model.bundle.folder: identity_of(model.bundle.folder) for model in self._registry.all()}
        clock, done = asyncio.get_running_loop().time, 0
        looked_s = often_s = clock()
        while True:
            number = 0 if self._wishes is None else self._wishes.read().number
            watching = self._settings.watch_models_s > 0 and clock() >= looked_s + self._settings.watch_models_s
            if clock() >= often_s + _OFTEN_S or number > done:
                self._often()
                often_s = clock()
            if number > done or watching:
                try:
                    await self._reconcile(told=number > done)
                except Exception:  # a fault of ours must not end the watch
                    log.exception("the bundles could not be followed")
                looked_s = clock()
            if number > done and self._wishes is not None:
                self._wishes.report(Report(number, self.failures))
                done = number
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Wait for models that are on their way out."""
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _have(self, change: Callable[[frozenset[str]], frozenset[str]]) -> dict[str, str]:
        """Ask all workers, and return what could not be loaded once each has done it."""
        if self._wishes is None:
            raise NotReadyError("models cannot be loaded in this process")
        number = self._wishes.ask(change)
        board = self._board
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                slots = [slot for slot in range(board.workers) if board.state(slot) is State.READY]
                reports = [self._wishes.reported(slot) for slot in slots]
                if all(report.number >= number for report in reports):
                    return {name: why for report in reports for name, why in report.failures.items()}
                await asyncio.sleep(_LOOK_S)

    async def _reconcile(self, *, told: bool) -> None:
        """Bring what is served in line with the files.

        Unless `told` by somebody, a folder must have been the same the last time, so that one that is being copied is
        left alone, and what failed before is not tried again before it changes.
        """
        try:
            folders = await asyncio.to_thread(find_bundles, self._settings)
        except StartupError as error:  # nothing is taken out because a disk is away
            log.error("%s", error)
            return
        unloaded = self.unloaded
        wanted = {folder: name for folder in folders if (name := bundle_name(folder)) not in unloaded}
        served = {model.bundle.folder: model for model in self._registry.all()}
        for folder in self._failed.keys() - wanted.keys():
            del self._failed[folder]
        for folder, model in served.items():
            if folder not in wanted:
                self._take_out(model, None)
                log.info("%s %s is out of service", model.name, model.version)
        for folder, name in wanted.items():
            identity, before = identity_of(folder), self._looked.get(folder)
            self._looked[folder] = identity
            failure = self._failed.get(folder)
            if folder in served and self._loaded.get(folder) == identity:
                self._failed.pop(folder, None)
            elif told or (identity == before and (failure is None or failure.identity != identity)):
                await self._try(folder, name, identity, served.get(folder))

    async def _try(self, folder: Path, name: str, identity: Identity, before: Model | None) -> None:
        """Load what a folder holds; when that fails, what it held before goes on."""
        try:
            await self._swap(folder, before)
        except StartupError as error:
            self._failed[folder] = _Failure(name, identity, str(error))
            self._metrics.load_failures.labels(name).inc()
            log.error("%s", " ".join(str(error).split()))
        else:
            self._loaded[folder] = identity
            self._failed.pop(folder, None)

    async def _swap(self, folder: Path, before: Model | None) -> None:
        """Load what a folder holds and let it answer in place of what it held before."""
        loaded = await asyncio.to_thread(load_model, folder, self._settings)
        self._check(loaded)
        for other in self._registry.all():
            if other is not before and (other.name, other.version) == (loaded.name, loaded.version):
                raise StartupError(same_model(folder, other))
        loaded.start(self._settings, self._metrics)
        self._take_out(before, loaded)
        log.info("%s %s is in service", loaded.name, loaded.version)

    def _take_out(self, model: Model | None, instead: Model | None) -> None:
        self._registry.replace(model, instead)
        if model is not None:
            task = asyncio.create_task(model.retire(self._settings.shutdown_timeout_s))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _names(self) -> set[str]:
        try:
            return {bundle_name(folder) for folder in find_bundles(self._settings)}
        except StartupError as error:
            raise LoadError(str(error)) from error


def bundle_name(folder: Path) -> str:
    """Return the name in a bundle's manifest, or its folder's where that cannot be read."""
    try:
        name = json.loads((folder / LAYOUT.manifest).read_bytes())["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return folder.name
    return name if isinstance(name, str) else folder.name


def identity_of(folder: Path) -> Identity:
    """Return what changes when the files in a folder do: of each its name, size in bytes and time in nanoseconds."""
    try:
        with os.scandir(folder) as files:
            found = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))
