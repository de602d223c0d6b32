"""Two classifiers' answers to the same texts, counted as they come: memory does not grow with the texts."""

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from bulk.answers import NO_LABEL, Found, Tagged
from service.engine.tokenization import TextInput

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True, order=True)
class Disagreement:
    """A text that got other labels; those sort first whose scores differ least."""

    difference: float
    """The largest difference of a score."""
    row: int
    text: TextInput = field(compare=False)
    reference: Found = field(compare=False)
    candidate: Found = field(compare=False)


class Comparison:
    """Counts agreement and flips, and keeps the `worst` disagreements; both sides label texts, or both find entities.

    `counted` says what has labels that may flip: texts or entities.
    """

    def __init__(self, worst: int, counted: Literal["texts", "entities"] = "texts") -> None:
        self.counted: Literal["texts", "entities"] = counted
        self._worst_kept = worst
        self._worst: list[Disagreement] = []
        self._differences = 0.0
        self.texts = 0
        self.agreed = 0
        self.largest_difference = 0.0
        self.flips: Counter[tuple[str, str]] = Counter()
        """(the reference's labels, the candidate's) -> texts or entities."""
        self.given: Counter[str] = Counter()
        """The reference's labels -> texts or entities."""
        self._by_label = {name: Counter[str]() for name in ("reference", "candidate", "lost", "gained")}

    def add(self, row: int, text: TextInput, reference: Found, candidate: Found) -> None:
        """Count one text."""
        difference = score_difference(reference, candidate)
        self.texts += 1
        for before, after in reference.moves(candidate):  # type: ignore[arg-type] # both are of one kind
            self.given[before] += 1
            if before != after:
                self.flips[before, after] += 1
        had, has = reference.marks, candidate.marks
        for name, marks in (("reference", had), ("candidate", has), ("lost", had - has), ("gained", has - had)):
            self._by_label[name].update(label for _, label in marks)
        self._differences += difference
        self.largest_difference = max(self.largest_difference, difference)
        if had == has:
            self.agreed += 1
            return
        found = Disagreement(difference, -row, text, reference, candidate)
        if len(self._worst) < self._worst_kept:
            heapq.heappush(self._worst, found)
        elif self._worst_kept:
            heapq.heappushpop(self._worst, found)

    @property
    def agreement(self) -> float:
        """The share of the texts that get the same labels, or the same entities."""
        return self.agreed / self.texts

    @property
    def mean_difference(self) -> float:
        """The mean of each text's largest difference of a score."""
        return self._differences / self.texts

    def interval(self) -> tuple[float, float]:
        """Return the agreement's 95 % interval; Wilson 1927."""
        share, n = self.agreement, self.texts
        center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        return max(0.0, center - half), min(1.0, center + half)

    def share(self, before: str, count: int) -> float | None:
        """Return what share `count` is of all that had the reference's label; None of what it did not find."""
        found = self.counted == "texts" or before != NO_LABEL
        return count / self.given[before] if found else None

    def worst(self) -> list[Disagreement]:
        """Return the disagreements whose scores differ most, those first."""
        return sorted(self._worst, reverse=True)

    def by_label(self) -> dict[str, dict[str, int]]:
        """Return for each label how many texts or entities have it of either, have it lost and have it gained."""
        labels = sorted({label for counts in self._by_label.values() for label in counts})
        return {label: {name: counts[label] for name, counts in self._by_label.items()} for label in labels}

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        low, high = self.interval()
        return {
            "texts": self.texts,
            "agreed": self.agreed,
            "agreement": {"value": self.agreement, "low": low, "high": high},
            "score_difference": {"mean": self.mean_difference, "largest": self.largest_difference},
            "flips": [
                {"reference": before, "candidate": after, self.counted: count, "share": self.share(before, count)}
                for (before, after), count in self.flips.most_common()
            ],
            "labels": self.by_label(),
            "worst": [
                {
                    "row": -found.row,
                    **_texts(found.text),
                    "difference": found.difference,
                    "reference": found.reference.as_json(),
                    "candidate": found.candidate.as_json(),
                }
                for found in self.worst()
            ],
        }


def score_difference(one: Found, other: Found) -> float:
    """Return the largest difference of a score; 0 where there is none.

    Of the labels that both tell; an entity that one of the two does not find has the score 0 there.
    """
    before: dict[Any, float] = dict(one.scores)
    after: dict[Any, float] = dict(other.scores)
    told = before.keys() | after.keys() if isinstance(one, Tagged) else before.keys() & after.keys()
    return max((abs(before.get(mark, 0.0) - after.get(mark, 0.0)) for mark in told), default=0.0)


def _texts(given: TextInput) -> dict[str, str]:
    return {"text": given} if isinstance(given, str) else {"text": given[0], "text_pair": given[1]}
