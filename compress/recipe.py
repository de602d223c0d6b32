"""The recipe: a YAML file read into frozen models that refuse what they do not know."""

import difflib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bundle.manifest import Name, Task
from compress.errors import RecipeError

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(_Part):
    """Names of the columns in the data files."""

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"


class Split(_Part):
    """Shares of one file that become validation and test rows; the rest is for training."""

    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test}; expected less than 1")
        return self


class Data(_Part):
    """Where the examples are: a folder, three files, or one file to split."""

    folder: Path | None = Field(default=None, description="holds train, validation and test, and may hold unlabeled")
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    unlabeled: Path | None = Field(default=None, description="texts without labels, used in distillation")
    file: Path | None = Field(default=None, description="one file, split by seed and stratified by label")
    split: Split = Split()
    columns: Columns = Columns()
    max_length: int = Field(default=128, ge=8, description="tokens, specials included; longer texts are cut")
    min_rows_per_label: int = Field(default=8, ge=2, description="training rows that each label must have")
    limit: int | None = Field(default=None, ge=1, description="keep only N rows of each split, drawn by seed")

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        given = [name for name in ("folder", "train", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of folder, train or file; found {given or 'none'}")
        others = ("validation", "test")
        missing = [name for name in others if getattr(self, name) is None]
        if given == ["train"] and missing:
            raise ValueError(f"with train, {' and '.join(missing)} must be given too (or use file, which is split)")
        if given != ["train"] and len(missing) < len(others):
            raise ValueError(f"validation and test belong to train; {given[0]} says where they are")
        if given != ["file"] and "split" in self.model_fields_set:
            raise ValueError(f"split belongs to file; with {given[0]} the splits are there already")
        return self


class Training(_Part):
    """How a model is trained: AdamW with linear warm-up and decay."""

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1, description="texts per optimizer step")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="texts per forward pass; gradients are accumulated up to batch_size"
    )
    learning_rate: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_ratio: Fraction = Field(default=0.1, description="share of the steps in which the rate rises")
    max_grad_norm: float = Field(default=1.0, gt=0)
    patience: int = Field(default=2, ge=1, description="epochs without a better validation score before stopping")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="autocast; auto takes a half precision only where this device gains from it"
    )
    checkpoint_seconds: float = Field(default=60, ge=0, le=120, description="longest work lost to a kill")


class Teacher(_Part):
    """The model to learn from."""

    model: str = Field(description="a local folder, a hub id, or package:NAME for an installed package with weights")
    fine_tune: Training | None = Field(default=None, description="absent: the teacher is used as it is")


class Student(_Part):
    """The small model: some layers of a pre-trained encoder."""

    init: str = Field(default="teacher", description="whose layers are taken: teacher, or a model as in teacher.model")
    layers: int | tuple[int, ...] = Field(description="how many layers, evenly spaced, or which ones (from 0)")


class Distill(Training):
    """How the student is taught."""

    loss: Literal["mse", "kl"] = "mse"
    temperature: float = Field(default=1.0, gt=0, description="of the kl loss")
    hard_label_weight: float = Field(default=0.0, ge=0, le=1, description="share of cross-entropy with true labels")

    @model_validator(mode="after")
    def _temperature_is_read(self) -> "Distill":
        if self.loss != "kl" and self.temperature != 1:
            raise ValueError(f"temperature belongs to loss kl; found it with loss {self.loss}")
        return self


class Export(_Part):
    """The ONNX export."""

    opset: int = Field(default=18, ge=18, le=23, description="version of the ONNX operators")


class Quantize(_Part):
    """Per-token INT8."""

    weight_bits: Literal[7, 8] = Field(default=8, description="7 avoids saturation on x86 CPUs without VNNI")
    embeddings: bool = Field(default=True, description="store word embeddings as int8 with one scale a row")


class Evaluate(_Part):
    """What is measured on the test split."""

    bootstrap_samples: int = Field(default=1000, ge=100, description="resamples for the 95 % intervals")
    latency_texts: int = Field(default=128, ge=1, description="texts per latency round")
    latency_rounds: int = Field(default=7, ge=3, description="interleaved rounds; the median is reported")
    invariance_texts: int = Field(default=500, ge=1, description="texts whose scores must not depend on batch mates")
    golden_inputs: int = Field(default=32, ge=1, description="test texts whose scores go into the bundle")


class Gate(_Part):
    """What a variant must keep to be shipped."""

    max_accuracy_drop: float = Field(default=0.03, ge=0, description="below the teacher, on the test split")
    min_agreement: float = Field(default=0.98, ge=0, le=1, description="INT8 labels that equal the FP32 student's")


def _whole_number_as_text(value: Any) -> Any:
    """Take `version: 2` as it is meant; 1.10 would have lost its zero to YAML and must be quoted."""
    return str(value) if type(value) is int else value


class Recipe(_Part):
    """Everything that decides the outcome of `limbeck compress`."""

    name: Name
    version: Annotated[Name, BeforeValidator(_whole_number_as_text)] = "1"
    task: Literal[Task.SINGLE_LABEL, Task.PAIR] = Task.SINGLE_LABEL
    seed: int = Field(default=13, ge=0, lt=2**32)
    data: Data
    teacher: Teacher
    student: Student
    distill: Distill = Distill()
    export: Export = Export()
    quantize: Quantize = Quantize()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; `overrides` are `dotted.key=value` pairs whose values are read as YAML.

    Raises RecipeError.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: expected a mapping of keys, found {type(document).__name__}")
    for override in overrides or []:
        _apply(document, override)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {problem}" for problem in _problems(error))) from error


def located(data: Data, folder: Path) -> Data:
    """Return `data` with its paths taken from `folder`, the recipe's own; a recipe keeps no machine's paths."""
    fields = ("folder", "train", "validation", "test", "unlabeled", "file")
    values = {name: getattr(data, name) for name in fields}
    return data.model_copy(update={name: folder / value for name, value in values.items() if value is not None})


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: expected key=value, for example distill.epochs=2")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {parent} holds {child!r}, not a mapping of keys")
        target = child
    target[last] = value


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            problems.append(_unknown_key(location))
        else:
            found = "" if problem["type"] in ("missing", "value_error") else f" (found {problem['input']!r})"
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{'.'.join(location) or 'recipe'}: {message}{found}")
    return problems


def _unknown_key(location: list[str]) -> str:
    model: type[BaseModel] | None = Recipe
    for part in location[:-1]:
        model = _model_of(model.model_fields[part].annotation) if model and part in model.model_fields else None
    known = list(model.model_fields) if model else []
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{'.'.join(location)}: unknown key; {hint}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((model for option in get_args(annotation) if (model := _model_of(option))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
