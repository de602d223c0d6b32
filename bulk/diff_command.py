"""The command `limbeck diff`: its options, and what it says."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bulk.command import BAD_ROWS, kind_of_input
from bulk.errors import BulkError
from bulk.options import FormatOption, TextColumnOption, TextPairColumnOption

if TYPE_CHECKING:
    from bulk.diff import Compared, Side
    from bundle import Manifest

TOO_DIFFERENT = 3
"""Exit code when less agrees than --min-agreement asks for."""

_FLIPS = 20
_TEXT_CHARACTERS = 100


def diff(
    reference: Annotated[
        str, typer.Argument(metavar="URL|BUNDLE", help="What is compared with: a live endpoint, or a bundle's folder.")
    ],
    candidate: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle that may take its place.")],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Your texts: .csv, .tsv, .jsonl, .parquet or .txt; - is standard input."),
    ],
    kind: FormatOption = None,
    text_column: TextColumnOption = "text",
    text_pair_column: TextPairColumnOption = "text_pair",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.  [default: all]")] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            help="native, tei, huggingface, openinference, vllm, kserve or detectors.  [default: by the URL's path]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model there, where a header names it (detectors).")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds to wait for the endpoint's next bytes; for a connection at most 10."),
    ] = 30.0,
    worst: Annotated[int, typer.Option(min=0, max=10_000, help="How many of the worst disagreements to show.")] = 10,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 3 when a smaller share of the texts agrees.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    variant: Annotated[str, typer.Option(help="Variant of the bundles; auto is the fastest exact one.")] = "auto",
) -> None:
    """Compare two classifiers on your own texts: how often they agree, which labels flip, and where they differ most.

    Classifiers of tokens are compared by the entities that they find: a text agrees when all are the same.

    An endpoint may speak any of the service's dialects (docs/api.md): its path says which, or --dialect. Nothing is
    written, and no true labels are needed; agreement comes with its 95 % interval.

    Exit code 3: less than --min-agreement. Exit code 4: some rows could not be classified; all others were compared.

    Examples: `limbeck diff http://localhost:8000 runs/new/bundle --data traffic.jsonl`,
    `limbeck diff runs/old/bundle runs/new/bundle --data reviews.csv --min-agreement 0.98 --json`
    """
    file = None if data == Path("-") else data
    kind = kind_of_input(file, kind)
    remote = reference.startswith(("http://", "https://"))
    if not remote and (dialect or api_key_env or model):
        raise typer.BadParameter(
            "--dialect, --model and --api-key-env belong to a URL, which begins with http:// or https://"
        )
    with ExitStack() as opened:
        from bulk.diff import compare_file
        from bulk.files import Job
        from bulk.rows import TextColumns
        from bundle import Task

        own, manifest = _bundle(opened, candidate, variant)
        if remote:
            side = _endpoint(opened, reference, manifest, dialect, model, api_key_env, timeout_s)
        else:
            side, other = _bundle(opened, Path(reference), variant)
            if other.text_pair != manifest.text_pair:
                raise BulkError(f"{reference} and {candidate}: one compares two texts and the other takes single ones")
            if Task.TOKEN_CLASSIFICATION in {other.task, manifest.task} and other.task is not manifest.task:
                raise BulkError(f"{reference} and {candidate}: one finds entities and the other gives labels to texts")
        columns = TextColumns(text_column, text_pair_column if manifest.text_pair else None)
        job = Job(file, kind, None, None, columns, "", False, False)
        console = Console(stderr=True, highlight=False)
        found = compare_file(side, own, manifest, job, console, worst=worst, limit=limit)
    if as_json:
        result = {"reference": reference, "candidate": str(candidate), "bad_rows": found.bad_rows}
        typer.echo(json.dumps(result | found.comparison.as_json(), indent=2, ensure_ascii=False))
    else:
        _show(found, Console(highlight=False), several=manifest.task in {Task.MULTI_LABEL, Task.TOKEN_CLASSIFICATION})
    if min_agreement is not None and found.comparison.agreement < min_agreement:
        console.print(f"agreement {found.comparison.agreement:.4f} is below --min-agreement {min_agreement:g}")
        raise typer.Exit(TOO_DIFFERENT)
    if found.bad_rows:
        raise typer.Exit(BAD_ROWS)


def _bundle(opened: ExitStack, folder: Path, variant: str) -> "tuple[Side, Manifest]":
    """Return the bundle ready to answer, and its manifest."""
    from bulk.classifier import Classifier
    from bulk.diff import Local
    from bulk.tags import Tags
    from bundle import Task, open_bundle

    bundle = open_bundle(folder)
    if bundle.manifest.task is Task.TOKEN_CLASSIFICATION:
        return opened.enter_context(Tags(bundle, variant=variant)), bundle.manifest
    return Local(opened.enter_context(Classifier(bundle, variant=variant))), bundle.manifest


def _endpoint(
    opened: ExitStack,
    url: str,
    manifest: "Manifest",
    dialect: str | None,
    model: str | None,
    key_env: str | None,
    timeout_s: float,
) -> "Side":
    from bundle import Task

    try:
        from bulk.endpoint import Endpoint
    except ModuleNotFoundError as error:
        raise BulkError("a live endpoint needs httpx: pip install 'limbeck[bulk]'") from error
    from bulk.dialects import DIALECTS, Labels
    from bulk.tag_dialects import TAG_DIALECTS

    if dialect is not None and dialect not in DIALECTS:
        raise typer.BadParameter(f"--dialect: found {dialect!r}, expected one of {', '.join(DIALECTS)}")
    labels = Labels(manifest.labels, manifest.thresholds or {}, manifest.task is Task.MULTI_LABEL)
    dialects = TAG_DIALECTS if manifest.task is Task.TOKEN_CLASSIFICATION else DIALECTS
    endpoint = opened.enter_context(
        Endpoint(url, dialect, labels, key_env=key_env, timeout_s=timeout_s, model=model, dialects=dialects)
    )
    if manifest.text_pair and not endpoint.dialect.pairs:
        raise BulkError(f"the dialect {endpoint.dialect.name} takes single texts, but the bundle compares two")
    return endpoint


def _show(found: "Compared", console: Console, *, several: bool) -> None:
    """Print what was counted, by label, too, where a text may have `several`."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    comparison = found.comparison
    low, high = comparison.interval()
    bad = f"; {found.bad_rows:,} bad rows left out" if found.bad_rows else ""
    console.print(
        f"{comparison.texts:,} texts{bad}: {comparison.agreement:.2%} agree [{low:.2%}–{high:.2%}], "
        f"{comparison.texts - comparison.agreed:,} do not; a text's largest difference of a score is "
        f"{comparison.mean_difference:.4f} on average, at most {comparison.largest_difference:.4f}",
        soft_wrap=True,
    )
    if comparison.flips:
        table = Table("from", "to", comparison.counted, "of those", title="Flips", box=SIMPLE_HEAD)
        for (before, after), count in comparison.flips.most_common(_FLIPS):
            share = comparison.share(before, count)
            table.add_row(escape(before), escape(after), f"{count:,}", "" if share is None else f"{share:.1%}")
        console.print(table)
        left = len(comparison.flips) - _FLIPS
        if left > 0:
            console.print(f"… and {left:,} kinds of flips more; --json has them all")
        if several:
            table = Table("label", comparison.counted, "lost", "gained", title="Flips by label", box=SIMPLE_HEAD)
            for label, counts in comparison.by_label().items():
                if counts["lost"] or counts["gained"]:
                    table.add_row(escape(label), *(f"{counts[name]:,}" for name in ("reference", "lost", "gained")))
            console.print(table)
    disagreements = comparison.worst()
    if disagreements:
        table = Table("row", "from", "to", "difference", "text", title="Worst disagreements", box=SIMPLE_HEAD)
        for one in disagreements:
            text = one.text if isinstance(one.text, str) else " ⇄ ".join(one.text)
            short = text if len(text) <= _TEXT_CHARACTERS else text[: _TEXT_CHARACTERS - 1] + "…"
            sides = [escape(side.told()) for side in (one.reference, one.candidate)]
            table.add_row(str(-one.row), *sides, f"{one.difference:.4f}", escape(" ".join(short.split())))
        console.print(table)
