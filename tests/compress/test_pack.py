"""`limbeck pack`: the bundle answers as the model it was made of, and nothing is left when it cannot be made."""

import io
import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

import limbeck as front_door
from bundle import Bundle, BundleError, open_bundle
from bundle.manifest import Task
from compress.errors import DataError, GateError, ModelError, RecipeError
from compress.pack import pack
from compress.report import stage_table, wording
from compress.sample_texts import SAMPLE_TEXTS
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad
from service.golden import verify_variant
from tests.support.bundles import tiny_tokenizer
from tests.support.command import limbeck, started
from tests.support.models import save_tiny_model, tiny_classifier
from tests.support.rows import tiny_rows, write_lines

TASKS = list(Task)
# not in alphabetical order: the model's own order must stay
LABELS = {
    Task.SINGLE_LABEL: ["positive", "negative"],
    Task.MULTI_LABEL: ["story", "praise", "blame"],
    Task.PAIR: ["worse", "better"],
    Task.TOKEN_CLASSIFICATION: ["B-STORY", "I-STORY", "O", "B-PRAISE", "I-PRAISE", "B-BLAME", "I-BLAME"],
}
ROWS = 45
QUICK = [
    "evaluate.latency_rounds=3",
    "evaluate.latency_texts=4",
    "evaluate.bootstrap_samples=100",
    "gate.max_label_flips=0.5",  # a model with random weights is never sure
]
QUICKLY = [part for override in QUICK for part in ("--set", override)]


def save_model(folder: Path, task: Task, **config: Any) -> Path:
    """A fine-tuned classifier of a task, as a user has it; `config` are changed keys of its config.json."""
    save_tiny_model(folder, layers=1, labels=LABELS[task], task=task)
    if task is Task.MULTI_LABEL:
        config = {"problem_type": "multi_label_classification"} | config
    if task is Task.PAIR:
        config = {"finetuning_task": "mrpc"} | config
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def packed(model: Path, out: Path, data: Path | None = None, overrides: list[str] = QUICK, **options: Any) -> Bundle:
    return pack(str(model), data, out, Console(quiet=True), overrides=overrides, **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {task: save_model(folder / task.value, task) for task in TASKS}


@pytest.fixture(scope="module")
def unlabeled(models: dict[Task, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Bundle]:
    folder = tmp_path_factory.mktemp("unlabeled")
    return {task: packed(models[task], folder / task.value) for task in TASKS}


@pytest.fixture(scope="module")
def labeled(models: dict[Task, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Bundle]:
    folder = tmp_path_factory.mktemp("labeled")
    found = {}
    for task in TASKS:
        data = write_lines(folder / f"{task.value}.jsonl", tiny_rows(ROWS, 5, task))
        found[task] = packed(models[task], folder / task.value, data)
    return found


def reference_scores(model: Path, task: Task, text: str, text_pair: str | None) -> np.ndarray:
    """Scores in the order of the labels, from transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    if task is Task.TOKEN_CLASSIFICATION:
        network = transformers.AutoModelForTokenClassification.from_pretrained(model)
        with torch.inference_mode():
            logits = network(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        return torch.softmax(logits, -1).numpy().ravel()
    pipe = transformers.pipeline("text-classification", model=str(model), top_k=None, device="cpu")
    given = {"text": text} if text_pair is None else {"text": text, "text_pair": text_pair}
    found = {row["label"]: row["score"] for row in pipe(given, truncation=True)}
    return np.array([found[label] for label in LABELS[task]])


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_transformers(
    models: dict[Task, Path], unlabeled: dict[Task, Bundle], labeled: dict[Task, Bundle], task: Task
) -> None:
    for bundle in (unlabeled[task], labeled[task]):
        golden = bundle.golden()
        test = bundle.manifest.lineage.data.get("test")
        assert len(golden) == min(32, test.rows if test else len(SAMPLE_TEXTS))
        for line in golden[:12]:
            expected = reference_scores(models[task], task, line.text, line.text_pair)
            assert np.abs(np.array(line.scores["fp32"]) - expected).max() < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_without_data_verifies_and_says_what_was_not_measured(
    unlabeled: dict[Task, Bundle], task: Task
) -> None:
    bundle = open_bundle(unlabeled[task].folder)
    manifest = bundle.manifest
    assert manifest.task is task
    assert list(manifest.labels) == LABELS[task]
    assert (manifest.temperature, manifest.thresholds, manifest.abstention) == (1.0, None, None)
    assert manifest.text_pair == (task is Task.PAIR)
    assert [row.quality for row in manifest.metrics] == [None] * 4
    assert manifest.lineage.data == {}
    assert manifest.lineage.overlap == {}
    assert manifest.lineage.recipe["packed"]["files"]["model.safetensors"]
    for variant in ("fp32", "int8"):
        assert verify_variant(bundle, variant).inputs == 32
    assert {line.label for line in bundle.golden()} == {None}
    assert {(line.text_pair is None) for line in bundle.golden()} == {task is not Task.PAIR}
    card = bundle.path("README.md").read_text()
    assert "accuracy, per-label recall, calibration and slices were not measured" in card
    assert "golden inputs are unlabeled" in card
    assert "original FP32" in card
    assert "teacher" not in card
    assert "student" not in card


@pytest.mark.parametrize("task", TASKS)
def test_with_data_a_third_chooses_and_the_rest_measures(labeled: dict[Task, Bundle], task: Task) -> None:
    bundle = labeled[task]
    manifest = bundle.manifest
    rows = {name: found.rows for name, found in manifest.lineage.data.items()}
    assert set(rows) == {"validation", "test"}
    assert sum(rows.values()) == ROWS
    assert rows["validation"] == pytest.approx(ROWS / 3, abs=4)
    assert all(row.quality for row in manifest.metrics)
    assert manifest.metrics[1].quality.drop.value == 0  # type: ignore[union-attr]
    assert (manifest.temperature, manifest.thresholds) == (1.0, None)
    assert all(line.label is not None for line in bundle.golden())
    card = bundle.path("README.md").read_text()
    assert f"Measured on {rows['test']} test texts (whether its training saw them is not known here)" in card
    for variant in ("fp32", "int8"):
        verify_variant(bundle, variant)


def test_the_measured_accuracy_is_that_of_transformers(models: dict[Task, Path], labeled: dict[Task, Bundle]) -> None:
    bundle, labels = labeled[Task.SINGLE_LABEL], LABELS[Task.SINGLE_LABEL]
    golden = bundle.golden()  # the whole test split: it has fewer rows than golden inputs are drawn
    assert len(golden) == bundle.manifest.lineage.data["test"].rows
    right = [
        labels[reference_scores(models[Task.SINGLE_LABEL], Task.SINGLE_LABEL, line.text, None).argmax()] == line.label
        for line in golden
    ]
    quality = bundle.manifest.metrics[0].quality
    assert quality is not None
    assert quality.scores["accuracy"].value == pytest.approx(np.mean(right))


def test_packing_twice_gives_the_same_files(
    models: dict[Task, Path], unlabeled: dict[Task, Bundle], tmp_path: Path
) -> None:
    first, again = unlabeled[Task.PAIR], packed(models[Task.PAIR], tmp_path / "again")
    names = set(first.manifest.files) - {"README.md", "report.html"}  # both hold times
    assert {n: again.manifest.files[n] for n in names} == {n: first.manifest.files[n] for n in names}


def test_the_table_speaks_of_the_original(unlabeled: dict[Task, Bundle], labeled: dict[Task, Bundle]) -> None:
    for bundle in (unlabeled[Task.PAIR], labeled[Task.PAIR]):
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(stage_table(bundle.manifest.metrics, "", wording(bundle.manifest)))
        text = console.export_text()
        assert "original" in text
        assert "packed" in text
        assert "teacher" not in text


def test_calibration_is_fitted_when_it_is_asked_for(models: dict[Task, Path], tmp_path: Path) -> None:
    data = write_lines(tmp_path / "rows.jsonl", tiny_rows(ROWS, 6, Task.MULTI_LABEL))
    overrides = [*QUICK, "calibrate.temperature=true", "calibrate.thresholds=true", "quantize.fp16=false"]
    overrides += ["name=other", "version=1.10"]
    manifest = packed(models[Task.MULTI_LABEL], tmp_path / "out", data, overrides).manifest
    assert manifest.temperature != 1.0
    assert set(manifest.thresholds or {}) == set(LABELS[Task.MULTI_LABEL])
    assert (manifest.name, manifest.version) == ("other", "1.10")
    assert [variant.name for variant in manifest.variants] == ["int8", "fp32"]


def test_abstention_needs_one_label_a_text(models: dict[Task, Path], tmp_path: Path) -> None:
    data = write_lines(tmp_path / "rows.jsonl", tiny_rows(6, 6, Task.MULTI_LABEL))
    with pytest.raises(RecipeError, match="needs one label a text"):
        packed(models[Task.MULTI_LABEL], tmp_path / "out", data, ["calibrate.abstention_precision=0.9"])


def test_labels_are_renamed_in_the_models_order(models: dict[Task, Path], tmp_path: Path) -> None:
    bundle = packed(models[Task.SINGLE_LABEL], tmp_path / "out", labels=["good", "bad"], max_length=20)
    assert bundle.manifest.labels == ("good", "bad")
    assert bundle.manifest.max_length == 20
    line = bundle.golden()[0]
    expected = reference_scores(models[Task.SINGLE_LABEL], Task.SINGLE_LABEL, line.text, None)
    assert np.abs(np.array(line.scores["fp32"]) - expected).max() < 1e-4


def test_a_column_of_second_texts_makes_it_a_pair(models: dict[Task, Path], tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", Task.SINGLE_LABEL)
    rows = [row | {"text_pair": "the plot"} for row in tiny_rows(30, 7)]
    bundle = packed(model, tmp_path / "out", write_lines(tmp_path / "rows.jsonl", rows))
    assert bundle.manifest.task is Task.PAIR
    assert {line.text_pair for line in bundle.golden()} == {"the plot"}


def test_labels_that_the_data_lack_do_no_harm(models: dict[Task, Path], tmp_path: Path) -> None:
    rows = [row for row in tiny_rows(60, 8) if row["label"] == "negative"]
    manifest = packed(models[Task.SINGLE_LABEL], tmp_path / "out", write_lines(tmp_path / "rows.jsonl", rows)).manifest
    assert manifest.labels == ("positive", "negative")
    assert manifest.metrics[0].quality is not None


def test_tags_are_written_as_the_model_writes_them(tmp_path: Path) -> None:
    """Rows in IOB2; a model of BIOES."""
    labels = ["O", *(f"{prefix}-{name}" for name in ("STORY", "PRAISE", "BLAME") for prefix in "BIES")]
    model = save_tiny_model(tmp_path / "model", layers=1, labels=labels, task=Task.TOKEN_CLASSIFICATION)
    data = write_lines(tmp_path / "rows.jsonl", tiny_rows(30, 9, Task.TOKEN_CLASSIFICATION))
    bundle = packed(model, tmp_path / "out", data)
    tags = {tag for line in bundle.golden() for tag in (line.label or "").split()}
    assert "S-PRAISE" in tags
    assert {"B-STORY", "E-STORY"} <= tags
    assert not tags - set(labels)


# what goes wrong


def regression(folder: Path) -> Path:
    save_tiny_model(folder, layers=1, labels=["score"])
    return folder


def without_head(folder: Path) -> Path:
    model = tiny_classifier(layers=1)
    save_tiny_model(folder, layers=1)
    model.base_model.save_pretrained(folder)
    return folder


def head_only_in_words(folder: Path) -> Path:
    """The configuration speaks of a head that is not in the weights."""
    without_head(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertForSequenceClassification"]}))
    return folder


def foreign_tokenizer(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(9)])
    return save_tiny_model(folder, layers=1, tokenizer=tokenizer)


def without_padding(folder: Path) -> Path:
    save_tiny_model(folder, layers=1)
    tokenizer = tiny_tokenizer()
    tokenizer.no_padding()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


def damaged_config(folder: Path) -> Path:
    save_tiny_model(folder, layers=1)
    (folder / "config.json").write_text('{"model_type": "nobody-knows"}')
    return folder


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: folder / "nowhere", {}, "nowhere: no such folder"),
        (regression, {}, "found a regression model"),
        (without_head, {}, "found BertModel"),
        (head_only_in_words, {}, "its files lack 2 weights, such as classifier.bias"),
        (foreign_tokenizer, {}, "expected the tokenizer that belongs to the model"),
        (without_padding, {}, "no padding token"),
        (damaged_config, {}, "config.json cannot be read"),
        (partial(save_model, task=Task.SINGLE_LABEL), {"labels": ["one"]}, "--labels has 1 names"),
        (
            partial(save_model, task=Task.SINGLE_LABEL),
            {"task": "regression"},
            "--task is 'regression'; expected one of",
        ),
        (
            partial(save_model, task=Task.SINGLE_LABEL),
            {"task": "token-classification"},
            "cannot do token-classification",
        ),
        (partial(save_model, task=Task.SINGLE_LABEL), {"max_length": 99}, "--max-length is 99; expected 8 to 40"),
    ],
)
def test_a_model_that_cannot_be_packed_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, Any], message: str
) -> None:
    model = make(tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=message):
        packed(model, tmp_path / "made" / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (Task.SINGLE_LABEL, {"text": "good", "label": "neutral"}, "label 'neutral' is not among the model's"),
        (Task.MULTI_LABEL, {"text": "good", "labels": ["praise", "other"]}, "label 'other' is not among"),
        (Task.PAIR, {"text": "good", "label": "better"}, "no column 'text_pair'"),
        (Task.TOKEN_CLASSIFICATION, {"tokens": ["good"], "tags": ["B-PER"]}, "label 'B-PER' is not among"),
        (Task.TOKEN_CLASSIFICATION, {"tokens": ["good"], "tags": ["O", "O"]}, "found 1 words and 2 tags"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_named(
    models: dict[Task, Path], tmp_path: Path, task: Task, row: dict[str, Any], message: str
) -> None:
    data = write_lines(tmp_path / "rows.jsonl", [*tiny_rows(5, 1, task), row])
    with pytest.raises(DataError, match=f"rows.jsonl:6: {message}"):
        packed(models[task], tmp_path / "out", data)
    assert sorted(tmp_path.iterdir()) == [data]


def test_a_folder_that_is_no_bundle_is_left_alone(models: dict[Task, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("1")
    with pytest.raises(BundleError, match="holds files but no manifest"):
        packed(models[Task.SINGLE_LABEL], tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_a_failed_gate_leaves_an_older_bundle_as_it_was(models: dict[Task, Path], tmp_path: Path) -> None:
    first = packed(models[Task.SINGLE_LABEL], tmp_path / "out")
    with pytest.raises(GateError, match="is an earlier run's and was left as it is"):
        packed(models[Task.SINGLE_LABEL], tmp_path / "out", overrides=[*QUICK, "gate.max_size_mb=0.0001"])
    assert open_bundle(tmp_path / "out").manifest == first.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# through the command


def command(*arguments: object) -> Any:
    """Run `limbeck` in this process: no seconds for its imports."""
    return CliRunner().invoke(front_door.app, [str(argument) for argument in arguments])


def test_the_command_packs_and_its_bundle_verifies(
    models: dict[Task, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_lines(tmp_path / "rows.jsonl", tiny_rows(ROWS, 5))
    result = limbeck("pack", models[Task.SINGLE_LABEL], "--data", data, "--labels", "positive, negative", *QUICKLY)
    assert result.returncode == 0, result.stderr
    assert "15 validation, 30 test rows" in result.stdout
    assert "original" in result.stdout
    assert "accuracy" in result.stdout
    assert "limbeck serve bundles/single-label" in result.stdout
    assert result.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "rows.jsonl"]
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["single-label"]
    verified = command("verify", "bundles/single-label")
    assert verified.exit_code == 0, verified.output
    assert "golden, int8: 30 inputs hold" in verified.output
    shown = command("inspect", "bundles/single-label").output
    assert "original" in shown
    assert "teacher" not in shown


def test_the_command_says_what_it_did_not_measure(models: dict[Task, Path], tmp_path: Path) -> None:
    result = command("pack", models[Task.PAIR], "--out", tmp_path / "deep" / "out", *QUICKLY)
    assert result.exit_code == 0, result.output
    assert "quality was not measured, the golden inputs are unlabeled" in result.output
    assert "Sample texts" in command("inspect", tmp_path / "deep" / "out").output


def test_a_failed_gate_is_exit_code_3_and_no_bundle(models: dict[Task, Path], tmp_path: Path) -> None:
    arguments = ["pack", models[Task.SINGLE_LABEL], "--out", tmp_path / "made" / "out", *QUICKLY]
    arguments += ["--set", "gate.max_size_mb=0.0001"]
    failed = command(*arguments)
    assert failed.exit_code == 3
    assert "no variant passed the gate" in failed.output
    assert "file size" in failed.output
    assert not list(tmp_path.iterdir())
    forced = command(*arguments, "--force")
    assert forced.exit_code == 0, forced.output
    assert all(variant.forced for variant in open_bundle(tmp_path / "made" / "out").manifest.variants)


def test_ctrl_c_leaves_nothing(models: dict[Task, Path], tmp_path: Path) -> None:
    with started("pack", models[Task.SINGLE_LABEL], "--out", tmp_path / "made" / "out") as running:
        running.wait_until(lambda: bool(list(tmp_path.glob("made/.out.work.*/teacher.fp32.onnx"))))
        running.send(signal.SIGINT)
        result = running.result()
    assert result.returncode == 130
    assert result.stderr.strip() == "stopped; nothing was written"
    assert not list(tmp_path.iterdir())


def test_a_bad_model_is_one_message_without_a_trace(tmp_path: Path) -> None:
    result = command("pack", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output == f"error: {tmp_path / 'nowhere'}: no such folder\n"


# the same answers from the files that are served, batch by batch


def test_what_is_packed_serves_in_batches(unlabeled: dict[Task, Bundle]) -> None:
    bundle = unlabeled[Task.SINGLE_LABEL]
    tokenizer = Tokenizer(bundle.path("tokenizer.json"), bundle.manifest.max_length)
    session = Session(bundle.path("model.int8.onnx"), labels=2)
    encodings = tokenizer.encode(list(SAMPLE_TEXTS))
    together = session.run(pad(encodings, tokenizer.pad_id))
    alone = np.concatenate([session.run(pad([encoding], tokenizer.pad_id)) for encoding in encodings])
    assert together.tobytes() == alone.tobytes()
