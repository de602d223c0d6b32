"""The recipe refuses what it does not know and says what it does."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from compress.errors import RecipeError
from compress.recipe import Data
from compress.recipe_file import load_recipe, located

MINIMAL = "name: x\ndata: {folder: d}\nteacher: {model: m}\nstudent: {layers: 2}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_defaults_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["distill.epochs=7", "distill.learning_rate=5e-5", "student.layers=[0, 3]", "seed=1"])
    assert recipe.distill.epochs == 7
    assert recipe.distill.learning_rate == 5e-5
    assert recipe.student.layers == (0, 3)
    assert recipe.seed == 1
    assert load_recipe(path).distill.loss == "mse"


def test_a_whole_number_is_a_version(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, MINIMAL + "version: 2\n")).version == "2"


@pytest.mark.parametrize("task", ["single-label", "multi-label", "pair", "token-classification"])
def test_every_task_is_known(tmp_path: Path, task: str) -> None:
    assert load_recipe(write(tmp_path, MINIMAL + f"task: {task}\n")).task == task


def test_an_override_makes_the_parts_it_needs(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["teacher.fine_tune.epochs=2"])
    assert recipe.teacher.fine_tune is not None
    assert recipe.teacher.fine_tune.epochs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "distil: {}\n", "distil: unknown key; did you mean 'distill'?"),
        (MINIMAL + "distill: {epoch: 1}\n", "distill.epoch: unknown key; did you mean 'epochs'?"),
        (MINIMAL + "teacher: {model: m, fine_tune: {lerning_rate: 1}}\n", "did you mean 'learning_rate'?"),
        (MINIMAL + "quantize: {zzz: 1}\n", "quantize.zzz: unknown key; known keys: candidates, fp16, weight_bits"),
        (
            MINIMAL + "data: {folder: d, max_length: 40}\ntarget: {latency_ms: 2, tokens: 64}\n",
            "target.tokens: found 64; expected at most data.max_length, 40",
        ),
        (MINIMAL + "seed: -1\n", "seed: Input should be greater than or equal to 0 (found -1)"),
        (MINIMAL + "export: {opset: 11}\n", "export.opset"),
        (MINIMAL + "task: multi\n", "task: Input should be 'single-label', 'multi-label', 'pair' or"),
        (MINIMAL + "distill: {intermediate: {hiden: 1}}\n", "distill.intermediate.hiden: unknown key; did you mean"),
        (MINIMAL + "distill: {hard_label_weight: 2}\n", "distill.hard_label_weight"),
        (MINIMAL + "distill: {augment: {copies: -1}}\n", "distill.augment.copies"),
        (MINIMAL + "quantize: {candidates: []}\n", "quantize.candidates"),
        (MINIMAL + "quantize: {candidates: [dynamic]}\n", "quantize.candidates.0"),
        (MINIMAL + "gate: {max_accuracy_drop: 0.1}\n", "gate.max_accuracy_drop: unknown key; did you mean"),
        (MINIMAL + "data: {folder: d, tag_scheme: IOB}\n", "data.tag_scheme"),
        (MINIMAL + "student: {layers: 2, heads: 4}\n", "heads belongs to hidden_size, which is not given"),
        (
            MINIMAL + "teacher: {model: m, fine_tune: {lora: {rank: 4}, fgm_epsilon: 1}}\n",
            "fgm_epsilon needs gradients of the word embeddings, which lora freezes",
        ),
        (
            MINIMAL + "task: multi-label\ncalibrate: {abstention_precision: 0.9}\n",
            "abstention_precision needs one label a text",
        ),
        ("name: x\ndata: {folder: d}\nteacher: {model: m}\n", "student: Field required"),
        ("name: x\ndata: {}\nteacher: {model: m}\nstudent: {layers: 2}\n", "exactly one of folder, train or file"),
        ("name: x\ndata: {train: a}\nteacher: {model: m}\nstudent: {layers: 2}\n", "validation and test must be given"),
        (
            "name: x\nteacher: {model: m}\nstudent: {layers: 2}\ndata: {file: a, split: {test: 0.5, validation: 0.5}}",
            "expected less than 1",
        ),
        (MINIMAL + "distill: {temperature: 2}\n", "temperature belongs to loss kl"),
        (MINIMAL + f"seed: {2**32}\n", "seed"),
        (MINIMAL + "version: 1.1\n", "version: Input should be a valid string (found 1.1)"),
        ("name: x\ndata: {folder: d, test: t}\nteacher: {model: m}\nstudent: {layers: 2}\n", "belong to train"),
        ("name: x\ndata: {folder: d, split: {}}\nteacher: {model: m}\nstudent: {layers: 2}\n", "belongs to file"),
        ("- a list\n", "expected a mapping of keys, found list"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_recipe_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize("override", ["seed", "=3", "name.part=3"])
def test_a_wrong_override_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(write(tmp_path, MINIMAL), [override])


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8 at byte 9"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    with pytest.raises(ValidationError):
        recipe.distill.epochs = 9


def test_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    data = located(Data(train=Path("a.csv"), validation=Path("/b.csv"), test=Path("c.csv")), tmp_path)
    assert (data.train, data.validation, data.folder) == (tmp_path / "a.csv", Path("/b.csv"), None)
