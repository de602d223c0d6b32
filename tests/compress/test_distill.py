"""Every way of teaching a student runs and teaches; students that cannot be taught are named before they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bundle import Task
from compress import distill, targets, teacher
from compress.batches import predict_all
from compress.data import load_splits
from compress.errors import ModelError
from compress.recipe import Data
from compress.recipe_training import Lora
from compress.stage import CHECKPOINTS
from compress.student import make_student
from compress.tasks import SPECS
from service.engine.tokenization import Tokenizer
from tests.support.bundles import tiny_tokenizer
from tests.support.command import limbeck
from tests.support.models import save_tiny_model, write_tiny_recipe
from tests.support.runs import Finished, reopened, stage_folder
from tests.support.tokenizers import wordpiece

DONE = ("teacher", "targets")


def distilled(finished: Finished, folder: Path, *overrides: str) -> tuple[Any, dict[str, Any]]:
    run = reopened(finished, folder, DONE, overrides)
    return run, distill.run(run, stage_folder(run, "distill"))


def distance(run: Any, model: torch.nn.Module, tokenizer: Path) -> float:
    """Mean squared difference of a model's logits on the transfer set from the teacher's."""
    examples = targets.transfer_set(run, run.folder("targets"))
    encoded = run.spec.encode(Tokenizer(tokenizer, run.recipe.data.max_length), examples, run.splits.labels)
    kept = np.load(run.folder("targets") / targets.LOGITS)
    return float(np.square(predict_all(model, encoded, 0) - kept).mean())


OPTIONS = {
    "mse": [],
    "kl": ["distill.loss=kl", "distill.temperature=3"],
    "hard labels": ["distill.hard_label_weight=0.5"],
    "kl and hard labels": ["distill.loss=kl", "distill.hard_label_weight=0.3"],
    "hidden": ["distill.intermediate.hidden=0.5"],
    "embedding": ["distill.intermediate.embedding=0.5"],
    "relation": ["distill.intermediate.relation=0.5"],
    "attention": ["distill.intermediate.attention=0.1"],
    "all of them": [f"distill.intermediate.{name}=0.1" for name in ("hidden", "embedding", "relation", "attention")],
    "fgm": ["distill.fgm_epsilon=0.3"],
    "r_drop": ["distill.r_drop=0.5"],
    "micro-batches": ["distill.micro_batch_size=5"],
    "narrower": ["student.hidden_size=32", "student.heads=2"],
    "narrower, with a projection": [
        *("student.hidden_size=32", "student.heads=2", "distill.intermediate.hidden=0.1", "distill.learning_rate=5e-3"),
    ],
    "quantization-aware": ["distill.quantization_aware_epochs=2"],
}


ALWAYS = ("mse", "all of them", "narrower, with a projection", "quantization-aware")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name in ALWAYS else pytest.mark.slow)
        for name, options in OPTIONS.items()
    ],
)
def test_every_option_teaches(finished: Callable[[str], Finished], tmp_path: Path, options: list[str]) -> None:
    """The student comes nearer to its teacher and answers well above chance."""
    run, summary = distilled(finished("single-label"), tmp_path, *options)
    folder = run.folder("distill")
    own = Tokenizer(folder / distill.TOKENIZER, 32)
    student = AutoModelForSequenceClassification.from_pretrained(folder / distill.MODEL).eval()
    taught_by = AutoModelForSequenceClassification.from_pretrained(run.folder("teacher") / teacher.MODEL)
    untaught, _ = make_student(run, taught_by, run.folder("teacher") / teacher.TOKENIZER, tmp_path / "tokenizer.json")
    before = distance(run, untaught, folder / distill.TOKENIZER)
    after = distance(run, student, folder / distill.TOKENIZER)
    assert after < 0.7 * before
    assert summary["validation_score"] > 0.75  # chance gives 0.5
    assert summary["texts"] == 300
    assert sum(p.numel() for p in student.parameters()) == summary["parameters"]
    validate = teacher.validation_score(run.spec, own, run.splits.validation, run.splits.labels)
    best = summary.get("quantization_aware", summary)["validation_score"]
    if "quantization_aware" not in summary:  # whose score is that of the rounded weights
        assert validate(student) == pytest.approx(best)
    assert abs(validate(student) - best) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("task", [Task.MULTI_LABEL, Task.PAIR, Task.TOKEN_CLASSIFICATION])
@pytest.mark.parametrize(
    "options",
    [
        ["distill.loss=kl", "distill.temperature=2", "distill.hard_label_weight=0.5"],
        ["distill.r_drop=0.3", "distill.fgm_epsilon=0.2", "distill.intermediate.hidden=0.2"],
        ["distill.quantization_aware_epochs=1", "distill.micro_batch_size=5"],
    ],
    ids=["kl and hard labels", "regularized, hidden", "quantization-aware"],
)
def test_every_task_can_be_taught_so(
    finished: Callable[[str], Finished], tmp_path: Path, task: Task, options: list[str]
) -> None:
    _, summary = distilled(finished(task), tmp_path, *options)
    assert summary["validation_score"] > 0.7


def test_the_same_recipe_gives_the_same_student(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    run, _ = distilled(finished("single-label"), tmp_path)
    expected = finished("single-label").out / "work/distill/model/model.safetensors"
    assert (run.folder("distill") / "model/model.safetensors").read_bytes() == expected.read_bytes()


def test_quantization_aware_weights_move_and_stay_float(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    run, summary = distilled(finished("single-label"), tmp_path, "distill.quantization_aware_epochs=1")
    kind = AutoModelForSequenceClassification
    aware = kind.from_pretrained(run.folder("distill") / "model").state_dict()
    plain = kind.from_pretrained(finished("single-label").out / "work/distill/model").state_dict()
    assert aware.keys() == plain.keys()
    changes = [float((aware[name] - plain[name]).abs().max()) for name in plain]
    assert 0 < max(changes) < 0.05  # at a tenth of the rate
    assert summary["quantization_aware"]["epochs"] == 1
    assert summary["epochs"] == 5


def other_tokenizer() -> FastTokenizer:
    """The same words with other ids."""
    document = json.loads(tiny_tokenizer().to_str())
    vocabulary = document["model"]["vocab"]
    words = list(vocabulary)
    document["model"]["vocab"] = {word: i for i, word in enumerate([*words[:4], *reversed(words[4:])])}
    return FastTokenizer.from_str(json.dumps(document))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer is not the teacher's."""
    return save_tiny_model(tmp_path_factory.mktemp("stranger"), layers=1, seed=9, tokenizer=other_tokenizer())


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.PAIR, Task.TOKEN_CLASSIFICATION])
def test_a_student_with_another_tokenizer(
    finished: Callable[[str], Finished], stranger: Path, tmp_path: Path, task: Task
) -> None:
    """Rows are texts or words, so only those must be the same; the student keeps its own tokenizer."""
    run, summary = distilled(finished(task), tmp_path, f"student.init={stranger}", "distill.learning_rate=4e-3")
    own = FastTokenizer.from_file(str(run.folder("distill") / distill.TOKENIZER))
    assert own.get_vocab() == AutoTokenizer.from_pretrained(stranger).get_vocab()
    assert own.get_vocab() != tiny_tokenizer().get_vocab()
    assert summary["validation_score"] > 0.7


def test_a_tagger_whose_tokenizer_cuts_texts_elsewhere_becomes_a_bundle(tmp_path: Path) -> None:
    """It splits words into pieces, so it sees fewer of them than its teacher; from the recipe to a bundle."""
    pieces = save_tiny_model(
        tmp_path / "pieces", layers=1, seed=9, tokenizer=wordpiece(), vocabulary=wordpiece().get_vocab_size()
    )
    recipe = write_tiny_recipe(tmp_path, Task.TOKEN_CLASSIFICATION, student={"init": str(pieces), "layers": 1})
    result = limbeck("compress", recipe, "--out", tmp_path / "out", "--set", "data.max_length=8", "--force")
    assert result.returncode == 0, result.stderr + result.stdout
    assert limbeck("verify", tmp_path / "out/bundle").returncode == 0
    spec = SPECS[Task.TOKEN_CLASSIFICATION]
    splits = load_splits(Data(folder=tmp_path / "data"), 13, spec)
    students, teachers = (
        spec.encode(Tokenizer(tmp_path / "out/work" / stage / "tokenizer.json", 8), splits.train, splits.labels)
        for stage in ("distill", "teacher")
    )
    assert students.first[-1] < teachers.first[-1]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (Task.TOKEN_CLASSIFICATION, ["distill.intermediate.hidden=1"]),
        (Task.SINGLE_LABEL, ["distill.intermediate.hidden=1"]),
        (Task.SINGLE_LABEL, ["distill.intermediate.relation=1"]),
    ],
)
def test_what_is_compared_token_by_token_needs_one_tokenizer(
    finished: Callable[[str], Finished], stranger: Path, tmp_path: Path, task: Task, options: list[str]
) -> None:
    with pytest.raises(ModelError, match=r"is not the teacher's .*; take a student with the teacher's tokenizer"):
        distilled(finished(task), tmp_path, f"student.init={stranger}", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["student.layers=5"], "the model has 2 layers"),
        (["student.hidden_size=64"], "expected a smaller width that the heads divide"),
        (["student.hidden_size=32", "student.heads=3"], "found 32 with 3 heads"),
        (
            ["student.hidden_size=32", "student.heads=2", "distill.intermediate.attention=1"],
            "compares heads one to one",
        ),
        (["distill.intermediate.layer_map=[5]", "distill.intermediate.hidden=1"], "the layer map is"),
        (
            ["distill.intermediate.relation=1", "distill.intermediate.relation_heads=7"],
            "7 relation heads do not divide",
        ),
        (["distill.intermediate.relation=1", "distill.intermediate.relation_layer=2"], "the relation layer is 2"),
        (["student.init=./nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_student_that_cannot_be_taught_is_named_before_its_teacher_is_trained(
    finished: Callable[[str], Finished], tmp_path: Path, options: list[str], message: str
) -> None:
    run = reopened(finished("single-label"), tmp_path, (), options)
    with pytest.raises(ModelError, match=message):
        teacher.run(run, stage_folder(run, "teacher"))
    assert not (run.folder("teacher") / CHECKPOINTS).exists()
    with pytest.raises(ModelError, match=message):  # where the teacher was there already
        distilled(finished("single-label"), tmp_path / "later", *options)


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.TOKEN_CLASSIFICATION])
def test_a_teacher_of_adapters_is_a_plain_model_in_the_end(
    finished: Callable[[str], Finished], tmp_path: Path, task: Task
) -> None:
    run = reopened(
        finished(task), tmp_path, (), ["teacher.fine_tune.lora.rank=8", "teacher.fine_tune.learning_rate=1e-2"]
    )
    assert run.recipe.teacher.fine_tune.lora == Lora()
    summary = teacher.run(run, stage_folder(run, "teacher"))
    assert summary["validation_score"] > 0.7
    own = Tokenizer(run.folder("teacher") / teacher.TOKENIZER, 32)
    kind = run.spec.model_class
    merged = kind.from_pretrained(run.folder("teacher") / teacher.MODEL).eval()
    assert not any("lora" in name for name in merged.state_dict())
    validate = teacher.validation_score(run.spec, own, run.splits.validation, run.splits.labels)
    assert validate(merged) == pytest.approx(summary["validation_score"])


@pytest.mark.parametrize("option", ["fgm_epsilon=0.3", "r_drop=0.5", "micro_batch_size=5"])
def test_a_teacher_is_fine_tuned_with_every_option(
    finished: Callable[[str], Finished], tmp_path: Path, option: str
) -> None:
    run = reopened(finished("multi-label"), tmp_path, (), [f"teacher.fine_tune.{option}"])
    assert teacher.run(run, stage_folder(run, "teacher"))["validation_score"] > 0.7


def test_a_teacher_that_is_used_as_it_is(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    labels = ["positive", "negative"]  # in another order than the data's
    save_tiny_model(tmp_path / "tuned", layers=2, labels=labels, seed=3)
    known = ["teacher.fine_tune=null", f"teacher.model={tmp_path / 'tuned'}"]
    run = reopened(finished("single-label"), tmp_path / "out", (), known)
    assert set(teacher.run(run, stage_folder(run, "teacher"))) == {"model", "parameters"}
    kept = AutoModelForSequenceClassification.from_pretrained(run.folder("teacher") / teacher.MODEL).eval()
    original = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").eval()
    inputs = torch.tensor([[2, 5, 7, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(kept(inputs).logits, original(inputs).logits.flip(1))
    assert kept.config.id2label == {0: "negative", 1: "positive"}
