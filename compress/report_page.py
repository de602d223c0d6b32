"""What the template of `report.html` is given, part by part."""

from collections.abc import Mapping
from typing import Any

import yaml

from bundle import Manifest, Task, Variant
from bundle.manifest import Interval, StageMetrics
from compress import report_plots
from compress.evidence import Cases
from compress.report import (
    METRIC_NAMES,
    Wording,
    exactness,
    main_metric,
    overlap_lines,
    percent,
    stage_rows,
    target_line,
    taught_lines,
    vocabulary_lines,
    wording,
    worth_lines,
)
from compress.report_labels import cut, labels
from compress.report_plots import Point
from compress.savings import HEADINGS, savings_rows
from compress.story import Story

_LONGEST_RECIPE = 20_000  # characters
_STAGES = {"int8": "int8", "float32": "student", "float16": "fp16"}
"""dtype of a variant -> stage of its metrics."""
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def served_on(manifest: Manifest, provider: str) -> Variant | None:
    """Return what a service takes unasked on CPU or CUDA, or None."""
    for dtype in ("int8", "float32") if provider == _CPU else ("float16", "float32"):
        for variant in manifest.variants:
            exact = variant.batch_invariant or provider != _CPU
            if variant.dtype == dtype and variant.servable and exact and provider in variant.execution_providers:
                return variant
    return None


class Page:
    """The content of one bundle's report; what the manifest has is taken from it."""

    def __init__(self, manifest: Manifest, story: Story) -> None:
        self.manifest, self.story = manifest, story
        self.words: Wording = wording(manifest)
        self.metric = METRIC_NAMES.get(main_metric(manifest.metrics) or "", "quality")
        self.variant = served_on(manifest, _CPU) or next(v for v in manifest.variants if v.servable)
        rows = {row.stage: row for row in manifest.metrics}
        self.row: StageMetrics = rows[_STAGES[self.variant.dtype]]
        self.evidence = story.evidence[self.row.stage]
        self.served = self.words.titles[self.row.stage]

    def content(self) -> dict[str, Any]:
        """Return the template's variables."""
        manifest, story = self.manifest, self.story
        lineage, worth = manifest.lineage, worth_lines(manifest.baselines)
        tagged = manifest.task is Task.TOKEN_CLASSIFICATION
        return {
            "manifest": manifest,
            "words": self.words,
            "metric": self.metric,
            "served": self.served,
            "evidence": self.evidence,
            "texts": story.texts,
            "about": {Task.TOKEN_CLASSIFICATION: "word", Task.MULTI_LABEL: "label"}.get(manifest.task, ""),
            "kind": "entity type" if tagged else "label",
            "verdict": self.verdict(),
            "warnings": [line for line in worth[-1:] if "NOT" in line] + overlap_lines(manifest),
            "tiles": self.tiles(),
            "stages": self.stages(),
            "measured_on": self.measured_on(),
            "target": target_line(manifest.target) if manifest.target else None,
            **self.trade_offs(),
            **labels(self.row, self.evidence),
            **self.calibration(),
            "training": report_plots.training(story.curves, self.metric, f"Validation {self.metric} by epoch")
            if story.curves
            else None,
            "taught": [line.replace("`", "") for line in (*taught_lines(manifest), *vocabulary_lines(manifest))],
            "invariance": self.invariance(),
            "mistakes": self._counted(self.evidence.mistakes, "are wrong"),
            "disagreements": self._counted(self.evidence.disagreements, f"are unlike the {self.words.reference}’s"),
            "baselines": self.baselines(),
            "worth": worth[-1] if worth else "",
            "savings": savings_rows(manifest, self.words.titles),
            "savings_headings": HEADINGS,
            "splits": [(name, f"{split.rows:,}", split.sha256) for name, split in lineage.data.items()],
            "seconds": [(name, f"{value:,.0f}") for name, value in story.seconds.items()],
            "versions": list(lineage.library_versions.items()),
            "recipe": cut(yaml.safe_dump(lineage.recipe, sort_keys=False, allow_unicode=True), _LONGEST_RECIPE),
        }

    def verdict(self) -> str:
        """Return what was kept, what it gains, and which variant serves, in words."""
        served = [
            f"{variant.name} on {name}"
            for name, provider in (("CPU", _CPU), ("CUDA", _CUDA))
            if (variant := served_on(self.manifest, provider)) is not None
        ]
        kept = "Quality was not measured: no labeled data was given."
        if self.row.quality is not None:
            kept = f"{self.served} reaches {percent(self._main(self.row))} % {self.metric}"
            if self.row.quality.retained is not None:
                share = percent(self.row.quality.retained)
                kept = f"{self.served} keeps {share} % of the {self.words.reference}’s {self.metric}"
            kept += "."
        return f"{kept[0].upper()}{kept[1:]} Served: {', '.join(served) or 'only what is asked for by name'}."

    def tiles(self) -> list[tuple[str, str]]:
        """Return the figures at the top, each with what it says."""
        row, reference = self.row, self.manifest.metrics[0]
        tiles = []
        if row.quality is not None:
            main, before = self._main(row), self._main(reference)
            told = f"{self.metric} [{100 * main.low:.1f}–{100 * main.high:.1f}]"
            tiles.append((f"{100 * main.value:.1f} %", f"{told}; {self.words.reference} {100 * before.value:.1f} %"))
        if row.speedup is not None and row.latency_ms is not None:
            told = f"{row.latency_ms.batch_1.median_ms:.2f} ms for one text, one thread"
            tiles.append((f"{row.speedup.batch_1:.1f} ×", f"as fast as the {self.words.reference}: {told}"))
        share = row.onnx_bytes / reference.onnx_bytes
        tiles.append((f"{row.onnx_bytes / 1e6:.1f} MB", f"{share:.0%} of the {self.words.reference}’s file"))
        tiles.append((f"{100 * row.label_flips.value:.1f} %", f"of the decisions unlike {self.words.own} FP32"))
        return tiles

    def stages(self) -> list[dict[str, Any]]:
        """Return the rows of the waterfall, with the ends of their bars in percent."""
        metrics = self.manifest.metrics
        known = [self._main(row) for row in metrics if row.quality]
        low, high = min((one.low for one in known), default=0.0), max((one.high for one in known), default=1.0)
        low, high = low - 0.1 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9
        largest = max(row.onnx_bytes for row in metrics)
        slowest = max((row.latency_ms.batch_1.median_ms for row in metrics if row.latency_ms), default=1.0)
        rows = []
        for row, cells in zip(metrics, stage_rows(metrics, self.words), strict=True):
            names = ("title", "quality", "kept", "size", "batch_1", "batch_32", "flips")
            main = self._main(row) if row.quality else None
            places = dict.fromkeys(("from", "to", "at"))
            if main is not None:
                ends = {"from": main.low, "to": main.high, "at": main.value}
                places = {name: 100 * (value - low) / (high - low) for name, value in ends.items()}
            time = row.latency_ms.batch_1.median_ms if row.latency_ms else None
            shares = {
                "size_share": 100 * row.onnx_bytes / largest,
                "time_share": None if time is None else 100 * time / slowest,
            }
            rows.append(dict(zip(names, cells, strict=True)) | places | shares)
        return rows

    def measured_on(self) -> str:
        """Return what the stages were measured on."""
        test = self.manifest.lineage.data.get("test")
        on = f"{test.rows:,} test texts" if test else "sample texts that come with Limbeck"
        return (
            f"Measured on {on} in ONNX Runtime with one thread, models taking turns; milliseconds are the median a "
            f"call. Intervals are of a paired bootstrap. Flips: decisions unlike those of {self.words.own} FP32."
        )

    def trade_offs(self) -> dict[str, Any]:
        """Return both plots of quality against time, and the table of the INT8 methods."""
        refused = {_STAGES[v.dtype] for v in self.manifest.variants if not v.gate_passed}
        points = []
        for row in self.manifest.metrics:
            if row.quality is not None and row.latency_ms is not None:
                main, cost = self._main(row), row.latency_ms.batch_1.median_ms
                title = self.words.titles[row.stage]
                points.append(Point(title, cost, main.value, main.low, main.high, refused=row.stage in refused))
        for one in self.manifest.baselines if points else ():
            if one.milliseconds_per_text is not None:
                score, cost = one.score, one.milliseconds_per_text
                points.append(Point(one.name, cost, score.value, score.low, score.high, beside=True))
        tried, validation = self.story.tried["candidates"], self.story.tried.get("validation", {})
        told = "Quality against time of one text; the numbers are in the table above"
        known = [one for one in tried if one["relative_time"] is not None and one.get("quality") is not None]
        methods = [Point("FP32", 1.0, validation["student"], beside=True)] if known else []
        methods += [
            Point(one["method"], one["relative_time"], one["quality"], refused=bool(one["failures"])) for one in known
        ]
        plot = report_plots.trade_off
        return {
            "trade_off": plot(points, self.metric, "milliseconds for one text", "trade", told) if points else None,
            "tried_plot": plot(methods, f"validation {self.metric}", "time, × FP32", "tried", told)
            if methods
            else None,
            "methods": [self._method(one) for one in tried],
        }

    def _method(self, one: Mapping[str, Any]) -> tuple[str, ...]:
        quality, time = one.get("quality"), one["relative_time"]
        verdict = "; ".join(one["failures"]) or "holds the gate"
        return (
            one["method"],
            "not measured" if quality is None else f"{100 * quality:.1f}",
            f"{one['onnx_bytes'] / 1e6:.1f} MB" if one.get("onnx_bytes") else "",
            "" if time is None else f"{time:.2f} ×",
            str(one["kept_float"]),
            f"{verdict} (chosen)" if one["method"] == self.story.tried["method"] else verdict,
        )

    def calibration(self) -> dict[str, Any]:
        """Return the reliability diagram and its bins."""
        if self.row.quality is None:
            return {"reliability": None, "calibration": "", "bins": []}
        after, before = self.row.quality.calibration, self.evidence.uncalibrated
        told = f"Expected calibration error (ECE) {after.expected_error:.3f}"
        if before is not None:
            told += f" after temperature {self.manifest.temperature:.2f}, {before.expected_error:.3f} before"
        bins = [
            (f"{b.low:.3f}–{b.high:.3f}", b.count, _three(b.mean_confidence), _three(b.accuracy)) for b in after.bins
        ]
        label = f"Reliability diagram of {self.served}; the numbers are in the table below"
        return {"reliability": report_plots.reliability(after, before, label), "calibration": f"{told}.", "bins": bins}

    def invariance(self) -> list[str]:
        """Return for each model whether its answers depend on batch mates."""
        rows = [(self.words.titles[row.stage], row.batch_invariance) for row in self.manifest.metrics]
        return [f"{title}: {exactness(found)}." for title, found in rows if found is not None]

    def baselines(self) -> list[tuple[str, ...]]:
        """Return the table of the baselines."""
        return [
            (
                one.name,
                percent(one.score),
                percent(one.student_gain),
                f"{one.size_bytes / 1e6:.1f} MB",
                "not measured" if one.milliseconds_per_text is None else f"{one.milliseconds_per_text:.2f}",
            )
            for one in self.manifest.baselines
        ]

    def _counted(self, cases: Cases | None, what: str) -> str:
        if cases is None:
            return ""
        row = "words" if self.manifest.task is Task.TOKEN_CLASSIFICATION else "texts"
        return (
            f"{cases.found:,} of {cases.decisions:,} {row} {what}. The surest, at most one a text:"
            if cases.found
            else (f"None of {cases.decisions:,} {row} {what}.")
        )

    def _main(self, row: StageMetrics) -> Interval:
        assert row.quality is not None  # noqa: S101 - asked only of rows that have it
        return next(iter(row.quality.scores.values()))


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
