"""What a classifier says of one text, whoever asked it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

NO_LABEL = "(none)"
"""What is told where a multi-label classifier gives a text no label, and where one of the two finds no entity."""

Place = tuple[int, int]
"""The first character of an entity, and the character after its last; (0, 0) stands for the whole text."""

_TEXT: Place = (0, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """Labels that a text gets, and scores of as many labels as are told."""

    predicted: tuple[str, ...]
    """One label; in multi-label any number, in any order."""
    scores: Mapping[str, float]

    @property
    def marks(self) -> set[tuple[Place, str]]:
        """What the text gets, and where."""
        return {(_TEXT, label) for label in self.predicted}

    @property
    def labels(self) -> set[str]:
        """All labels that are told."""
        return {*self.scores, *self.predicted}

    def moves(self, other: Self) -> Iterator[tuple[str, str]]:
        """Yield this answer's labels and the other's, with commas between several."""
        yield self.told(), other.told()

    def told(self) -> str:
        """Return the labels in words."""
        return ", ".join(sorted(self.predicted)) or NO_LABEL

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"labels": sorted(self.predicted), "scores": dict(self.scores)}


@dataclass(frozen=True, slots=True)
class Tagged:
    """The entities that are found in a text."""

    scores: Mapping[tuple[Place, str], float]
    """Place and label of each entity -> its score."""

    @property
    def marks(self) -> set[tuple[Place, str]]:
        """What the text gets, and where."""
        return set(self.scores)

    @property
    def labels(self) -> set[str]:
        """All labels that are told."""
        return {label for _, label in self.scores}

    def moves(self, other: Self) -> Iterator[tuple[str, str]]:
        """Yield for every place where one of the two finds an entity its label here and there."""
        sides = self.scores, other.scores
        for place in sorted({place for found in sides for place, _ in found}):
            before, after = ({label for where, label in found if where == place} for found in sides)
            yield ", ".join(sorted(before)) or NO_LABEL, ", ".join(sorted(after)) or NO_LABEL

    def told(self) -> str:
        """Return the entities in words, in the order of the text."""
        return ", ".join(f"{label} {start}–{end}" for (start, end), label in sorted(self.scores)) or NO_LABEL

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "entities": [
                {"entity": label, "start": start, "end": end, "score": score}
                for ((start, end), label), score in sorted(self.scores.items())
            ]
        }


Found = Answer | Tagged
