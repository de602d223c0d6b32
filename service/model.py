"""A model in service: how one is loaded and proved, how it computes, how it goes."""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import LAYOUT, Bundle, BundleError, Manifest, Task, Variant, open_bundle
from service.drift import Drift
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
from service.errors import NotReadyError, StartupError
from service.folders import Identity, identity_of
from service.golden import check_golden
from service.instruments import Gauge
from service.metrics import Metrics
from service.sessions import calls_side_by_side, load_session, make_session, warm_up_shapes
from service.settings import Settings
from service.variants import Choice

log = logging.getLogger(__name__)

_LOOK_S = 0.05


class Model:
    """A bundle with one of its variants in memory. `start` gives it a batcher and makes it ready."""

    def __init__(self, bundle: Bundle, variant: Variant, session: Session, tokenizer: Tokenizer) -> None:
        self.bundle = bundle
        self.variant = variant
        self.session = session
        self.tokenizer = tokenizer
        self.decider = Decider(bundle.manifest)
        self.tagger = Tagger(tokenizer, bundle.manifest.labels, bundle.manifest.activation, bundle.manifest.temperature)
        self.name, self.version = bundle.manifest.name, bundle.manifest.version
        self.identity: Identity = ()  # of its folder, when it was loaded
        self.draining = False
        self.visitors = 0  # requests that have chosen it and may not have asked it yet
        self._max_padding_tokens = 0  # that one entry may add to a batch; found in `warm_up`
        self._batcher: Batcher | None = None
        self._shown: Gauge | None = None
        self._drift: Drift | None = None

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

        self._drift = Drift(metrics, self.manifest, self.decider, self.tokenizer.unknown_id)
        self._batcher = Batcher(
            queue,
            self.tokenizer.encode,
            self.infer,
            make_infer=make_infer,
            sessions=calls_side_by_side(settings, self.session.provider),
            hung_session_s=settings.hung_session_s,
            metrics=metrics.engine(name, version),
            observe=self._drift.observe,
        )
        metrics.load_failures.labels(name)  # shown from now on: an increase from nothing is none to Prometheus
        self._shown = metrics.model_ready.labels(name, version, self.variant.name)
        self._shown.set_function(self._readiness)

    def _readiness(self) -> float:
        return float(self.ready)

    async def retire(self, timeout_s: float) -> None:
        """Go out of service: let those who have chosen it ask, and answer them, within `timeout_s` seconds each."""
        if self._shown is not None:
            self._shown.forget(self._readiness)
        if self._drift is not None:
            self._drift.forget()
        end_s = time.monotonic() + timeout_s
        while self.visitors and time.monotonic() < end_s:
            await asyncio.sleep(_LOOK_S)
        await self.close(timeout_s)
        # Batcher and model refer to each other; what is large must not wait for Python's collector to see that.
        self._batcher = None
        del self.session, self.tokenizer, self.tagger

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
        identity = identity_of(path)
        bundle = open_bundle(path)
        tags = bundle.manifest.task is Task.TOKEN_CLASSIFICATION
        tokenizer = Tokenizer(bundle.path(LAYOUT.tokenizer), bundle.manifest.max_length, offsets=tags)
        make = partial(make_session, bundle, pad_id=tokenizer.pad_id, settings=settings)
        choice, session = load_session(bundle.manifest, settings.variant, settings.provider, make)
        model = Model(bundle, choice.variant, session, tokenizer)
        model.identity = identity
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
