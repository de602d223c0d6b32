"""Takes models into service and out of it while requests are answered.

What should be served follows from files: the bundles of the settings and of the model folder, less those that an
operator has unloaded (`service.wishes`). Every worker compares that with what it serves, when it is told to and, with
`watch_models_s`, as often as that says. A bundle is verified, loaded, warmed up and has answered its golden inputs
before it takes a request; one that fails never serves, and what was served in its place goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from service.board import Seat, State
from service.errors import DrainingError, LoadError, NotReadyError, StartupError, UnknownModelError
from service.folders import Identity, bundle_name, find_bundles, identity_of
from service.metrics import Metrics
from service.model import Model, load_model
from service.registry import Registry, same_model
from service.settings import Settings
from service.trials import Trials
from service.wishes import Report, Wishes, WishFolder

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_OFTEN_S = 1.0
_PATIENCE_S = 600.0  # for the slowest worker to load a bundle


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
        trials: Trials,
        *,
        check: Callable[[Model], None],
        often: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._board = seat.board
        self._trials = trials
        self._check = check
        self._often = often
        self._wishes = None if seat.folder is None else WishFolder(seat.folder, seat.slot)
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
            try:
                self._wishes.ask()
            except OSError as error:
                log.error("the bundles and keys could not be looked at: %s", error)

    async def load(self, name: str) -> None:
        """Take a model into service, or its bundle again if it has changed; return when all workers have.

        Raises UnknownModelError when no bundle has that name, LoadError when it cannot be loaded.
        """
        if name not in await asyncio.to_thread(self._names):
            raise UnknownModelError(f"no bundle {name[:64]!r} in the model folder or among the bundles")
        failures = await self.have(lambda wishes: wishes._replace(unloaded=wishes.unloaded - {name}))
        if name in failures:
            raise LoadError(failures[name])

    async def unload(self, name: str) -> None:
        """Take a model out of service, all its versions; return when no worker takes requests for it any more.

        Raises UnknownModelError when it is not served.
        """
        if name not in {model.name for model in self._registry.all()}:
            raise UnknownModelError(f"no model {name[:64]!r} is served")
        await self.have(lambda wishes: wishes._replace(unloaded=wishes.unloaded | {name}))

    async def run(self) -> None:
        """Follow the files for as long as the service runs; call it when the first models are published."""
        clock, done, looked = asyncio.get_running_loop().time, 0, 0
        looked_s = often_s = clock()
        while True:
            try:
                wishes = Wishes() if self._wishes is None else self._wishes.read()
                watching = self._settings.watch_models_s > 0 and clock() >= looked_s + self._settings.watch_models_s
                if clock() >= often_s + _OFTEN_S or wishes.number > done:
                    often_s = clock()
                    self._often()
                if wishes.looks > looked or watching:
                    looked_s = clock()
                    await self._reconcile(told=wishes.looks > looked)
                    looked = wishes.looks
                if wishes.number > done and self._wishes is not None:
                    self._trials.follow()
                    self._wishes.report(Report(wishes.number, self.failures))
                    done = wishes.number
            except Exception as error:  # no descriptors, a full disk, a fault of ours: none must end it
                log.exception("the bundles could not be followed; trying again: %s", error)
                await asyncio.sleep(_OFTEN_S)
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Wait for models that are on their way out."""
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def have(self, change: Callable[[Wishes], Wishes], *, look: bool = True) -> dict[str, str]:
        """Ask all workers for a change, and return what could not be loaded once each has done it.

        `look` has them look at the bundles. Raises NotReadyError or DrainingError when it cannot be waited for.
        """
        if self._wishes is None:
            raise NotReadyError("models cannot be loaded in this process")
        number = self._wishes.ask(change, look=look).number
        end_s = time.monotonic() + _PATIENCE_S
        while True:
            if self._registry.draining:
                raise DrainingError("the service is shutting down")
            slots = [slot for slot in range(self._board.workers) if self._board.state(slot) is State.READY]
            reports = [self._wishes.reported(slot) for slot in slots]
            missing = [slot for slot, report in zip(slots, reports, strict=True) if report.number < number]
            if not missing:
                return {name: why for report in reports for name, why in report.failures.items()}
            if time.monotonic() > end_s:
                raise NotReadyError(f"workers {missing} have not done it after {_PATIENCE_S:.0f} s; they may yet")
            await asyncio.sleep(_LOOK_S)

    async def _reconcile(self, *, told: bool) -> None:
        """Bring what is served in line with the files.

        Unless `told` by somebody, a folder must have been the same the last time, so that one that is being copied is
        left alone, and what failed before is not tried again before it changes.
        """
        unloaded = self.unloaded
        for model in self._registry.all():
            if model.name in unloaded:
                self._take_out(model, None)
        try:
            found = await asyncio.to_thread(self._look)
        except StartupError as error:  # nothing more is taken out because a disk is away
            log.error("%s", error)
            return
        wanted = {folder: (name, identity) for folder, name, identity in found if name not in unloaded}
        served = {model.bundle.folder: model for model in self._registry.all()}
        for folder in self._failed.keys() - wanted.keys():
            del self._failed[folder]
        for folder, model in served.items():
            if folder not in wanted:
                self._take_out(model, None)
        for folder, (name, identity) in wanted.items():
            before, self._looked[folder] = self._looked.get(folder), identity
            failure = self._failed.get(folder)
            if folder in served and served[folder].identity == identity:
                self._failed.pop(folder, None)
            elif told or (identity == before and (failure is None or failure.identity != identity)):
                await self._try(folder, name, identity, served.get(folder))

    def _look(self) -> list[tuple[Path, str, Identity]]:
        """Return what bundles there are; reads files, so not for the event loop."""
        folders = find_bundles(self._settings, perhaps_none=True)
        return [(folder, bundle_name(folder), identity_of(folder)) for folder in folders]

    async def _try(self, folder: Path, name: str, identity: Identity, before: Model | None) -> None:
        """Load what a folder holds; when that fails, what it held before goes on."""
        try:
            await self._swap(folder, before)
        except Exception as error:
            reason = str(error) if isinstance(error, StartupError) else f"{folder}: {type(error).__name__}: {error}"
            self._failed[folder] = _Failure(name, identity, reason)
            self._metrics.load_failures.labels(name).inc()
            log.error("%s", " ".join(reason.split()), exc_info=not isinstance(error, StartupError))
        else:
            self._failed.pop(folder, None)

    async def _swap(self, folder: Path, before: Model | None) -> None:
        """Load what a folder holds and let it answer in place of what it held before."""
        loaded = await asyncio.to_thread(load_model, folder, self._settings)
        self._check(loaded)
        for other in self._registry.all():
            if other is not before and (other.name, other.version) == (loaded.name, loaded.version):
                raise StartupError(same_model(folder, other))
        loaded.start(self._settings, self._metrics)
        self._trials.follow()  # a rollout may have been stated meanwhile
        self._take_out(before, loaded)
        log.info("%s %s is in service", loaded.name, loaded.version)

    def _take_out(self, model: Model | None, instead: Model | None) -> None:
        self._registry.replace(model, instead)
        if model is not None:
            if instead is None:
                log.info("%s %s is out of service", model.name, model.version)
            task = asyncio.create_task(model.retire(self._settings.shutdown_timeout_s))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _names(self) -> set[str]:
        try:
            return {name for _, name, _ in self._look()}
        except StartupError as error:
            raise LoadError(str(error)) from error
