"""Texts per core-second and money per million texts, by hand."""

import pytest

from bundle import Manifest
from bundle.manifest import Interval, Latency, LatencyByBatch, Lineage, StageMetrics
from compress.model_card import model_card
from compress.savings import cost_per_million_texts, savings_line, savings_rows, texts_per_core_second
from tests.support.bundles import tiny_manifest


def row(stage: str, *milliseconds: float) -> StageMetrics:
    latency = [Latency(median_ms=ms, fastest_ms=ms, slowest_ms=ms) for ms in milliseconds]
    by_batch = LatencyByBatch(batch_1=latency[0], batch_8=latency[1], batch_32=latency[2]) if latency else None
    nothing = Interval(value=0, low=0, high=0)
    return StageMetrics(stage=stage, onnx_bytes=1, latency_ms=by_batch, label_flips=nothing)


METRICS = (row("teacher", 20, 100, 500), row("student", 4, 16, 80), row("int8", 2, 8, 20), row("fp16"))


def manifest(price: float | None, **teachers: object) -> Manifest:
    lineage = tiny_manifest().lineage.model_dump() | {"recipe": {"price_per_core_hour": price}, "teachers": teachers}
    return tiny_manifest(metrics=METRICS, lineage=Lineage.model_validate(lineage))


def test_the_best_batch_size_counts() -> None:
    assert texts_per_core_second(METRICS[0]) == (80.0, 8)  # 8 texts in 0.1 s
    assert texts_per_core_second(METRICS[2]) == (1600.0, 32)  # 32 texts in 0.02 s
    assert texts_per_core_second(METRICS[3]) is None


def test_money_per_million_texts() -> None:
    """A million texts at 80 a second are 12,500 s, so 3.47 core-hours."""
    assert cost_per_million_texts(METRICS[0], 0.05) == pytest.approx(12_500 / 3600 * 0.05)
    assert cost_per_million_texts(METRICS[3], 0.05) is None


def test_the_report_holds_teacher_against_student() -> None:
    rows = savings_rows(
        manifest(0.036, llm={"model": "m", "cost_per_million_texts": 210.0}), {"teacher": "the teacher"}
    )
    assert rows[0] == ["the teacher", "80 (batch 8)", "3.47", "0.125"]
    assert rows[2] == ["int8", "1,600 (batch 32)", "0.174", "0.00625"]
    assert rows[3] == ["m, asked for labels", "", "", "210"]
    assert len(rows) == 4
    line = savings_line(METRICS, 0.036, "teacher")
    assert line == (
        "INT8 answers 1,600 texts per core-second, the teacher in FP32 80; at 0.036 a core-hour a million texts cost "
        "0.00625 instead of 0.125"
    )


def test_without_a_price_there_is_no_money() -> None:
    assert savings_rows(manifest(None), {})[0][3] == "no price stated"
    assert savings_line(METRICS, None, "teacher") == "INT8 answers 1,600 texts per core-second, the teacher in FP32 80"
    assert savings_line((), None, "teacher") is None
    assert savings_line(METRICS[:2], None, "teacher") is None


def test_the_card_has_it() -> None:
    card = model_card(manifest(0.036), {"model.onnx": 1})
    assert "| student INT8 | 1,600 (batch 32) | 0.174 | 0.00625 |" in card
    assert "A core-hour is taken to cost 0.036." in card
