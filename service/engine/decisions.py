"""From scores to decisions: which labels a bundle gives a text, and whether it is sure."""

import numpy as np

from bundle import Manifest, Task
from service.engine.postprocess import FloatArray

_DEFAULT_THRESHOLD = 0.5  # docs/bundle-format.md: where a multi-label bundle states none


class Decider:
    """Reads thresholds and abstention from a bundle's manifest; scores are (N, C) float32."""

    def __init__(self, manifest: Manifest) -> None:
        self.labels = manifest.labels
        self.multi_label = manifest.task is Task.MULTI_LABEL
        thresholds = manifest.thresholds or {}
        self.thresholds = {label: thresholds.get(label, _DEFAULT_THRESHOLD) for label in manifest.labels}
        self._thresholds = np.array(list(self.thresholds.values()))
        self._abstention = None if manifest.abstention is None else manifest.abstention["threshold"]

    def predicted(self, scores: FloatArray) -> list[list[int]]:
        """Return the ids of every row's labels, highest score first.

        One label a text; in multi-label every label whose score is at least its threshold, perhaps none.
        """
        if not self.multi_label:
            return [[index] for index in scores.argmax(axis=1).tolist()]
        given = scores >= self._thresholds
        order = np.argsort(-scores, axis=1, kind="stable")
        return [
            [index for index in row if chosen[index]]
            for row, chosen in zip(order.tolist(), given.tolist(), strict=True)
        ]

    def confident(self, scores: FloatArray) -> list[bool] | None:
        """Say for every row whether its highest score reaches the bundle's abstention threshold; None without one."""
        if self._abstention is None:
            return None
        sure: list[bool] = (scores.max(axis=1) >= self._abstention).tolist()
        return sure
