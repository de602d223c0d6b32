"""Classifies one file from end to end, and goes on where an interrupted run was."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from bulk.classifier import Classifier, Scored
from bulk.decisions import Columns
from bulk.files import Input, Job, kind_of
from bulk.inputs import WindowBound
from bulk.journal import Progress
from bulk.output import Output
from bulk.progress import shown
from bulk.rows import Position, Row, Source
from bundle import LAYOUT, sha256_file
from service.engine.postprocess import FloatArray
from service.engine.tokenization import TextInput


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one window, and the place after them."""

    rows: list[Row]
    after: Position


def classify_file(classifier: Classifier, job: Job, console: Console) -> Progress:
    """Classify every row that can be, tell of the others on `console`, and return the counts.

    Where input and output both are files, a run that ended early, however it did, goes on when it is called again.
    Raises FormatError, ResumeError, OutputError, EngineError, and BrokenPipeError when nobody reads standard output.
    """
    job.check()
    columns = Columns(classifier.manifest, prefix=job.prefix, all_scores=job.all_scores)
    with Input(job, columns) as opened, Output(job, _identity(classifier, job)) as output:
        source = opened.source
        progress = output.begin(source.header(), source.position(), restart=job.restart)
        if progress.done_rows or progress.bad_rows:
            source.skip_to(progress.position)
            console.print(f"going on after {progress.done_rows + progress.bad_rows:,} rows", soft_wrap=True)
        with shown(console, opened.total, progress.done_rows + progress.bad_rows) as update:
            windows = _windows(source, one_by_one=opened.interactive)
            for window, scored in classifier.stream(windows, **({"ahead": 0} if opened.interactive else {})):
                rows, scores = _merged(window, scored, columns.labels)
                bad = [row for row in rows if row.problem is not None]
                for row in bad:
                    console.print(f"{job.name}:{row.number}: {row.problem}", markup=False, soft_wrap=True)
                progress = replace(
                    progress,
                    position=window.after,
                    done_rows=progress.done_rows + len(rows) - len(bad),
                    bad_rows=progress.bad_rows + len(bad),
                )
                output.append(source.render(rows, scores), _error_lines(job, bad), progress)
                update(opened.done, progress.done_rows + progress.bad_rows)
        output.publish(opened.convert)
    return progress


def _identity(classifier: Classifier, job: Job) -> dict[str, Any]:
    """Return everything that the output depends on, except what is read from the input line by line."""
    return {
        "input": "standard input" if job.file is None else sha256_file(job.file) if job.kind == "parquet" else "file",
        "bundle": sha256_file(classifier.bundle.path(LAYOUT.manifest)),
        "variant": classifier.variant,
        "provider": classifier.provider,
        "format": job.kind,
        "compression": job.out is not None and kind_of(job.out)[1],
        "text columns": job.texts.names,
        "prefix": job.prefix,
        "all scores": job.all_scores,
        "errors": None if job.errors is None else str(job.errors.resolve()),
    }


def _windows(source: Source, *, one_by_one: bool) -> Iterator[tuple[_Rows, list[TextInput]]]:
    bound = WindowBound()
    rows: list[Row] = []

    def window() -> tuple[_Rows, list[TextInput]]:
        return _Rows(rows, source.position()), [row.input for row in rows if row.input is not None]

    while (row := source.next_row()) is not None:
        rows.append(row)
        if bound.full_after(row.size) or one_by_one:
            yield window()
            rows = []
    if rows:
        yield window()


def _merged(window: _Rows, scored: Scored, labels: int) -> tuple[list[Row], FloatArray]:
    """Return a window's rows with scores (R, C) for each: NaN where a row is bad, or the model gave no numbers."""
    scores = np.full((len(window.rows), labels), np.nan, dtype=np.float32)
    scores[[index for index, row in enumerate(window.rows) if row.problem is None]] = scored.scores
    broken = ~np.isfinite(scores).all(axis=1)
    scores[broken] = np.nan
    broken_rows = set(np.flatnonzero(broken).tolist())
    problem = "the model's scores are not finite numbers"
    rows = [
        replace(row, input=None, problem=problem) if index in broken_rows and row.problem is None else row
        for index, row in enumerate(window.rows)
    ]
    return rows, scores


def _error_lines(job: Job, bad: list[Row]) -> bytes:
    """Return bad rows as JSON Lines."""
    lines = ({"file": job.name, "line": row.number, "problem": row.problem} for row in bad)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
