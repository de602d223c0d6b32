"""The models in service, and which one a request means."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from service.errors import DrainingError, NotReadyError, StartupError, UnknownModelError
from service.model import Model
from service.visits import VISIT


class Registry:
    """Models by name and version. Until `publish` every question is answered with NotReadyError."""

    def __init__(self, default_model: str | None = None) -> None:
        self._default = default_model
        self._models: dict[str, list[Model]] = {}  # each list sorted, the highest version first
        self._published = False
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and answers, and there is one."""
        models = self.all()
        return bool(models) and not self._draining and all(model.ready for model in models)

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        return self._draining

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
        for versions in by_name.values():
            versions.sort(key=_version_key, reverse=True)
        self._models = by_name
        self._published = True

    def replace(self, out: Model | None, new: Model | None) -> None:
        """Take one model out of service and another in, between two requests; `out` still answers who has chosen it."""
        models = [model for model in self.all() if model is not out] + ([new] if new is not None else [])
        self._models = {
            name: sorted((model for model in models if model.name == name), key=_version_key, reverse=True)
            for name in {model.name for model in models}
        }

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """Return the model that the request of the running task means, and keep it open until that is over.

        Without a name: the only model or the default; without a version: the highest. Raises UnknownModelError,
        NotReadyError or DrainingError, and ForbiddenError when the request's key does not allow the model.
        """
        visit = VISIT.get(None)
        versions = self.versions(name)
        model = _pick(versions, version)
        if visit is not None:
            visit.choose(model)
            visit.hold(model)
        return model

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """Return the model that a name and a version mean; like `get`, for a caller that looks after its request."""
        return _pick(self._named(name), version)

    def versions(self, name: str | None) -> list[Model]:
        """Return all versions of a model, the highest first; raises what `get` raises."""
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
        """Turn readiness false; what was accepted still gets its answer."""
        self._draining = True

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
        if self._draining:
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
