"""Two classifiers' answers to the same texts, counted as they come: memory does not grow with the texts."""

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bulk.answers import Answer
from service.engine.tokenization import TextInput

NO_LABEL = "(none)"
"""What is told where a multi-label classifier gives a text no label."""

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True, order=True)
class Disagreement:
    """A text that got other labels; those sort first whose scores differ least."""

    difference: float
    """The largest difference of a label's score, of the labels that both tell."""
    row: int
    text: TextInput = field(compare=False)
    reference: Answer = field(compare=False)
    candidate: Answer = field(compare=False)


class Comparison:
    """Counts agreement and flips, and keeps the `worst` disagreements."""

    def __init__(self, worst: int) -> None:
        self._worst_kept = worst
        self._worst: list[Disagreement] = []
        self._differences = 0.0
        self.texts = 0
        self.agreed = 0
        self.largest_difference = 0.0
        self.flips: Counter[tuple[str, str]] = Counter()
        """(the reference's labels, the candidate's) -> texts."""
        self.given: Counter[str] = Counter()
        """The reference's labels -> texts."""
        self._by_label = {name: Counter[str]() for name in ("reference", "candidate", "lost", "gained")}

    def add(self, row: int, text: TextInput, reference: Answer, candidate: Answer) -> None:
        """Count one text."""
        before, after = _told(reference), _told(candidate)
        difference = score_difference(reference, candidate)
        self.texts += 1
        self.given[before] += 1
        had, has = set(reference.predicted), set(candidate.predicted)
        for name, labels in (("reference", had), ("candidate", has), ("lost", had - has), ("gained", has - had)):
            self._by_label[name].update(labels)
        self._differences += difference
        self.largest_difference = max(self.largest_difference, difference)
        if before == after:
            self.agreed += 1
            return
        self.flips[before, after] += 1
        found = Disagreement(difference, -row, text, reference, candidate)
        if len(self._worst) < self._worst_kept:
            heapq.heappush(self._worst, found)
        elif self._worst_kept:
            heapq.heappushpop(self._worst, found)

    @property
    def agreement(self) -> float:
        """The share of the texts that get the same labels."""
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

    def worst(self) -> list[Disagreement]:
        """Return the disagreements whose scores differ most, those first."""
        return sorted(self._worst, reverse=True)

    def by_label(self) -> dict[str, dict[str, int]]:
        """Return for each label how many texts have it of either, have it lost and have it gained."""
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
                {"reference": before, "candidate": after, "texts": count, "share": count / self.given[before]}
                for (before, after), count in self.flips.most_common()
            ],
            "labels": self.by_label(),
            "worst": [
                {
                    "row": -found.row,
                    **_texts(found.text),
                    "difference": found.difference,
                    "reference": _side(found.reference),
                    "candidate": _side(found.candidate),
                }
                for found in self.worst()
            ],
        }


def score_difference(one: Answer, other: Answer) -> float:
    """Return the largest difference of a score, of the labels that both tell; 0 where there is none."""
    shared = one.scores.keys() & other.scores.keys()
    return max((abs(one.scores[label] - other.scores[label]) for label in shared), default=0.0)


def _told(answer: Answer) -> str:
    return ", ".join(sorted(answer.predicted)) or NO_LABEL


def _side(answer: Answer) -> dict[str, Any]:
    return {"labels": sorted(answer.predicted), "scores": dict(answer.scores)}


def _texts(given: TextInput) -> dict[str, str]:
    return {"text": given} if isinstance(given, str) else {"text": given[0], "text_pair": given[1]}
