"""Two classifiers on the same rows of a file: each window is answered by both, then counted."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console

from bulk.answers import Answer, Found
from bulk.classifier import Classifier
from bulk.comparison import Comparison
from bulk.decisions import Columns
from bulk.errors import BulkError
from bulk.files import Input, Job
from bulk.progress import shown
from bulk.rows import Row, Source
from bundle import Manifest, Task
from service.engine.tokenization import TextInput

_ROWS = 256  # in a window: progress moves, and both sides have full batches
# Nothing is written, so whatever columns the file has are not in the way of any that would be added.
_NO_COLUMN = "\0"


class Side(Protocol):
    """One of the two classifiers."""

    def answers(self, inputs: Sequence[TextInput]) -> Sequence[Found | str]:
        """Return an answer for each text or pair, in order, or why there is none."""


class Local:
    """A bundle that labels texts in this process."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def answers(self, inputs: Sequence[TextInput]) -> list[Answer | str]:
        """Return an answer for each text or pair, in order."""
        return [Answer(found.predicted, dict(found.labels)) for found in self._classifier.classify(inputs)]


@dataclass(frozen=True)
class Compared:
    """What came of a file."""

    comparison: Comparison
    bad_rows: int


def compare_file(
    reference: Side,
    candidate: Side,
    manifest: Manifest,
    job: Job,
    console: Console,
    *,
    worst: int,
    limit: int | None,
) -> Compared:
    """Ask both sides about the rows of a file, at most `limit`, and tell of bad ones on `console`.

    `manifest` is the candidate's. Raises FormatError, EndpointError, EngineError, and BulkError when no row is good,
    or when the two have no label in common.
    """
    tags = manifest.task is Task.TOKEN_CLASSIFICATION
    comparison, bad_rows, told = Comparison(worst, "entities" if tags else "texts"), 0, set[str]()
    names = {label.split("-", 1)[-1] for label in manifest.labels} - {"O"} if tags else set(manifest.labels)
    columns = Columns(manifest, prefix=_NO_COLUMN)
    with Input(job, columns) as opened, _beside() as beside, shown(console, opened.total, 0) as update:
        for rows in _windows(opened.source, limit):
            good = [row for row in rows if row.input is not None]
            inputs = [row.input for row in good if row.input is not None]
            there = beside.submit(reference.answers, inputs)
            here = candidate.answers(inputs)
            problems = [(row.number, row.problem) for row in rows if row.problem is not None]
            answers = there.result()
            told |= {label for one in answers if not isinstance(one, str) for label in one.labels}
            if not tags:
                _check_labels(told, names)
            for row, given, before, after in zip(good, inputs, answers, here, strict=True):
                if isinstance(before, str) or isinstance(after, str):
                    problems.append((row.number, before if isinstance(before, str) else str(after)))
                else:
                    comparison.add(row.number, given, before, after)
            bad_rows += len(problems)
            for number, problem in problems:
                console.print(f"{job.name}:{number}: {problem}", markup=False, soft_wrap=True)
            update(opened.done, comparison.texts + bad_rows)
    _check_labels(told, names)
    if unknown := told - names:
        console.print(
            f"Warning: labels of the reference that the candidate does not have: {', '.join(sorted(unknown))}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if not comparison.texts:
        raise BulkError(f"{job.name}: found no row that both can classify; expected at least one")
    return Compared(comparison, bad_rows)


def _check_labels(told: set[str], names: set[str]) -> None:
    """Raise BulkError where the reference told labels, and the candidate has none of them.

    A classifier of texts tells all with every text, so this shows at once; one of tokens tells what it finds.
    """
    if told and not told & names:
        raise BulkError(
            f"the reference's labels: found {', '.join(sorted(told))}; expected some of the candidate's "
            f"({', '.join(sorted(names))}): they have none in common"
        )


@contextmanager
def _beside() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread that nobody waits for when something goes wrong: an endpoint may take minutes to answer."""
    workers = ThreadPoolExecutor(1, thread_name_prefix="limbeck-reference")
    try:
        yield workers
    finally:
        workers.shutdown(wait=False, cancel_futures=True)


def _windows(source: Source, limit: int | None) -> Iterator[list[Row]]:
    rows: list[Row] = []
    number = 0
    while (limit is None or number < limit) and (row := source.next_row()) is not None:
        rows.append(row)
        number += 1
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows
