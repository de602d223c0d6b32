"""The models in service, and which one a request means."""

import asyncio
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from service.errors import DrainingError, NotReadyError, StartupError, UnknownModelError
from service.model import Model
from service.trial import Trial
from service.visits import VISIT


class Registry:
    """Models by name and version. Until `publish` every question is answered with NotReadyError."""

    def __init__(self, default_model: str | None = None) -> None:
        self._default = default_model
        # each list sorted: first what answers requests without a version, then the highest
        self._models: dict[str, list[Model]] = {}
        self._trials: Mapping[str, Trial] = {}
        self._running: dict[str, Trial] = {}  # those that choose
        self._published = False
        self._draining_since_s = math.inf  # on the clock time.monotonic

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and answers, and there is one; a candidate on trial need not."""
        models = self.all()
        needed = [model for model in models if not self._spared(model)]
        return bool(models) and not self.draining and all(model.ready for model in needed)

    @staticmethod
    def highest(versions: Sequence[Model]) -> Model:
        """Return the highest version, which answers where there is no rollout."""
        return max(versions, key=_version_key)

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        return self._draining_since_s < math.inf

    def publish(self, models: Iterable[Model], *, some: bool = False) -> None:
        """Make all models reachable at once; `some` says that others are kept out of service.

        Raises StartupError when two bundles have the same name and version, or the default model is not among them.
        """
        by_name: dict[str, list[Model]] = {}
        for model in models:
            for other in by_name.setdefault(model.name, []):
                if other.version == model.version:
                    raise StartupError(same_model(model.bundle.folder, other))
            by_name[model.name].append(model)
        if self._default is not None and self._default not in by_name and not some:
            raise StartupError(f"default_model {self._default!r} is not among the loaded: {', '.join(sorted(by_name))}")
        self._arrange(model for versions in by_name.values() for model in versions)
        self._published = True

    def replace(self, out: Model | None, new: Model | None) -> None:
        """Take one model out of service and another in, between two requests; `out` still answers who has chosen it."""
        models = [model for model in self.all() if model is not out] + ([new] if new is not None else [])
        self._arrange(models)

    def follow(self, trials: Mapping[str, Trial]) -> None:
        """Let rollouts, by the names of models, say which version answers from the next request on."""
        self._trials = trials
        self._arrange(self.all())

    def _arrange(self, models: Iterable[Model]) -> None:
        by_name: dict[str, list[Model]] = {}
        for model in models:
            by_name.setdefault(model.name, []).append(model)
        for name, versions in by_name.items():
            versions.sort(key=_version_key, reverse=True)
            if name in self._trials:
                by_name[name] = self._trials[name].arrange(versions)
        for name in self._trials.keys() - by_name.keys():
            self._trials[name].arrange(())
        self._models = by_name
        self._running = {name: trial for name, trial in self._trials.items() if trial.running}

    def _spared(self, model: Model) -> bool:
        trial = self._trials.get(model.name)
        return trial is not None and model is trial.candidate and trial.spared

    def get(self, name: str | None = None, version: str | None = None, *, asks: bool = True) -> Model:
        """Return the model that the request of the running task means, and keep it open until that is over.

        Without a name: the only model or the default; without a version: the one that a rollout chooses, or the
        highest. A request that only wants to know something (not `asks`) gets the one that answers the others, too.
        Raises UnknownModelError, NotReadyError or DrainingError, and ForbiddenError when the request's key does not
        allow the model.
        """
        visit = VISIT.get(None)
        if visit is not None:
            self.check_open(visit.arrived_s)
        versions = self.versions(name)
        model = self._choose(versions, version) if asks else _pick(versions, version)
        if visit is not None:
            visit.choose(model)
            visit.hold(model)
            visit.trial = self.trial(model, version) if asks else None
        return model

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """Return the model that a name and a version mean; like `get`, for a caller that looks after its request."""
        return self._choose(self._named(name), version)

    def trial(self, model: Model, version: str | None) -> Trial | None:
        """Return the trial that a request which was given `model` takes part in, by the version that it named."""
        return self._running.get(model.name) if version is None and self._running else None

    def _choose(self, versions: list[Model], version: str | None) -> Model:
        if version is None and self._running and (trial := self._running.get(versions[0].name)) is not None:
            return trial.choose()
        return _pick(versions, version)

    def versions(self, name: str | None) -> list[Model]:
        """Return all versions of a model: the one that answers where none is named, then the highest first.

        Raises what `get` raises.
        """
        versions = self._named(name)
        if (visit := VISIT.get(None)) is not None:
            visit.check(versions[0].name)
        return versions

    def _named(self, name: str | None) -> list[Model]:
        self._check_published()
        if name is None:
            name = self._default or self._only()
        versions = self._models.get(name)
        if versions is None:
            raise UnknownModelError(f"no model {name[:64]!r}; there are: {', '.join(self.names()) or 'none'}")
        return versions

    def names(self) -> list[str]:
        """Return the names of all models that the request's key allows, sorted; raises what `get` raises."""
        self._check_published()
        visit = VISIT.get(None)
        return sorted(name for name in self._models if visit is None or visit.may_ask(name))

    def begin_draining(self) -> None:
        """Turn readiness false; what has come before still gets its answer."""
        self._draining_since_s = min(self._draining_since_s, time.monotonic())

    def check_open(self, arrived_s: float) -> None:
        """Raise DrainingError for a request that came after draining began; `arrived_s` is of `time.monotonic`."""
        if arrived_s > self._draining_since_s:
            raise DrainingError("the service is shutting down")

    async def close(self, timeout_s: float) -> None:
        """Drain all models side by side: answer what was accepted within `timeout_s` seconds, fail the rest."""
        self.begin_draining()
        await asyncio.gather(*(model.close(timeout_s) for model in self.all()))

    def all(self) -> list[Model]:
        """Return every model in service."""
        return [model for versions in self._models.values() for model in versions]

    def _only(self) -> str:
        if len(self._models) == 1:
            return next(iter(self._models))
        if not self._models:
            raise UnknownModelError("no model is loaded")
        raise UnknownModelError(
            f"several models are loaded ({', '.join(self.names())}) and none is the default; "
            "use /v1/models/{model}/classify, or set LIMBECK_DEFAULT_MODEL"
        )

    def _check_published(self) -> None:
        if self._published:
            return
        if self.draining:
            raise DrainingError("the service is shutting down")
        raise NotReadyError("models are still loading")


def same_model(folder: Path, other: Model) -> str:
    """Say that a bundle is another one's model."""
    return (
        f"{folder} and {other.bundle.folder} are both {other.name} version {other.version}; "
        "serve one of them, or give one another name or version"
    )


def _pick(versions: list[Model], version: str | None) -> Model:
    if version is None:
        return versions[0]
    for model in versions:
        if model.version == version:
            return model
    known = ", ".join(model.version for model in versions)
    raise UnknownModelError(f"no version {version[:64]!r} of model {versions[0].name}; there are: {known}")


def natural_key(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which 1.10 is higher than 1.9, and 2 higher than beta."""
    parts = re.findall(r"\d+|[^\d._-]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _version_key(model: Model) -> list[tuple[int, int, str]]:
    return natural_key(model.version)
