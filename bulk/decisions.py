"""From scores to what a bundle says of a text: its labels, and the columns that are added to a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from bundle import Manifest, Task
from service.engine.postprocess import FloatArray

_DEFAULT_THRESHOLD = 0.5  # docs/bundle-format.md: where a multi-label bundle states none


class Kind(StrEnum):
    """What a column holds: a str, a float, a bool, or a list of the first two."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    TEXTS = "texts"
    NUMBERS = "numbers"


@dataclass(frozen=True)
class Column:
    """A column that is added."""

    name: str
    kind: Kind


class Decider:
    """Reads thresholds and abstention from a bundle's manifest; scores are (N, C) float32."""

    def __init__(self, manifest: Manifest) -> None:
        self.labels = manifest.labels
        self.multi_label = manifest.task is Task.MULTI_LABEL
        thresholds = manifest.thresholds or {}
        self._thresholds = np.array([thresholds.get(label, _DEFAULT_THRESHOLD) for label in manifest.labels])
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


class Columns:
    """The columns that a file gets: names, kinds and values."""

    def __init__(self, manifest: Manifest, *, prefix: str = "", all_scores: bool = False) -> None:
        self._decider = Decider(manifest)
        self._all_scores = all_scores
        multi_label = self._decider.multi_label
        added = [("labels", Kind.TEXTS), ("scores", Kind.NUMBERS)] if multi_label else []
        added = added or [("label", Kind.TEXT), ("score", Kind.NUMBER)]
        if manifest.abstention is not None:
            added.append(("confident", Kind.FLAG))
        if all_scores:
            added += [(f"score_{label}", Kind.NUMBER) for label in manifest.labels]
        self.added = [Column(prefix + name, kind) for name, kind in added]
        self.labels = len(manifest.labels)

    def values(self, scores: FloatArray) -> list[Sequence[Any]]:
        """Return the values of each added column for rows of scores (N, C)."""
        labels, listed = self._decider.labels, scores.tolist()
        predicted = self._decider.predicted(scores)
        columns: list[Sequence[Any]]
        if self._decider.multi_label:
            columns = [
                [[labels[index] for index in row] for row in predicted],
                [[of_row[index] for index in row] for row, of_row in zip(predicted, listed, strict=True)],
            ]
        else:
            columns = [
                [labels[index] for (index,) in predicted],
                [of_row[index] for (index,), of_row in zip(predicted, listed, strict=True)],
            ]
        confident = self._decider.confident(scores)
        if confident is not None:
            columns.append(confident)
        if self._all_scores:
            columns += [[of_row[index] for of_row in listed] for index in range(len(labels))]
        return columns
