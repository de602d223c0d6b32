"""The columns that are added to a file: what a bundle says of each row."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bundle import Manifest
from service.engine.decisions import Decider
from service.engine.postprocess import FloatArray


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
