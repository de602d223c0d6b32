"""Which INT8 model is kept: the fastest that holds the gate, with as many matrices in float as that takes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from bundle import Task
from compress import calibrate, distill, export, search, teacher
from compress.confidence import Fitted
from compress.errors import QuantizeError
from compress.export import check_parity, export_model
from compress.fuse import fuse_attention
from compress.graph import Graph
from compress.measure import Subject, answers, ruler_of
from compress.quantize import quantizable_matrices
from compress.recipe import Gate, Quantize
from compress.search import HALF_MODEL, MODEL, Candidate, Held, Verdict, write_variants
from compress.stage import Run
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad
from tests.support.models import tiny_classifier
from tests.support.runs import Finished, reopened, stage_folder

BEFORE = ("teacher", "targets", "distill", "export", "calibrate")
UNTRIED = ("per-token", "static", "weight-only")


@pytest.fixture
def unsure(finished: Callable[[str], Finished], tmp_path: Path) -> tuple[Held, list[Any]]:
    """An FP32 student that was never taught: its scores are so near to each other that INT8's rounding flips some."""
    run = reopened(finished("single-label"), tmp_path / "run", BEFORE)
    path = tmp_path / "student.onnx"
    model = tiny_classifier(layers=2, seed=4)
    onnx.save(export_model(model, "text-classification", opset=18), path)
    graph = Graph(onnx.load(path))
    fuse_attention(graph, heads=4)
    onnx.save(graph.finish(), path)
    check_parity(model, path, 2, 32)
    tokenizer = Tokenizer(run.folder("distill") / distill.TOKENIZER, 32)
    logits = Session(path).run(pad(tokenizer.encode([e.input for e in run.splits.train]), 0))
    middle = float(np.median(logits[:, 1] - logits[:, 0]))
    graph = Graph(onnx.load(path))  # as many texts on either side of the border
    bias = next(tensor for tensor in graph.model.graph.initializer if list(tensor.dims) == [2])
    values = onnx.numpy_helper.to_array(bias) - np.array([0, middle], dtype=np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(graph.model, path)
    return held_of(run, Subject(path, tokenizer, Fitted()), Gate(max_quality_drop=1.0, max_label_flips=0.0))


def held_of(run: Run, student: Subject, gate: Gate) -> tuple[Held, list[Any]]:
    ruler = ruler_of(run)
    reference = Subject(
        run.folder("export") / export.TEACHER, Tokenizer(run.folder("teacher") / teacher.TOKENIZER, 32), Fitted()
    )
    examples = run.splits.train  # enough for some to flip
    said = [answers(ruler, name, subject, examples) for name, subject in (("t", reference), ("s", student))]
    return Held(ruler, gate, examples, *said, student), student.tokenizer.encode([e.input for e in examples[:64]])


def float_matrices(path: Path) -> set[str]:
    try:
        return set(quantizable_matrices(onnx.load(path)))
    except QuantizeError:  # how it says that there is none
        return set()


def decisions(path: Path, held: Held) -> list[int]:
    arrays = pad(held.subject.tokenizer.encode([e.input for e in held.examples]), 0)
    return Session(path).run(arrays).argmax(axis=1).tolist()


def test_a_candidate_that_fails_gets_its_most_sensitive_matrices_back_in_float(
    unsure: tuple[Held, list[Any]], tmp_path: Path
) -> None:
    held, texts = unsure
    plain, mended = (tmp_path / name for name in ("plain", "mended"))
    for folder in (plain, mended):
        folder.mkdir()
    expected = decisions(held.subject.path, held)

    def flipped(folder: Path) -> float:
        return float(np.mean(np.array(decisions(folder / MODEL, held)) != expected))

    found = write_variants(plain, Quantize(candidates=("per-token",), fall_back=False, fp16=False), held, texts)
    assert found["kept_float"] == []
    (tried,) = found["candidates"]
    assert "decisions flipped" in tried["failures"][0]
    assert float_matrices(plain / MODEL) == set()

    def accuracy(path: Path) -> float:
        labels = np.array(held.ruler.labels)[decisions(path, held)]
        return float(np.mean(labels == [example.target for example in held.examples]))

    assert tried["quality"] == pytest.approx(accuracy(plain / MODEL))
    assert found["validation"]["student"] == pytest.approx(accuracy(held.subject.path))
    assert tried["onnx_bytes"] == (plain / MODEL).stat().st_size

    allowed = flipped(plain) / 2
    assert allowed > 0
    held = dataclasses.replace(held, gate=Gate(max_quality_drop=1.0, max_label_flips=allowed))
    found = write_variants(mended, Quantize(candidates=("per-token",), fp16=False), held, texts)
    assert found["candidates"][0]["failures"] == []
    assert found["candidates"][0]["quality"] == pytest.approx(accuracy(mended / MODEL))
    assert flipped(mended) <= allowed
    everything = quantizable_matrices(onnx.load(held.subject.path))
    assert 0 < len(found["kept_float"]) < len(everything)
    assert float_matrices(mended / MODEL) == set(found["kept_float"])


def test_where_the_float_student_fails_itself_nothing_is_put_back(
    unsure: tuple[Held, list[Any]], tmp_path: Path
) -> None:
    held, texts = unsure
    hopeless = dataclasses.replace(held, gate=Gate(max_quality_drop=0.0, max_label_flips=0.0))
    found = write_variants(tmp_path, Quantize(candidates=("per-token",)), hopeless, texts)
    assert found["kept_float"] == []
    assert "accuracy drop" in found["candidates"][0]["failures"][0]
    assert float_matrices(tmp_path / MODEL) == set()


def test_what_floats_cannot_mend_stays_int8(
    unsure: tuple[Held, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, texts = unsure
    source = held.subject.path
    monkeypatch.setattr(
        Held, "verdict", lambda self, path, **_: Verdict(() if path == source else ("too warm",), quality=None)
    )
    found = write_variants(tmp_path, Quantize(candidates=("per-token",)), held, texts)
    assert (found["kept_float"], found["candidates"][0]["failures"]) == ([], ["too warm"])
    assert float_matrices(tmp_path / MODEL) == set()


def candidates(failing: Sequence[str] = ()) -> list[Candidate]:
    return [Candidate(m, Path(f"{m}.onnx"), (), ("too bad",) if m in failing else ()) for m in UNTRIED]


@pytest.mark.parametrize(
    ("times", "failing", "chosen"),
    [
        ((0.5, 0.3, 1.0), (), "static"),
        ((0.5, 0.3, 0.1), (), "weight-only"),
        ((0.5, 0.3, 1.0), ("static",), "per-token"),
        ((0.5, 0.49, 0.48), (), "per-token"),  # no clear gain: noise does not choose
        ((0.5, 0.3, 1.0), ("per-token", "static"), "weight-only"),
        ((0.5, 0.3, 0.1), UNTRIED, "per-token"),  # none holds: the first
    ],
)
def test_the_fastest_that_holds_is_kept(times: tuple[float, ...], failing: Sequence[str], chosen: str) -> None:
    found = search._fastest(candidates(failing), dict(zip(UNTRIED, times, strict=True)))
    assert found.method == chosen


def test_methods_are_tried_and_the_chosen_one_is_what_is_written(
    finished: Callable[[str], Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Console(record=True, width=200)
    run = reopened(
        finished("token-classification"),
        tmp_path,
        BEFORE,
        ["quantize.candidates=[per-token, static, weight-only]", "quantize.calibration_texts=16"],
        said,
    )
    measured = search._relative_times
    seen: dict[str, float] = {}

    def times(tried: Sequence[Candidate], held: Held) -> Mapping[str, float]:
        seen.update(measured(tried, held))
        return {"per-token": 0.5, "static": 0.4, "weight-only": 0.9}

    monkeypatch.setattr(search, "_relative_times", times)
    folder = stage_folder(run, "quantize")
    summary = search.run(run, folder)
    assert set(seen) == set(UNTRIED)
    assert all(value > 0 for value in seen.values())
    assert summary["method"] == "static"
    assert [c["relative_time"] for c in summary["candidates"]] == [0.5, 0.4, 0.9]
    assert sorted(path.name for path in folder.iterdir()) == [HALF_MODEL, MODEL]
    assert "static: 0.40 × the time of FP32; holds on validation (chosen)" in said.export_text()
    kinds = {node.op_type for node in onnx.load(folder / MODEL).graph.node}
    per_token = {node.op_type for node in onnx.load(finished("token-classification").bundle.path(MODEL)).graph.node}
    assert kinds != per_token  # whose scales are made anew for each token


@pytest.mark.parametrize("task", Task)
def test_half_precision_is_made_only_where_it_is_wanted(
    finished: Callable[[str], Finished], task: Task, tmp_path: Path
) -> None:
    run = reopened(finished(task), tmp_path, BEFORE, ["quantize.fp16=false"])
    search.run(run, stage_folder(run, "quantize"))
    assert not (run.folder("quantize") / HALF_MODEL).exists()
    expected = finished(task).out / "work/quantize" / MODEL
    assert (run.folder("quantize") / MODEL).read_bytes() == expected.read_bytes()


def test_seven_bits_use_half_the_levels(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    run = reopened(finished("single-label"), tmp_path, BEFORE, ["quantize.weight_bits=7"])
    search.run(run, stage_folder(run, "quantize"))
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(run.folder("quantize") / MODEL).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and np.prod(tensor.dims) >= 4096
    ]
    assert weights
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == 63


def test_answers_that_were_kept_are_those_of_the_models(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    run = reopened(finished("multi-label"), tmp_path, BEFORE)
    tokenizer = Tokenizer(run.folder("distill") / distill.TOKENIZER, 32)
    student = Subject(
        run.folder("export") / export.STUDENT, tokenizer, calibrate.read_fitted(run.folder("calibrate"), "student")
    )
    kept = calibrate.known_answers(run, student, calibrate.STUDENT_ROWS)
    fresh = answers(ruler_of(run), "student", student, run.splits.validation)
    assert np.array_equal(kept.rows, fresh.rows)
    assert np.array_equal(kept.decisions, fresh.decisions)
