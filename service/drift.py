"""What a model reads and answers, counted so that a change of either can be seen."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest, Task
from bundle.manifest import Activation
from service.engine.decisions import Decider
from service.engine.tokenization import Encoding
from service.instruments import Gauge
from service.metrics import Metrics

_NONE = "(none)"  # multi-label: no label reached its threshold


class Drift:
    """Counts for one model; use it on the event loop. `unknown_id` is the token of what the vocabulary lacks."""

    def __init__(self, metrics: Metrics, manifest: Manifest, decider: Decider, unknown_id: int | None) -> None:
        of = (manifest.name, manifest.version)
        self._decider = decider
        self._tags = manifest.task is Task.TOKEN_CLASSIFICATION
        self._unknown_id = unknown_id
        self._shown: list[tuple[Gauge, Callable[[], float]]] = []
        self._tokens, self._unknown = metrics.tokens.labels(*of), metrics.unknown_tokens.labels(*of)
        if self._tags:
            return
        self._labels = [metrics.predictions.labels(*of, label) for label in manifest.labels]
        self._none = metrics.predictions.labels(*of, _NONE) if decider.multi_label else None
        self._confidence = metrics.confidence.labels(*of)
        softmax = manifest.activation is Activation.SOFTMAX and len(manifest.labels) > 1
        self._entropy = metrics.entropy.labels(*of) if softmax else None
        for label, share in (manifest.reference_statistics or {}).get("label_share", {}).items():
            gauge, read = metrics.reference_label_share.labels(*of, label), partial(float, share)
            gauge.set_function(read)
            self._shown.append((gauge, read))

    def forget(self) -> None:
        """Show no reference any more, unless the model's next version has its own."""
        for gauge, read in self._shown:
            gauge.forget(read)

    def observe(self, outputs: Sequence[NDArray[np.float32]], encodings: Sequence[Encoding]) -> None:
        """Count what a batch was and gave; an output is (2, C), scores and logits, or in tagging (T, C)."""
        self._tokens.inc(sum(len(encoding.ids) for encoding in encodings))
        if self._unknown_id is not None:
            self._unknown.inc(sum(encoding.ids.count(self._unknown_id) for encoding in encodings))
        if self._tags:
            return
        scores = np.stack(outputs)[:, 0]  # (B, C)
        for given in self._decider.predicted(scores):
            for label in given:
                self._labels[label].inc()
            if not given and self._none is not None:
                self._none.inc()
        for highest in scores.max(axis=1).tolist():
            self._confidence.observe(highest)
        if self._entropy is not None:
            for entropy in normalized_entropy(scores).tolist():
                self._entropy.observe(entropy)


def normalized_entropy(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy (B,) of distributions (B, C), 0 when one label is certain and 1 when all are alike."""
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    entropy: NDArray[np.float32] = -(scores * logs).sum(axis=1) / math.log(scores.shape[1])
    return entropy
