"""What a classifier says of one text, whoever asked it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """Labels that a text gets, and scores of as many labels as are told."""

    predicted: tuple[str, ...]
    """One label; in multi-label any number, in any order."""
    scores: Mapping[str, float]
