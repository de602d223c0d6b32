"""For each task, from files to a verified bundle by the command; what it states is what its files give."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from bundle import Task, open_bundle, sha256_file
from bundle.errors import GoldenMismatchError
from service.engine.tokenization import Tokenizer
from service.golden import verify_variant
from tests.bundle.test_bundle import reseal
from tests.support.command import limbeck
from tests.support.html import Page
from tests.support.reference import Served
from tests.support.rows import read_lines, write_lines
from tests.support.runs import STAGES, Finished

METRIC = {
    Task.SINGLE_LABEL: "accuracy",
    Task.MULTI_LABEL: "micro_f1",
    Task.PAIR: "accuracy",
    Task.TOKEN_CLASSIFICATION: "entity_f1",
}
VARIANTS = {"fp32": "student", "int8": "int8", "fp16": "fp16"}

pytestmark = pytest.mark.parametrize("task", Task)


@pytest.fixture
def made(finished: Callable[[str], Finished], task: Task) -> Finished:
    return finished(task)


def test_the_bundle_says_what_it_is_and_verifies(made: Finished, task: Task) -> None:
    manifest = made.bundle.manifest
    assert manifest.task == task
    assert manifest.activation == ("sigmoid" if task is Task.MULTI_LABEL else "softmax")
    assert manifest.text_pair == (task is Task.PAIR)
    assert manifest.tag_scheme == ("IOB2" if task is Task.TOKEN_CLASSIFICATION else None)
    assert (manifest.thresholds is not None) == (task is Task.MULTI_LABEL)
    if manifest.thresholds is not None:
        assert list(manifest.thresholds) == list(manifest.labels)
    expected = {
        Task.SINGLE_LABEL: ("negative", "positive"),
        Task.MULTI_LABEL: ("blame", "praise", "story"),
        Task.PAIR: ("better", "worse"),
        Task.TOKEN_CLASSIFICATION: ("O", *(f"{p}-{t}" for t in ("BLAME", "PRAISE", "STORY") for p in "BI")),
    }
    assert manifest.labels == expected[task]
    verified = limbeck("verify", made.out / "bundle")
    assert verified.returncode == 0, verified.stderr
    for variant in ("int8", "fp32"):
        assert f"golden, {variant}: 32 inputs hold" in verified.stdout


def test_the_recorded_quality_is_that_of_the_served_files(made: Finished, task: Task) -> None:
    """By onnxruntime, tokenizers, scikit-learn and seqeval alone."""
    bundle, rows = made.bundle, made.rows("test")
    recorded = {row.stage: row for row in bundle.manifest.metrics}
    for variant, stage in VARIANTS.items():
        quality = recorded[stage].quality
        assert quality is not None
        assert next(iter(quality.scores)) == METRIC[task]
        for name, value in Served(bundle.folder, variant).quality(rows).items():
            assert quality.scores[name].value == pytest.approx(value), (variant, name)


def test_it_learned_the_rule(made: Finished, task: Task) -> None:
    teacher, _, int8, _ = made.bundle.manifest.metrics
    for row in (teacher, int8):
        assert row.quality is not None
        assert row.quality.scores[METRIC[task]].value > 0.8  # chance gives at most 0.6
    assert int8.label_flips.value <= 0.05


def test_flips_and_drops_are_those_of_the_answers(made: Finished, task: Task) -> None:
    bundle, rows = made.bundle, made.rows("test")
    recorded = {row.stage: row for row in bundle.manifest.metrics}
    student, int8 = (Served(bundle.folder, variant) for variant in ("fp32", "int8"))
    pairs = [(student.answer(row), int8.answer(row)) for row in rows]
    if task is Task.TOKEN_CLASSIFICATION:  # words that were cut are no decisions: none of theirs can flip
        read = [len({word for word in student.logits(row["tokens"])[1] if word is not None}) for row in rows]
        pairs = [
            both for pair, count in zip(pairs, read, strict=True) for both in list(zip(*pair, strict=True))[:count]
        ]
    expected = np.mean([one != two for one, two in pairs])
    assert recorded["int8"].label_flips.value == pytest.approx(expected)
    assert recorded["teacher"].label_flips.value == recorded["student"].label_flips.value == 0
    values = {stage: row.quality.scores[METRIC[task]].value for stage, row in recorded.items()}
    for stage, row in recorded.items():
        assert row.quality.drop.value == pytest.approx(values["teacher"] - values[stage])
        assert row.quality.retained.value == pytest.approx(values[stage] / values["teacher"])


def test_golden_scores_are_those_of_every_token_or_label(made: Finished, task: Task) -> None:
    bundle = made.bundle
    for variant in VARIANTS:
        served = Served(bundle.folder, variant)
        for golden in bundle.golden()[:8]:
            expected = served.scores(golden.text, golden.text_pair)
            assert np.allclose(np.reshape(golden.scores[variant], expected.shape), expected, atol=1e-5)
            assert (golden.text_pair is not None) == (task is Task.PAIR)


def test_golden_inputs_carry_the_true_answer(made: Finished, task: Task) -> None:
    rows = {(row.get("text") or " ".join(row["tokens"]), row.get("text_pair")): row for row in made.rows("test")}
    for golden in made.bundle.golden():
        row = rows[golden.text, golden.text_pair]
        expected = {"tags": " ".join, "labels": lambda labels: "|".join(sorted(labels)), "label": str}
        assert golden.label == next(join(row[key]) for key, join in expected.items() if key in row)


def test_another_models_weights_do_not_pass_as_this_ones(made: Finished, task: Task, tmp_path: Path) -> None:
    shutil.copytree(made.out / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle/model.fp32.onnx"
    model = onnx.load(path)
    matrix = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix) * 1.5, matrix.name))
    onnx.save(model, path)
    entry = {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
    reseal(tmp_path / "bundle", lambda document: document["files"].update({"model.fp32.onnx": entry}))
    with pytest.raises(GoldenMismatchError, match="this machine computes differently"):
        verify_variant(open_bundle(tmp_path / "bundle"), "fp32")


def test_golden_scores_of_another_number_of_tokens_are_refused(made: Finished, task: Task, tmp_path: Path) -> None:
    """A tokenizer that is not the bundle's own gives a text other tokens."""
    if task is not Task.TOKEN_CLASSIFICATION:
        pytest.skip("of token classification: the other tasks have one row a text")
    shutil.copytree(made.out / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle/golden.jsonl"
    lines = read_lines(path)
    labels = len(made.bundle.manifest.labels)
    tokens = len(lines[0]["scores"]["int8"]) // labels
    lines[0]["scores"] = {variant: scores[:-labels] for variant, scores in lines[0]["scores"].items()}
    write_lines(path, lines)
    entry = {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
    reseal(tmp_path / "bundle", lambda document: document["files"].update({"golden.jsonl": entry}))
    with pytest.raises(GoldenMismatchError, match=f"found {tokens} tokens, expected {tokens - 1}"):
        verify_variant(open_bundle(tmp_path / "bundle"), "int8")


def test_int8_scores_do_not_depend_on_batch_mates(made: Finished, task: Task) -> None:
    """onnxruntime alone, bit by bit: each text by itself and among others that are longer."""
    bundle, rows = made.bundle, made.rows("test")[:24]
    tokenizer = Tokenizer(bundle.path("tokenizer.json"), bundle.manifest.max_length)
    inputs = [
        (row["text"], row["text_pair"]) if "text_pair" in row else row.get("text") or " ".join(row["tokens"])
        for row in rows
    ]
    encodings = tokenizer.encode(inputs)
    session = onnxruntime.InferenceSession(bundle.path("model.int8.onnx"), providers=["CPUExecutionProvider"])

    def feed(chosen: list) -> dict[str, np.ndarray]:
        width = max(len(e.ids) for e in chosen)
        arrays = {
            "input_ids": [e.ids + [0] * (width - len(e.ids)) for e in chosen],
            "attention_mask": [[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in chosen],
            "token_type_ids": [e.type_ids + [0] * (width - len(e.ids)) for e in chosen],
        }
        return {node.name: np.array(arrays[node.name], dtype=np.int64) for node in session.get_inputs()}

    together = session.run(None, feed(encodings))[0]
    for encoding, output in zip(encodings, together, strict=True):
        alone = session.run(None, feed([encoding]))[0][0]
        own = output[: len(encoding.ids)] if output.ndim == 2 else output
        assert own.tobytes() == alone.tobytes()
    invariance = bundle.manifest.metrics[2].batch_invariance
    assert invariance is not None
    assert invariance.bit_equal
    assert invariance.texts >= 80


def test_baselines_are_measured_and_the_verdict_is_printed(made: Finished, task: Task) -> None:
    manifest = made.bundle.manifest
    assert len(manifest.baselines) == 3
    int8 = manifest.metrics[2].quality.scores[METRIC[task]].value
    for baseline in manifest.baselines:
        assert baseline.student_gain.value == pytest.approx(int8 - baseline.score.value)
        assert baseline.name in made.printed
    beaten = all(baseline.student_gain.low > 0 for baseline in manifest.baselines)
    assert ("The student clearly beats every baseline" in made.printed) == beaten
    assert ("NOT worth its latency" in made.printed) == (not beaten)


def test_the_report_tells_of_all_that_the_run_did(made: Finished, task: Task) -> None:
    manifest, text = made.bundle.manifest, made.bundle.path("report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.problems == []
    assert [row[0] for row in page.tables["Stages"][1:]] == [
        "teacher FP32",
        "student FP32",
        "student INT8",
        "student FP16",
    ]
    assert [row[0] for row in page.tables["Cheap models on the same test split"][1:]] == [
        baseline.name for baseline in manifest.baselines
    ]
    assert [row[0] for row in page.tables["How long it took"][1:]] == list(STAGES[:-1])
    assert [row[:2] for row in page.tables["Data"][1:]] == [
        [name, str(split.rows)] for name, split in manifest.lineage.data.items()
    ]
    for name in ("teacher", "student", "the student without distillation"):  # the legend of the training curves
        assert re.search(rf"<text[^>]*>{name}</text>", text)
    (method,) = page.tables["Tried on the validation split"][1:]
    assert (method[0], method[-1]) == ("per-token", "holds the gate (chosen)")


def test_the_report_has_the_mistakes_of_the_served_files(made: Finished, task: Task) -> None:
    """Counted from onnxruntime's answers; teacher and student read the same words, so that none is left out."""
    served = Served(made.bundle.folder, "int8")
    pairs = [(row, served.answer(row)) for row in made.rows("test")]
    if task is Task.TOKEN_CLASSIFICATION:
        read = [len({word for word in served.logits(row["tokens"])[1] if word is not None}) for row, _ in pairs]
        wrong = sum(
            tag != guess
            for (row, found), count in zip(pairs, read, strict=True)
            for tag, guess in list(zip(row["tags"], found, strict=True))[:count]
        )
        told = f"{wrong} of {sum(read)} words are wrong"
    else:
        wrong = sum(found != (set(row["labels"]) if "labels" in row else row["label"]) for row, found in pairs)
        told = f"{wrong} of {len(pairs)} texts are wrong"
    page = Page(made.bundle.path("report.html").read_text(encoding="utf-8"))
    assert (told if wrong else told.replace("0 of", "None of", 1)) in page.text


def test_what_is_printed_fits_80_columns(made: Finished, task: Task) -> None:
    table = [line for line in made.printed.splitlines() if re.search(r"FP32|INT8|FP16|speed|\[95", line)]
    assert table
    assert max(map(len, table)) <= 80


def test_the_manifest_keeps_what_went_in(made: Finished, task: Task) -> None:
    lineage = made.bundle.manifest.lineage
    assert lineage.recipe["task"] == task
    assert lineage.data["train"].rows == 240
    assert set(lineage.overlap) == {"test in train", "test in validation", "validation in train"}
    texts = [
        {json.dumps([row.get("text") or " ".join(row["tokens"]), row.get("text_pair")]) for row in made.rows(split)}
        for split in ("test", "train")
    ]
    keys = [json.dumps([r.get("text") or " ".join(r["tokens"]), r.get("text_pair")]) for r in made.rows("test")]
    assert lineage.overlap["test in train"] == sum(key in texts[1] for key in keys)
