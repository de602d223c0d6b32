"""The model card: the bundle's README.md."""

from collections.abc import Mapping, Sequence

from bundle import LAYOUT, Manifest, Task
from compress.report import (
    DISTILLED,
    METRIC_NAMES,
    exactness,
    headings,
    markdown_table,
    overlap_lines,
    percent,
    stage_rows,
    target_line,
    taught_lines,
    vocabulary_lines,
    wording,
    worth_lines,
)
from compress.savings import HEADINGS as SAVINGS
from compress.savings import price_of, savings_rows

_SERVING = (
    "limbeck serve .",
    """curl -s localhost:8000/v1/classify -H 'content-type: application/json' -d '{"inputs": ["…"]}'""",
)


def model_card(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Return the bundle's README.md; `sizes` are the bytes of the files beside it."""
    largest = max(sizes.values())
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"A {manifest.task} classifier compressed with Limbeck. Labels: "
        f"{', '.join(f'`{label}`' for label in manifest.labels)}. "
        f"Texts of more than {manifest.max_length} tokens are cut.",
        "",
    ]
    lines += [
        f"**Variant {variant.name} did not pass the gate"
        + (" and was shipped by order (--force)" if variant.forced else " and is not served")
        + f"**: {variant.gate_reason}.\n"
        for variant in manifest.variants
        if not variant.gate_passed
    ]
    lines += [
        "## What was kept",
        "",
        *_kept(manifest),
        *_details(manifest),
        *_paragraphs([*taught_lines(manifest), *vocabulary_lines(manifest)]),
        *_saved(manifest),
    ]
    lines += [
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
        *([] if manifest.task is Task.TOKEN_CLASSIFICATION else _SERVING),
        "```",
        "",
        f"What went in (recipe, data, seeds, versions) is under `lineage` in `{LAYOUT.manifest}`.",
        "",
    ]
    return "\n".join(lines)


def _kept(manifest: Manifest) -> list[str]:
    test, words = manifest.lineage.data.get("test"), wording(manifest)
    seen = "that training never saw" if words is DISTILLED else "(whether its training saw them is not known here)"
    lines = [
        *markdown_table(headings(manifest.metrics), stage_rows(manifest.metrics, words)),
        "",
        (
            f"Measured on {test.rows} test texts {seen}, every model"
            if test
            else "**No labeled data was given: accuracy, per-label recall, calibration and slices were not measured, "
            "and the golden inputs are unlabeled.** Every model was run on sample texts that come with Limbeck,"
        )
        + " in ONNX Runtime with one thread at dynamic length, models taking turns; milliseconds are the median a "
        f"call. Kept: share of the {words.reference}'s quality, paired bootstrap. Flips: decisions unlike those of "
        f"{words.own} FP32. "
        f"Machine: {manifest.lineage.machine}.",
        "",
    ]
    lines += [f"{target_line(manifest.target)}.", ""] if manifest.target else []
    return lines + _paragraphs(overlap_lines(manifest))


def _details(manifest: Manifest) -> list[str]:
    """Return what is worth knowing of the variant that a CPU serves."""
    row = next((row for row in manifest.metrics if row.stage == "int8"), manifest.metrics[-1])
    lines = []
    if row.batch_invariance is not None:
        lines += [f"Batch invariance (INT8): {exactness(row.batch_invariance)}.", ""]
    lines += [f"- {line}." for line in worth_lines(manifest.baselines)]
    lines += [""] if manifest.baselines else []
    if row.quality is None:
        return lines
    quality = row.quality
    cells = [
        [label, f"{m.precision:.3f}", f"{m.recall:.3f}", f"{m.f1:.3f}", str(m.support)]
        for label, m in quality.per_class.items()
    ]
    lines += [*markdown_table(("label (INT8)", "precision", "recall", "F1", "in the test split"), cells), ""]
    if quality.slices:
        cells = [
            [name, str(part.texts), f"{100 * part.value:.1f}", percent(part.drop) if part.drop else ""]
            for name, part in quality.slices.items()
        ]
        below = f"below the {wording(manifest).reference} [95 %]"
        headings_ = ("slice (INT8)", "texts", METRIC_NAMES[next(iter(quality.scores))], below)
        lines += [*markdown_table(headings_, cells), ""]
    lines += [
        f"Calibration error (ECE) after temperature {manifest.temperature:.2f}: "
        f"{quality.calibration.expected_error:.3f}.",
        "",
    ]
    if manifest.thresholds:
        told = ", ".join(f"`{label}` {value:.2f}" for label, value in manifest.thresholds.items())
        lines += [f"A label is given when its score reaches its threshold: {told}.", ""]
    if manifest.abstention:
        kept = manifest.abstention
        lines += [
            f"Scores from {kept['threshold']:.3f} on were right {kept['precision']:.1%} of the time on the validation "
            f"split ({kept['coverage']:.1%} of its texts).",
            "",
        ]
    return lines


def _saved(manifest: Manifest) -> list[str]:
    rows = savings_rows(manifest, wording(manifest).titles)
    if not rows:
        return []
    price = price_of(manifest)
    stated = "" if price is None else f" A core-hour is taken to cost {price:g}."
    told = f"One thread of the machine above, at the batch size that is best; tokenizing not counted.{stated}"
    return ["## What it saves", "", *markdown_table(SAVINGS, rows), "", told, ""]


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in (line, "")]
