"""What the report shows beyond the metrics: what is taken for what, and the worst mistakes.

All of it comes from answers that were given already; nothing is run for it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bundle.manifest import Calibration
from compress.examples import Example
from compress.measure import Answers, Ruler, Subject, calibration
from compress.rows import UNLABELED, IdArray
from compress.stage import write_atomic
from compress.tags import spans
from compress.tasks import TokenClassification
from service.engine.postprocess import activate

EVIDENCE = "evidence.json"
MOST_CASES = 20
"""In each list."""
LONGEST = 400
"""Characters of a text that are kept."""
NO_ENTITY = "no entity"

BoolArray = NDArray[np.bool_]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Confusion(_Kept):
    """What is taken for what; of token classification entities with the same first and last word."""

    names: tuple[str, ...]
    """The labels; or the entity types, with NO_ENTITY as the last."""
    cells: tuple[tuple[int, int, int], ...]
    """(true, predicted, how often), by the places of both in `names`; those that never occur are left out."""


class LabelCounts(_Kept):
    """Multi-label: how often one label was given, and should have been."""

    both: int
    """Given, and true."""
    given_only: int
    true_only: int
    neither: int


class Case(_Kept):
    """One decision about a text."""

    text: str
    text_pair: str | None
    about: str | None
    """The word or the label that it is about; None where it is about the text."""
    true: str | None
    """None where it is not known."""
    predicted: str
    score: float
    """Of the prediction; of several labels, that of `about`."""
    teacher: str
    """What the teacher says."""


class Cases(_Kept):
    """The surest of some decisions, at most one a text."""

    found: int
    """How many decisions there are in all."""
    decisions: int
    """Of how many."""
    shown: tuple[Case, ...]


class Evidence(_Kept):
    """Of one model; what needs true labels is None without."""

    confusion: Confusion | None
    """None of several labels."""
    label_counts: dict[str, LabelCounts] | None
    """Of several labels only."""
    uncalibrated: Calibration | None
    """As it would be without the temperature; None where there is none."""
    mistakes: Cases | None
    disagreements: Cases
    """With the teacher."""


def gather(ruler: Ruler, subject: Subject, own: Answers, teacher: Answers, examples: Sequence[Example]) -> Evidence:
    """Return what a model's answers and its teacher's show about the same examples."""
    spec, temperature = ruler.spec, subject.fitted.temperature
    cases = _Table(ruler, own, teacher, examples, activate(own.rows, spec.activation, temperature))
    labeled = own.counts is not None
    return Evidence(
        confusion=_confusion(ruler, own, examples) if labeled and not spec.multi_label else None,
        label_counts=_label_counts(own) if spec.multi_label else None,
        uncalibrated=calibration(spec, own, 1.0) if labeled and temperature != 1 else None,
        mistakes=cases.mistakes() if labeled else None,
        disagreements=cases.disagreements(),
    )


def write_evidence(folder: Path, found: Mapping[str, Evidence]) -> None:
    """Write what was gathered of each model (stage of the metrics -> evidence) to EVIDENCE."""
    write_atomic(folder / EVIDENCE, json.dumps({stage: one.model_dump(mode="json") for stage, one in found.items()}))


def read_evidence(folder: Path) -> dict[str, Evidence]:
    """Return what `write_evidence` wrote."""
    found = json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))
    return {stage: Evidence.model_validate(one) for stage, one in found.items()}


def _confusion(ruler: Ruler, own: Answers, examples: Sequence[Example]) -> Confusion:
    spec = ruler.spec
    if not isinstance(spec, TokenClassification):
        pairs = zip(own.encoded.targets.tolist(), own.decisions.tolist(), strict=True)
        return Confusion(names=tuple(ruler.labels), cells=_cells(Counter(pairs)))
    seen: Counter[tuple[str, str]] = Counter()
    for example, found in zip(
        examples, spec.tag_lists(examples, own.encoded, own.decisions, ruler.labels), strict=True
    ):
        true, given = (
            {(begin, end): kind for kind, begin, end in spans(list(t))} for t in (example.target or (), found)
        )
        seen.update((true.get(at, NO_ENTITY), given.get(at, NO_ENTITY)) for at in true.keys() | given.keys())
    types = sorted({name for pair in seen for name in pair} - {NO_ENTITY})
    places = {name: place for place, name in enumerate([*types, NO_ENTITY])}
    counted = Counter({(places[true], places[given]): count for (true, given), count in seen.items()})
    return Confusion(names=tuple(places), cells=_cells(counted))


def _cells(counted: Counter[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((true, given, count) for (true, given), count in sorted(counted.items()))


def _label_counts(own: Answers) -> dict[str, LabelCounts] | None:
    if own.counts is None:
        return None
    counts, texts = own.counts, len(own.counts)
    sums = zip(
        counts.names, *(array.sum(axis=0) for array in (counts.hits, counts.predicted, counts.support)), strict=True
    )
    return {
        name: LabelCounts(
            both=int(hits),
            given_only=int(given - hits),
            true_only=int(true - hits),
            neither=int(texts - given - true + hits),
        )
        for name, hits, given, true in sums
    }


class _Table:
    """The decisions of a model as (R, K): K is 1, or the number of labels where a row may have several."""

    def __init__(
        self, ruler: Ruler, own: Answers, teacher: Answers, examples: Sequence[Example], scores: NDArray[Any]
    ) -> None:
        self.ruler, self.own, self.examples, self.scores = ruler, own, examples, scores
        encoded = own.encoded
        self.texts = encoded.texts
        multi = ruler.spec.multi_label
        decided = own.decisions
        chosen = scores if multi else np.take_along_axis(scores, decided[:, None], axis=1)
        self.sure = np.where(decided, chosen, 1 - chosen) if multi else chosen
        self.teacher = teacher.decisions if encoded.words is None else _aligned(own, teacher)

    def mistakes(self) -> Cases:
        """Return where the model is wrong."""
        targets, decided = self.own.encoded.targets, self.own.decisions
        if self.ruler.spec.multi_label:
            return self._cases(decided != (targets == 1))
        return self._cases(((decided != targets) & (targets != UNLABELED))[:, None])

    def disagreements(self) -> Cases:
        """Return where the model and its teacher differ; words that the teacher cut are left out."""
        if self.ruler.spec.multi_label:
            return self._cases(self.own.decisions != self.teacher)
        return self._cases(((self.own.decisions != self.teacher) & (self.teacher != UNLABELED))[:, None])

    def _cases(self, wrong: BoolArray) -> Cases:
        """Return the surest decisions of those that `wrong` (R, K) marks."""
        sure = np.where(wrong, self.sure, -1.0)
        best, shown, seen = sure.max(axis=1), list[Case](), set[int]()
        for row in np.argsort(-best, kind="stable").tolist():
            if best[row] < 0 or len(shown) == MOST_CASES:
                break
            if int(self.texts[row]) not in seen:
                seen.add(int(self.texts[row]))
                shown.append(self._case(row, int(sure[row].argmax())))
        return Cases(found=int(wrong.any(axis=1).sum()), decisions=len(wrong), shown=tuple(shown))

    def _case(self, row: int, column: int) -> Case:
        example, encoded, labels = self.examples[int(self.texts[row])], self.own.encoded, self.ruler.labels
        about, place = None, int(np.ravel(self.own.decisions[row])[0])
        if self.ruler.spec.multi_label:
            about, place = labels[column], column
        elif encoded.words is not None:
            about = (example.words or ())[int(encoded.words[row])]
        known = example.target is not None
        return Case(
            text=_short(example.text),
            text_pair=None if example.text_pair is None else _short(example.text_pair),
            about=None if about is None else _short(about),
            true=self._named(encoded.targets[row]) if known else None,
            predicted=self._named(self.own.decisions[row]),
            score=float(self.scores[row, place]),
            teacher=self._named(self.teacher[row]),
        )

    def _named(self, decision: Any) -> str:
        labels = self.ruler.labels
        if self.ruler.spec.multi_label:
            return ", ".join(label for label, given in zip(labels, decision, strict=True) if given == 1) or "none"
        return "cut" if decision == UNLABELED else labels[int(decision)]


def _aligned(own: Answers, teacher: Answers) -> IdArray:
    """Return the teacher's decisions (R,) on the words that `own` decides; UNLABELED where it cut one."""
    said = dict(zip(_words(teacher), teacher.decisions.tolist(), strict=True))
    return np.array([said.get(place, UNLABELED) for place in _words(own)], dtype=np.int64)


def _words(answers: Answers) -> list[tuple[int, int]]:
    """Return (text, word) of each row."""
    encoded = answers.encoded
    words = np.zeros(0, dtype=np.int64) if encoded.words is None else encoded.words
    return list(zip(encoded.texts.tolist(), words.tolist(), strict=True))


def _short(text: str) -> str:
    """Return a text on one line, cut to LONGEST characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
