"""The stage table, on the terminal and in the bundle's model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle import LAYOUT, Manifest, Task
from bundle.manifest import BaselineMetrics, Interval, StageMetrics, TargetOutcome
from compress.savings import HEADINGS as SAVINGS
from compress.savings import price_of, savings_rows


@dataclass(frozen=True)
class Wording:
    """What a bundle's models are called: the one that is compared with, and the one that is served."""

    reference: str
    own: str

    @property
    def titles(self) -> dict[str, str]:
        """Stage of the metrics -> title in the table."""
        return {
            "teacher": f"{self.reference} FP32",
            "student": f"{self.own} FP32",
            "int8": f"{self.own} INT8",
            "fp16": f"{self.own} FP16",
        }


DISTILLED, PACKED = Wording("teacher", "student"), Wording("original", "packed")
_HEADINGS = (
    "model",
    "{metric} [95 %]",
    "kept [95 %]",
    "ONNX file (share)",
    "batch 1 (speed)",
    "batch 32 (speed)",
    "flips",
)
_SERVING = (
    "limbeck serve .",
    """curl -s localhost:8000/v1/classify -H 'content-type: application/json' -d '{"inputs": ["…"]}'""",
)
METRIC_NAMES = {"accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "entity_f1": "entity F1"}


def wording(manifest: Manifest) -> Wording:
    """Return what to call the models of a bundle, which was distilled or packed without training."""
    return PACKED if "packed" in manifest.lineage.recipe else DISTILLED


def headings(metrics: Sequence[StageMetrics]) -> list[str]:
    """Return the headings of the stage table."""
    return [heading.format(metric=METRIC_NAMES.get(main_metric(metrics) or "", "quality")) for heading in _HEADINGS]


def main_metric(metrics: Sequence[StageMetrics]) -> str | None:
    """Return the name of the task's main metric, or None where there were no true labels."""
    return next((next(iter(row.quality.scores)) for row in metrics if row.quality), None)


def stage_rows(metrics: Sequence[StageMetrics], words: Wording = DISTILLED) -> list[list[str]]:
    """Return the cells of the stage table, a list a model, under `headings`."""
    teacher_bytes = metrics[0].onnx_bytes
    return [
        [
            words.titles.get(row.stage, row.stage),
            _percent(next(iter(row.quality.scores.values()))) if row.quality else "not measured",
            _percent(row.quality.retained) if row.quality and row.quality.retained else "not measured",
            f"{row.onnx_bytes / 1e6:.1f} MB ({row.onnx_bytes / teacher_bytes:.0%})",
            _time(row, "batch_1", 2),
            _time(row, "batch_32", 1),
            f"{row.label_flips.value:.1%}",
        ]
        for row in metrics
    ]


def worth_lines(baselines: Sequence[BaselineMetrics]) -> list[str]:
    """Return a sentence for each baseline, and the verdict: a student must be above each of them for certain."""
    if not baselines:
        return []
    lines = []
    for row in baselines:
        time = "" if row.milliseconds_per_text is None else f", {row.milliseconds_per_text:.2f} ms a text"
        gain = row.student_gain
        lines.append(
            f"{row.name}: {_percent(row.score)}, {row.size_bytes / 1e6:.1f} MB{time}; the student is above it by "
            f"{100 * gain.value:.1f} [{100 * gain.low:.1f}–{100 * gain.high:.1f}] points"
        )
    close = [row.name for row in baselines if row.student_gain.low <= 0]
    if close:
        lines.append(
            f"The student is NOT worth its latency: it does not clearly beat {' and '.join(close)} "
            "(the interval of its gain reaches 0)"
        )
    else:
        lines.append("The student clearly beats every baseline")
    return lines


def target_line(outcome: TargetOutcome) -> str:
    """Return in a sentence how near the INT8 student came to what it was pruned for."""
    unit = {"speedup": "×", "latency_ms": " ms", "size_mb": " MB"}[outcome.kind]
    off = outcome.reached / outcome.wanted - 1
    verdict = "within 10 %" if outcome.met else f"off by {100 * off:+.0f} %"
    line = f"Target {outcome.wanted:g}{unit}: {outcome.reached:.3g}{unit}, {verdict}"
    return line if outcome.reason is None else f"{line} ({outcome.reason})"


def stage_table(metrics: Sequence[StageMetrics], title: str, words: Wording = DISTILLED) -> Table:
    """Return the table for a terminal."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, heading in enumerate(headings(metrics)):
        table.add_column(_two_lines(heading), justify="right" if position else "left", no_wrap=True)
    for cells in stage_rows(metrics, words):
        table.add_row(*(_two_lines(cell) for cell in cells))
    return table


def _two_lines(cell: str) -> str:
    """Break before what stands in brackets, else at spaces, so that the table fits 80 columns."""
    bracketed = cell.replace(" [", "\n[").replace(" (", "\n(")
    return escape(bracketed if bracketed != cell else cell.replace(" ", "\n"))


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
    lines += ["## What was kept", "", *_kept(manifest), *_details(manifest), *_taught(manifest), *_saved(manifest)]
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
    found = {pair: rows for pair, rows in manifest.lineage.overlap.items() if rows}
    if found:
        told = "; ".join(f"{pair} {rows}" for pair, rows in found.items())
        lines += [f"Texts that stand in two splits: {told}. Quality on them may be flattering.", ""]
    return lines


def _details(manifest: Manifest) -> list[str]:
    """Return what is worth knowing of the variant that a CPU serves."""
    row = next((row for row in manifest.metrics if row.stage == "int8"), manifest.metrics[-1])
    lines = []
    if row.batch_invariance is not None:
        found = row.batch_invariance
        equal = "equal bit by bit" if found.bit_equal else f"off by up to {found.max_difference:.2e}"
        lines += [
            f"Batch invariance (INT8): the logits of {found.texts} texts in {found.batchings} random batchings are "
            f"{equal} with each text's logits alone.",
            "",
        ]
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
            [name, str(part.texts), f"{100 * part.value:.1f}", _percent(part.drop) if part.drop else ""]
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


def _taught(manifest: Manifest) -> list[str]:
    """Return who taught beside the teacher of the table, and how good each was on the validation split."""
    teachers = manifest.lineage.teachers
    lines = []
    if len(teachers.get("validation") or {}) > 1:
        told = ", ".join(f"{name} {value:.4f}" for name, value in teachers["validation"].items())
        lines += [f"Several teachers, their logits averaged by weight; on the validation split: {told}.", ""]
    llm = teachers.get("llm")
    if llm is not None:
        cost = "" if llm["cost"] is None else f", cost {llm['cost']:.4g}"
        lines += [
            f"`{llm['model']}` labeled {llm['labeled']} of {llm['texts']} unlabeled texts by {llm['method']} "
            f"({llm['refused']} refused, {llm['unparsable']} unparsable, {llm['rejected']} rejected, {llm['failed']} "
            f"failed): {llm['responses']} responses, {llm['prompt_tokens']:,} prompt and {llm['completion_tokens']:,} "
            f"completion tokens{cost}.",
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


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (headings, ["---"] * len(headings), *rows)]
    return [f"| {' | '.join(cells)} |" for cells in escaped]


def _time(row: StageMetrics, batch: str, digits: int) -> str:
    if row.latency_ms is None or row.speedup is None:
        return "for CUDA"
    latency, speedup = getattr(row.latency_ms, batch), getattr(row.speedup, batch)
    return f"{latency.median_ms:.{digits}f} ms ({speedup:.1f}×)"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}–{100 * interval.high:.1f}]"
