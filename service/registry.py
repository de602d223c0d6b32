"""The models in service: how one is loaded and proved, and which one a request means."""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import LAYOUT, Bundle, BundleError, Manifest, Task, Variant, open_bundle
from service.engine.batcher import Batcher
from service.engine.call_cost import padding_worth_a_call
from service.engine.decisions import Decider
from service.engine.errors import EngineError
from service.engine.postprocess import activate
from service.engine.queue import BatchQueue
from service.engine.request import Work
from service.engine.session import Session
from service.engine.session_options import CPU
from service.engine.tagging import Tagger
from service.engine.tokenization import Encoding, Tokenizer, pad
from service.engine.worker import Infer
from service.errors import DrainingError, NotReadyError, StartupError, UnknownModelError
from service.golden import check_golden
from service.metrics import Metrics
from service.sessions import calls_side_by_side, load_session, make_session, warm_up_shapes
from service.settings import Settings
from service.variants import Choice

log = logging.getLogger(__name__)


class Model:
    """A bundle with one of its variants in memory. `start` gives it a batcher and makes it ready."""

    def __init__(self, bundle: Bundle, variant: Variant, session: Session, tokenizer: Tokenizer) -> None:
        self.bundle = bundle
        self.variant = variant
        self.session = session
        self.tokenizer = tokenizer
        self.decider = Decider(bundle.manifest)
        self.tagger = Tagger(tokenizer, bundle.manifest.labels, bundle.manifest.activation, bundle.manifest.temperature)
        self.draining = False
        self._max_padding_tokens = 0  # that one entry may add to a batch; found in `warm_up`
        self._batcher: Batcher | None = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def tags(self) -> bool:
        """Whether it gives tags to words, not labels to texts."""
        return self.manifest.task is Task.TOKEN_CLASSIFICATION

    @property
    def ready(self) -> bool:
        """Whether requests are answered: started, its worker alive and not draining."""
        return self._batcher is not None and self._batcher.healthy and not self.draining

    @property
    def batcher(self) -> Batcher:
        """The running batcher; raises NotReadyError before `start`."""
        if self._batcher is None:
            raise NotReadyError(f"model {self.manifest.name} is not started")
        return self._batcher

    def infer(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Return what is known of each text of a batch, float32; may be called from several threads.

        (B, 2, C): calibrated scores and logits. In token classification (B, T, C): each token's logits, padding
        included.
        """
        return self._infer_in(self.session, encodings)

    def _infer_in(self, session: Session, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        logits = session.run(pad(encodings, self.tokenizer.pad_id))
        if self.tags:
            return logits
        outputs = np.empty((len(logits), 2, logits.shape[1]), dtype=np.float32)
        outputs[:, 0] = activate(logits, self.manifest.activation, self.manifest.temperature)
        outputs[:, 1] = logits
        return outputs

    def warm_up(self, settings: Settings) -> None:
        """Run shapes once, so that no request pays for a first time: on CPU a few, the largest among them, else all.

        Finds out, too, how much padding is worth a call.
        """
        for rows, length in warm_up_shapes(self.session.grid, settings, self.manifest.max_length):
            self._infer_blank(rows, length)
        self._max_padding_tokens = self._find_max_padding(settings)
        log.info("%s: an entry may add %d tokens of padding to a batch", self.manifest.name, self._max_padding_tokens)

    def _find_max_padding(self, settings: Settings) -> int:
        """Time calls, unless the settings say it; the session must be warm."""
        if settings.max_padding_tokens is not None:
            return settings.max_padding_tokens
        if self.session.provider == CPU:
            return padding_worth_a_call(partial(self._infer_blank, 1), self.manifest.max_length)
        return settings.max_batch_tokens  # a call is worth thousands of tokens there

    def _infer_blank(self, rows: int, length: int) -> None:
        self.infer([Encoding([self.tokenizer.pad_id] * length, [0] * length, truncated=False)] * rows)

    def start(self, settings: Settings, metrics: Metrics) -> None:
        """Start the batcher on the running event loop."""
        name, version = self.manifest.name, self.manifest.version
        queue: BatchQueue[Work] = BatchQueue(
            capacity_entries=settings.queue_capacity,
            capacity_tokens=settings.queue_capacity_tokens,
            max_batch_size=settings.max_batch_size,
            max_batch_tokens=settings.max_batch_tokens,
            max_padding_tokens=self._max_padding_tokens,
            bulk_aging_s=settings.bulk_aging_ms / 1000,
            max_delay_s=settings.max_batch_delay_ms / 1000,
        )

        def make_infer() -> Infer:
            choice = Choice(self.variant, self.session.provider)
            session = make_session(self.bundle, choice, self.tokenizer.pad_id, settings)
            return lambda encodings: self._infer_in(session, encodings)

        self._batcher = Batcher(
            queue,
            self.tokenizer.encode,
            self.infer,
            make_infer=make_infer,
            sessions=calls_side_by_side(settings, self.session.provider),
            hung_session_s=settings.hung_session_s,
            metrics=metrics.engine(name, version),
        )
        metrics.model_ready.labels(name, version, self.variant.name).set_function(lambda: float(self.ready))

    async def close(self, timeout_s: float) -> None:
        """Answer what was accepted within `timeout_s` seconds, fail the rest."""
        self.draining = True
        if self._batcher is not None:
            await self._batcher.close(timeout_s)


def load_model(path: Path, settings: Settings) -> Model:
    """Verify the bundle in `path`, load the variant that fits this machine, warm it up and check its golden scores.

    Raises StartupError, which names the bundle and the first thing wrong with it. Takes seconds: not for an event
    loop's thread.
    """
    try:
        bundle = open_bundle(path)
        tags = bundle.manifest.task is Task.TOKEN_CLASSIFICATION
        tokenizer = Tokenizer(bundle.path(LAYOUT.tokenizer), bundle.manifest.max_length, offsets=tags)
        make = partial(make_session, bundle, pad_id=tokenizer.pad_id, settings=settings)
        choice, session = load_session(bundle.manifest, settings.variant, settings.provider, make)
        model = Model(bundle, choice.variant, session, tokenizer)
        model.warm_up(settings)
        report = check_golden(bundle, choice.variant.name, session, tokenizer)
    except (BundleError, EngineError, OSError) as error:
        raise StartupError(f"cannot load bundle {path}: {type(error).__name__}: {error}") from error
    log.info(
        "loaded %s %s, variant %s on %s; %d golden inputs, largest difference %.2g (tolerance %g)",
        bundle.manifest.name,
        bundle.manifest.version,
        choice.variant.name,
        choice.provider,
        report.inputs,
        report.largest_difference,
        report.tolerance,
    )
    if choice.variant.forced:
        log.warning(
            "%s %s, variant %s did not pass its gate and is served by order: %s",
            bundle.manifest.name,
            bundle.manifest.version,
            choice.variant.name,
            choice.variant.gate_reason,
        )
    return model


class Registry:
    """Models by name and version. Until `publish` every question is answered with NotReadyError."""

    def __init__(self, default_model: str | None = None) -> None:
        self._default = default_model
        self._models: dict[str, list[Model]] = {}  # each list sorted, the highest version first
        self._published = False
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and answers."""
        return self._published and not self._draining and all(model.ready for model in self._all())

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        return self._draining

    def publish(self, models: Iterable[Model]) -> None:
        """Make all models reachable at once.

        Raises StartupError when two bundles have the same name and version, or the default model is not among them.
        """
        by_name: dict[str, list[Model]] = {}
        for model in models:
            name, version = model.manifest.name, model.manifest.version
            for other in by_name.setdefault(name, []):
                if other.manifest.version == version:
                    raise StartupError(
                        f"{model.bundle.folder} and {other.bundle.folder} are both {name} version {version}; "
                        "serve one of them, or give one another name or version"
                    )
            by_name[name].append(model)
        if self._default is not None and self._default not in by_name:
            raise StartupError(f"default_model {self._default!r} is not among the loaded: {', '.join(sorted(by_name))}")
        for versions in by_name.values():
            versions.sort(key=lambda model: natural_key(model.manifest.version), reverse=True)
        self._models = by_name
        self._published = True

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """Return the model a request means.

        Without a name: the only model or the default; without a version: the highest. Raises UnknownModelError,
        NotReadyError or DrainingError.
        """
        self._check_published()
        if name is None:
            name = self._default or self._only()
        versions = self._models.get(name)
        if versions is None:
            raise UnknownModelError(f"no model {name[:64]!r}; there are: {', '.join(sorted(self._models))}")
        if version is None:
            return versions[0]
        for model in versions:
            if model.manifest.version == version:
                return model
        known = ", ".join(model.manifest.version for model in versions)
        raise UnknownModelError(f"no version {version[:64]!r} of model {name}; there are: {known}")

    def versions(self, name: str) -> list[Model]:
        """Return all versions of a model, the highest first; raises what `get` raises."""
        return self._models[self.get(name).manifest.name]

    def names(self) -> list[str]:
        """Return the names of all models, sorted; raises NotReadyError or DrainingError."""
        self._check_published()
        return sorted(self._models)

    def begin_draining(self) -> None:
        """Turn readiness false; what was accepted still gets its answer."""
        self._draining = True

    async def close(self, timeout_s: float) -> None:
        """Drain all models side by side: answer what was accepted within `timeout_s` seconds, fail the rest."""
        self.begin_draining()
        await asyncio.gather(*(model.close(timeout_s) for model in self._all()))

    def _all(self) -> list[Model]:
        return [model for versions in self._models.values() for model in versions]

    def _only(self) -> str:
        if len(self._models) == 1:
            return next(iter(self._models))
        raise UnknownModelError(
            f"several models are loaded ({', '.join(sorted(self._models))}) and none is the default; "
            "use /v1/models/{model}/classify, or set LIMBECK_DEFAULT_MODEL"
        )

    def _check_published(self) -> None:
        if self._published:
            return
        if self._draining:
            raise DrainingError("the service is shutting down")
        raise NotReadyError("models are still loading")


def natural_key(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which 1.10 is higher than 1.9, and 2 higher than beta."""
    parts = re.findall(r"\d+|[^\d._-]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
