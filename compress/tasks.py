"""What differs between tasks; every other file is the same for all of them."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from bundle.manifest import Activation, Task
from compress import tags
from compress.counts import Counts, count_multi, count_single, count_tags
from compress.errors import DataError
from compress.examples import LABEL_SEPARATOR, Example, label_field, labels_field, slice_field, text_field, words_field
from compress.metrics import accuracy, entity_f1, micro_f1
from compress.recipe import Columns, Data
from compress.rows import UNLABELED, Encoded, FloatArray, IdArray, one_row_each
from service.engine.postprocess import activate
from service.engine.tokenization import Tokenizer

METRICS = {"accuracy": accuracy, "micro_f1": micro_f1, "entity_f1": entity_f1}
"""The main metrics."""

Decisions = NDArray[Any]
"""(R,) int64 label ids, or (R, C) bool (multi-label)."""


Thresholds = NDArray[np.float64]
"""(C,) the score from which on each label is given."""


@dataclass(frozen=True)
class TaskSpec:
    """A task in which a text has exactly one of the labels; the others change what is theirs."""

    task: Task
    activation: Activation = Activation.SOFTMAX
    exporter_task: str = "text-classification"
    """The name of the task in optimum's exporter."""
    model_class: Any = AutoModelForSequenceClassification
    problem_type: str | None = "single_label_classification"
    metric: str = "accuracy"
    """The main metric: training keeps the epoch with the best, the gate limits its drop."""
    paired: bool = False
    row: str = "text"
    """What a row is."""

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels."""
        return self.activation is Activation.SIGMOID

    def read(self, row: Mapping[str, Any], columns: Columns, source: str, *, labeled: bool) -> Example:
        """Return the example in one row of a file; raises DataError."""
        target = label_field(row, columns.label, source) if labeled else None
        pair = text_field(row, columns.text_pair, source) if self.paired else None
        part = slice_field(row, columns.slice, source) if labeled else None
        return Example(text_field(row, columns.text, source), target, source, text_pair=pair, slice=part)

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """Return the labels that count toward `data.min_rows_per_label`."""
        return (str(example.target),)

    def stratum(self, example: Example) -> str:
        """Return what a split keeps the mix of."""
        return " ".join(self.labels_of(example))

    def label_names(self, train: Sequence[Example]) -> list[str]:
        """Return the labels in the order of the model's output ids; raises DataError when there is only one."""
        names = sorted({label for example in train for label in self.labels_of(example)})
        if len(names) < 2:
            raise DataError(f"train has the label {', '.join(names)} only; expected at least two labels")
        return names

    def prepare(self, splits: Sequence[list[Example]], data: Data) -> list[list[Example]]:  # noqa: ARG002
        """Return the splits with their targets in the form that training uses."""
        return list(splits)

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], labels: Sequence[str]) -> Encoded:
        """Tokenise examples; an unlabeled one gets the target UNLABELED."""
        return one_row_each(tokenizer.encode([e.input for e in examples]), self.targets(examples, labels))

    def targets(self, examples: Sequence[Example], labels: Sequence[str]) -> IdArray:
        """Return the targets of tasks with one row a text: (N,), or (N, C) (multi-label)."""
        ids = {label: index for index, label in enumerate(labels)}
        return np.array([UNLABELED if e.target is None else ids[str(e.target)] for e in examples], dtype=np.int64)

    def decide(self, logits: FloatArray, thresholds: Thresholds | None, temperature: float = 1.0) -> Decisions:  # noqa: ARG002
        """Return what rows of logits (R, C) are taken for; `thresholds` (C,) are read by multi-label only."""
        return np.asarray(logits.argmax(axis=1), dtype=np.int64)

    def count(
        self,
        examples: Sequence[Example],  # noqa: ARG002
        encoded: Encoded,
        decisions: Decisions,
        labels: Sequence[str],
    ) -> Counts:
        """Return what each text adds to every metric."""
        return count_single(encoded.targets, decisions, labels)

    def measure(self, counts: Counts) -> float:
        """Return the main metric."""
        return METRICS[self.metric](counts)

    def target_text(self, example: Example) -> str:
        """Return an example's target as one line of text."""
        return str(example.target)

    def tag_scheme(self, labels: Sequence[str]) -> str | None:  # noqa: ARG002
        """Return how labels mark entities, where they do."""
        return None


@dataclass(frozen=True)
class MultiLabel(TaskSpec):
    """A text has any number of the labels."""

    def read(self, row: Mapping[str, Any], columns: Columns, source: str, *, labeled: bool) -> Example:  # noqa: D102
        target = labels_field(row, columns.labels, source) if labeled else None
        part = slice_field(row, columns.slice, source) if labeled else None
        return Example(text_field(row, columns.text, source), target, source, slice=part)

    def labels_of(self, example: Example) -> tuple[str, ...]:  # noqa: D102
        return tuple(example.target or ())

    def target_text(self, example: Example) -> str:  # noqa: D102
        return LABEL_SEPARATOR.join(example.target or ())

    def label_names(self, train: Sequence[Example]) -> list[str]:  # noqa: D102
        counts = Counter(label for example in train for label in self.labels_of(example))
        if not counts:
            raise DataError("train has no row with a label; expected at least one label")
        always = sorted(label for label, count in counts.items() if count == len(train))
        if always:
            raise DataError(f"every row of train has the label {always[0]!r}; expected rows without it, too")
        return sorted(counts)

    def targets(self, examples: Sequence[Example], labels: Sequence[str]) -> IdArray:  # noqa: D102
        ids = {label: index for index, label in enumerate(labels)}
        targets = np.full((len(examples), len(labels)), UNLABELED, dtype=np.int64)
        for index, example in enumerate(examples):
            if example.target is not None:
                targets[index] = 0
                targets[index, [ids[label] for label in example.target]] = 1
        return targets

    def decide(self, logits: FloatArray, thresholds: Thresholds | None, temperature: float = 1.0) -> Decisions:  # noqa: D102
        scores = activate(logits, self.activation, temperature)
        return np.asarray(scores >= (0.5 if thresholds is None else thresholds[None, :]))

    def count(  # noqa: D102
        self,
        examples: Sequence[Example],  # noqa: ARG002
        encoded: Encoded,
        decisions: Decisions,
        labels: Sequence[str],
    ) -> Counts:
        return count_multi(encoded.targets == 1, decisions, labels)


@dataclass(frozen=True)
class TokenClassification(TaskSpec):
    """Every word has a tag; words with tags make entities."""

    def read(self, row: Mapping[str, Any], columns: Columns, source: str, *, labeled: bool) -> Example:  # noqa: D102
        if not labeled and columns.tokens not in row:
            words = tuple(text_field(row, columns.text, source).split())
        else:
            words = words_field(row, columns.tokens, source)
        target = words_field(row, columns.tags, source) if labeled else None
        if target is not None and len(target) != len(words):
            raise DataError(f"{source}: found {len(words)} words and {len(target)} tags; expected a tag for each word")
        try:
            tags.check_tags(list(target or ()))
        except ValueError as error:
            raise DataError(f"{source}: {error}") from error
        part = slice_field(row, columns.slice, source) if labeled else None
        return Example(" ".join(words), target, source, words=words, slice=part)

    def labels_of(self, example: Example) -> tuple[str, ...]:  # noqa: D102
        return tuple(sorted({tag.partition("-")[2] for tag in example.target or () if "-" in tag}))

    def target_text(self, example: Example) -> str:  # noqa: D102
        return " ".join(example.target or ())

    def tag_scheme(self, labels: Sequence[str]) -> str | None:  # noqa: D102
        return "BIOES" if any(label.startswith(("S-", "E-")) for label in labels) else "IOB2"

    def label_names(self, train: Sequence[Example]) -> list[str]:  # noqa: D102
        types = sorted({label for example in train for label in self.labels_of(example)})
        if not types:
            raise DataError("train has no word with a tag other than O; expected entities")
        return ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]

    def prepare(self, splits: Sequence[list[Example]], data: Data) -> list[list[Example]]:
        """Return the splits with their tags in IOB2, whatever they were written in; raises DataError."""
        scheme: str = data.tag_scheme
        if scheme == "auto":
            scheme = tags.detect_scheme([list(e.target) for split in splits for e in split if e.target is not None])
        return [[_converted(example, scheme) for example in split] for split in splits]

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], labels: Sequence[str]) -> Encoded:
        """Tokenise examples; a row is the first token of a word, found by its place in the text."""
        ids = {label: index for index, label in enumerate(labels)}
        encodings, first, positions, words, targets = [], [0], [], [], []
        for example, (encoding, offsets) in zip(
            examples, tokenizer.encode_with_offsets([example.text for example in examples]), strict=True
        ):
            for position, word in _first_tokens(example.words or (), offsets):
                positions.append(position)
                words.append(word)
                targets.append(UNLABELED if example.target is None else ids[example.target[word]])
            encodings.append(encoding)
            first.append(len(positions))
        arrays = [np.array(values, dtype=np.int64) for values in (targets, first, positions, words)]
        return Encoded(encodings, *arrays)

    def count(
        self, examples: Sequence[Example], encoded: Encoded, decisions: Decisions, labels: Sequence[str]
    ) -> Counts:
        """Return entity counts; a word that was cut has the tag O."""
        return self.count_tag_lists(examples, self.tag_lists(examples, encoded, decisions, labels))

    def count_tag_lists(self, examples: Sequence[Example], found: Sequence[Sequence[str]]) -> Counts:
        """Return entity counts for the tags of every text's words."""
        return count_tags([list(example.target or ()) for example in examples], found)

    def tag_lists(
        self, examples: Sequence[Example], encoded: Encoded, decisions: Decisions, labels: Sequence[str]
    ) -> list[list[str]]:
        """Return the tags of every text's words."""
        found = [["O"] * len(example.words or ()) for example in examples]
        words: IdArray = encoded.words if encoded.words is not None else np.empty(0, dtype=np.int64)
        for index, tag_list in enumerate(found):
            for row in range(int(encoded.first[index]), int(encoded.first[index + 1])):
                tag_list[int(words[row])] = labels[int(decisions[row])]
        return found


def _converted(example: Example, scheme: str) -> Example:
    if example.target is None:
        return example
    try:
        converted = tags.to_scheme(list(example.target), scheme, "IOB2")
    except ValueError as error:
        raise DataError(f"{example.source}: {error}") from error
    return Example(
        example.text, tuple(converted), example.source, example.text_pair, words=example.words, slice=example.slice
    )


def _first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (token, word) for the first token of each word that has one; `offsets` are characters of the text."""
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    known = set(starts)
    found: list[tuple[int, int]] = []
    seen = -1
    for position, (begin, end) in enumerate(offsets):
        if begin < 0:  # a special token
            continue
        # By its last character: some tokens begin with the space before a word. Some are no more than that space, as it
        # is or with no character at all; they are the first of the word that follows.
        last = max(begin, end - 1)
        index = bisect_right(starts, last + 1 if last + 1 in known else last) - 1
        if index > seen:
            found.append((position, index))
            seen = index
    return found


SPECS: dict[Task, TaskSpec] = {
    Task.SINGLE_LABEL: TaskSpec(Task.SINGLE_LABEL),
    Task.PAIR: TaskSpec(Task.PAIR, paired=True),
    Task.MULTI_LABEL: MultiLabel(
        Task.MULTI_LABEL,
        activation=Activation.SIGMOID,
        problem_type="multi_label_classification",
        metric="micro_f1",
    ),
    Task.TOKEN_CLASSIFICATION: TokenClassification(
        Task.TOKEN_CLASSIFICATION,
        exporter_task="token-classification",
        model_class=AutoModelForTokenClassification,
        problem_type=None,
        metric="entity_f1",
        row="word",
    ),
}
