"""Options that several commands share: what kind of file, and which of its columns."""

from typing import Annotated

import typer

FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="csv, tsv, jsonl, parquet or txt.  [default: FILE's ending]"),
]
TextColumnOption = Annotated[str, typer.Option(metavar="NAME", help="Column that holds the text.")]
TextPairColumnOption = Annotated[str, typer.Option(metavar="NAME", help="Column that holds the second text.")]
