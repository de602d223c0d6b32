"""The command `limbeck classify`: its options, and what it says."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bulk.errors import FormatError
from bulk.options import FormatOption, TextColumnOption, TextPairColumnOption

if TYPE_CHECKING:
    from bulk.classifier import Classifier
    from bulk.files import Job
    from bulk.journal import Progress

BAD_ROWS = 4
"""Exit code when some rows could not be classified, and all others were."""

_INTERRUPTED = 130
_NOBODY_READS = 141


def classify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="A .csv, .tsv, .jsonl, .parquet or .txt file; all but Parquet also with .gz. "
            "[default: -, standard input, one text a line]",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="Classify this text instead of a file.")] = None,
    text_pair: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --text: the second text, for a model that compares two.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the results go, in the input's format.  [default: standard output]"),
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(metavar="FILE", help="List bad rows here too, one JSON object a line.")
    ] = None,
    kind: FormatOption = None,
    text_column: TextColumnOption = "text",
    text_pair_column: TextPairColumnOption = "text_pair",
    prefix: Annotated[str, typer.Option(help="Put before the names of the new columns.", show_default=False)] = "",
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Add every label's score.")] = False,
    variant: Annotated[str, typer.Option(help="Variant to run; auto is the fastest exact one that passed.")] = "auto",
    sessions: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Inference calls side by side.  [default: one a core]")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an interrupted run has done of the same output.")
    ] = False,
) -> None:
    """Classify a text, standard input or a file, without a server.

    The input's columns are kept, and label and score are added: in multi-label labels and scores, of every label that
    reaches its threshold; where the bundle has an abstention threshold, confident, which says whether the score reaches
    it. Of plain text each line becomes label, score and text, with tabs between them.

    A row that cannot be classified is reported with its line and left out; the rest is done, and the exit code is 4.
    Give the same command again after a kill or Ctrl-C: with FILE and --out it goes on where it was. The output appears
    under its name only when it is whole.

    Examples: `limbeck classify runs/movie-reviews/bundle --text "A moving film."`,
    `limbeck classify runs/movie-reviews/bundle reviews.csv --out classified.csv --errors bad.jsonl`
    """
    file = None if file == Path("-") else file
    # before anything is loaded, which takes a second
    if text is None and text_pair is not None:
        raise typer.BadParameter("--text-pair goes with --text; name the columns of a file with --text-pair-column")
    if text is not None and (file or out or errors or kind or restart):
        raise typer.BadParameter("--text prints its answer: it goes with no FILE, --out, --errors, --format, --restart")
    kind = kind_of_input(file, kind) if text is None else None

    from bulk.classifier import Classifier

    with Classifier(bundle, variant=variant, sessions=sessions) as classifier:
        if kind is None:
            _print_answer(classifier, text if text_pair is None else (text, text_pair), all_scores)
            return

        from bulk.files import Job
        from bulk.rows import TextColumns

        columns = TextColumns(text_column, text_pair_column if classifier.manifest.text_pair else None)
        job = Job(file, kind, out, errors, columns, prefix, all_scores, restart)
        progress = _run(classifier, job)
    if progress.bad_rows:
        raise typer.Exit(BAD_ROWS)


def kind_of_input(file: Path | None, given: str | None) -> str:
    """Return the kind of file that is read; raises FormatError."""
    from bulk.files import KINDS, kind_of

    expected = f"expected one of {', '.join(KINDS)}"
    if given is not None and given not in KINDS:
        raise typer.BadParameter(f"--format: found {given!r}, {expected}")
    if given is not None or file is None:
        return given or "txt"
    kind, _ = kind_of(file)
    if kind is None and file.is_file():
        raise FormatError(f"{file}: found the ending {file.suffix!r}; {expected}, or say which it is with --format")
    return kind or "txt"  # that there is no such file is said where it is opened


def _print_answer(classifier: "Classifier", given: object, all_scores: bool) -> None:
    (result,) = classifier.classify([given])
    for label, score in result.labels:
        if all_scores or label in result.predicted:
            typer.echo(f"{label}\t{score!r}")


def _run(classifier: "Classifier", job: "Job") -> "Progress":
    from bulk.run import classify_file

    # a bar would be drawn between the rows
    no_bar = job.out is None and sys.stdout.isatty()
    console = Console(stderr=True, highlight=False, force_terminal=False if no_bar else None)
    try:
        progress = classify_file(classifier, job, console)
    except KeyboardInterrupt:
        kept = "; give the same command again to go on" if job.resumable else "; nothing is kept" if job.out else ""
        console.print(f"stopped{kept}", soft_wrap=True)
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Python would try to flush again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_NOBODY_READS) from None
    if job.out is not None or progress.bad_rows:
        target = "" if job.out is None else f" → {job.out}"
        bad = f", {progress.bad_rows:,} bad and left out" if progress.bad_rows else ""
        console.print(f"{progress.done_rows:,} rows classified{bad}{target}", markup=False, soft_wrap=True)
    return progress
