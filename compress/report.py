"""The stage table, on the terminal and in the bundle's model card."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle import LAYOUT, Manifest
from bundle.manifest import Interval, StageMetrics

_TITLES = {"teacher": "teacher FP32", "student": "student FP32", "int8": "student INT8"}
_HEADINGS = (
    "model",
    "accuracy [95 %]",
    "macro-F1 [95 %]",
    "ONNX file (share)",
    "batch 1 (speed)",
    "batch 32 (speed)",
    "labels as FP32",
)


def stage_rows(metrics: Sequence[StageMetrics]) -> list[list[str]]:
    """Return the cells of the stage table, a list a model, under `_HEADINGS`."""
    teacher_bytes = metrics[0].onnx_bytes
    return [
        [
            _TITLES.get(row.stage, row.stage),
            _percent(row.accuracy),
            _percent(row.macro_f1),
            f"{row.onnx_bytes / 1e6:.1f} MB ({row.onnx_bytes / teacher_bytes:.0%})",
            f"{row.latency_ms.batch_1.median_ms:.2f} ms ({row.speedup.batch_1:.1f}×)",
            f"{row.latency_ms.batch_32.median_ms:.1f} ms ({row.speedup.batch_32:.1f}×)",
            f"{row.agreement:.1%}",
        ]
        for row in metrics
    ]


def stage_table(metrics: Sequence[StageMetrics], title: str) -> Table:
    """Return the table for a terminal."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, heading in enumerate(_HEADINGS):
        table.add_column(_two_lines(heading), justify="right" if position else "left", no_wrap=True)
    for cells in stage_rows(metrics):
        table.add_row(*(_two_lines(cell) for cell in cells))
    return table


def _two_lines(cell: str) -> str:
    """Break before what stands in brackets, else at spaces, so that the table fits 80 columns."""
    bracketed = cell.replace(" [", "\n[").replace(" (", "\n(")
    return escape(bracketed if bracketed != cell else cell.replace(" ", "\n"))


def model_card(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Return the bundle's README.md; `sizes` are the bytes of the files beside it."""
    per_class = manifest.metrics[-1].per_class
    invariance = manifest.metrics[-1].batch_invariance
    largest = max(sizes.values())
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"A {manifest.task} classifier compressed with Limbeck. Labels: "
        f"{', '.join(f'`{label}`' for label in manifest.labels)}. "
        f"Texts of more than {manifest.max_length} tokens are cut.",
        "",
        "## What was kept",
        "",
        *markdown_table(_HEADINGS, stage_rows(manifest.metrics)),
        "",
        f"Measured on {manifest.lineage.data['test'].rows} test texts that training never saw, every model in ONNX "
        "Runtime with one thread at dynamic length, models taking turns; milliseconds are the median a call. "
        f"The last column: texts that get the FP32 student's label. Machine: {manifest.lineage.machine}.",
        "",
    ]
    lines += [
        f"**Variant {variant.name} did not pass the gate and is not served**: {variant.gate_reason}.\n"
        for variant in manifest.variants
        if not variant.gate_passed
    ]
    if invariance is not None:
        found = "equal bit by bit" if invariance.bit_equal else f"off by up to {invariance.max_difference:.2e}"
        lines += [
            f"Batch invariance (INT8): the logits of {invariance.texts} texts in {invariance.batchings} random "
            f"batchings are {found} with each text's logits alone.",
            "",
        ]
    lines += [
        *markdown_table(
            ("label (INT8)", "precision", "recall", "F1", "test texts"),
            [
                [label, f"{m.precision:.3f}", f"{m.recall:.3f}", f"{m.f1:.3f}", str(m.support)]
                for label, m in per_class.items()
            ],
        ),
        "",
        "## Files",
        "",
        "| file | bytes |",
        "|---|---|",
        *(f"| `{name}` | {size:,} |" for name, size in sorted(sizes.items())),
        f"| all of the above | {sum(sizes.values()):,} |",
        "",
        f"The service loads one variant; the largest file is {largest / 1e6:.1f} MB.",
        "",
        "## Use",
        "",
        "```bash",
        "limbeck verify .    # hashes, and the golden inputs on this machine",
        "limbeck serve .",
        """curl -s localhost:8000/v1/classify -H 'content-type: application/json' -d '{"inputs": ["…"]}'""",
        "```",
        "",
        f"What went in (recipe, data, seeds, versions) is under `lineage` in `{LAYOUT.manifest}`.",
        "",
    ]
    return "\n".join(lines)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (headings, ["---"] * len(headings), *rows)]
    return [f"| {' | '.join(cells)} |" for cells in escaped]


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}–{100 * interval.high:.1f}]"
