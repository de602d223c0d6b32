"""What is told of a bundle, on the terminal, in its model card and in its report: the stage table, and sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle import Manifest
from bundle.manifest import BaselineMetrics, BatchInvariance, Interval, StageMetrics, TargetOutcome


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
            percent(next(iter(row.quality.scores.values()))) if row.quality else "not measured",
            percent(row.quality.retained) if row.quality and row.quality.retained else "not measured",
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
            f"{row.name}: {percent(row.score)}, {row.size_bytes / 1e6:.1f} MB{time}; the student is above it by "
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


def exactness(found: BatchInvariance) -> str:
    """Return in words whether logits depend on batch mates."""
    equal = "equal bit by bit" if found.bit_equal else f"off by up to {found.max_difference:.2e}"
    return (
        f"the logits of {found.texts} texts in {found.batchings} random batchings are {equal} with each text's logits "
        "alone"
    )


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


def overlap_lines(manifest: Manifest) -> list[str]:
    """Return a sentence on texts that stand in two splits, where there are any."""
    found = {pair: rows for pair, rows in manifest.lineage.overlap.items() if rows}
    told = "; ".join(f"{pair} {rows}" for pair, rows in found.items())
    return [f"Texts that stand in two splits: {told}. Quality on them may be flattering."] if found else []


def taught_lines(manifest: Manifest) -> list[str]:
    """Return a sentence on who taught beside the teacher of the table, and one on what a language model labeled."""
    teachers = manifest.lineage.teachers
    lines = []
    if len(teachers.get("validation") or {}) > 1:
        told = ", ".join(f"{name} {value:.4f}" for name, value in teachers["validation"].items())
        lines.append(f"Several teachers, their logits averaged by weight; on the validation split: {told}.")
    llm = teachers.get("llm")
    if llm is not None:
        cost = "" if llm["cost"] is None else f", cost {llm['cost']:.4g}"
        lines.append(
            f"`{llm['model']}` labeled {llm['labeled']} of {llm['texts']} unlabeled texts by {llm['method']} "
            f"({llm['refused']} refused, {llm['unparsable']} unparsable, {llm['rejected']} rejected, {llm['failed']} "
            f"failed): {llm['responses']} responses, {llm['prompt_tokens']:,} prompt and {llm['completion_tokens']:,} "
            f"completion tokens{cost}."
        )
    return lines


def vocabulary_lines(manifest: Manifest) -> list[str]:
    """Return a sentence on what was taken out of the vocabulary, where something was."""
    found = manifest.lineage.vocabulary
    if found is None:
        return []
    score, name = found["test_score"], METRIC_NAMES[main_metric(manifest.metrics) or "accuracy"]
    taught = f", {100 * score['taught']:.1f} % after it" if "taught" in score else ""
    rank = f" {found['variance_kept']:.0%} of the embeddings' variance is kept." if "variance_kept" in found else ""
    scores = f"{100 * score['before']:.1f} % before, {100 * score['after']:.1f} % without teaching{taught}"
    return [
        f"Vocabulary: {found['tokens']:,} of {found['tokens_before']:,} tokens stay; "
        f"{found['changed_encodings']['test']:.1%} of the test texts are cut otherwise.{rank} {name} on test, the "
        f"student in torch: {scores}."
    ]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (headings, ["---"] * len(headings), *rows)]
    return [f"| {' | '.join(cells)} |" for cells in escaped]


def _time(row: StageMetrics, batch: str, digits: int) -> str:
    if row.latency_ms is None or row.speedup is None:
        return "for CUDA"
    latency, speedup = getattr(row.latency_ms, batch), getattr(row.speedup, batch)
    return f"{latency.median_ms:.{digits}f} ms ({speedup:.1f}×)"


def percent(interval: Interval) -> str:
    """Return a share in percent, with its interval."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}–{100 * interval.high:.1f}]"
