"""The recipe: frozen models that refuse what they do not know."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bundle.manifest import Name, Task
from compress.recipe_part import Part
from compress.recipe_target import Prune, Target, Vocabulary
from compress.recipe_training import (
    Distill,
    Student,
    Teacher,
)


class Columns(Part):
    """Names of the columns in the data files; which are read depends on the task."""

    text: str = "text"
    text_pair: str = Field(default="text_pair", description="the second text, task pair")
    label: str = Field(default="label", description="tasks single-label and pair")
    labels: str = Field(default="labels", description="a list (in CSV: `a|b`), task multi-label")
    tokens: str = Field(
        default="tokens", description="a list of words (in CSV: with spaces), task token-classification"
    )
    tags: str = Field(default="tags", description="a tag for each word, such as B-LOC, task token-classification")
    slice: str | None = Field(default=None, description="any column: quality is reported for each of its values, too")


class Split(Part):
    """Shares of one file that become validation and test rows; the rest is for training."""

    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test}; expected less than 1")
        return self


class Data(Part):
    """Where the examples are: a folder, three files, or one file to split."""

    folder: Path | None = Field(default=None, description="holds train, validation and test, and may hold unlabeled")
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    unlabeled: Path | None = Field(default=None, description="texts without labels, used in distillation")
    file: Path | None = Field(default=None, description="one file, split by seed and stratified by label")
    split: Split = Split()
    columns: Columns = Columns()
    tag_scheme: Literal["auto", "IOB1", "IOB2", "BIOES"] = Field(
        default="auto", description="how tags mark where an entity begins; auto finds out; models learn IOB2"
    )
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


class Export(Part):
    """The ONNX export."""

    opset: int = Field(default=18, ge=18, le=23, description="version of the ONNX operators")


class Quantize(Part):
    """INT8 and half precision."""

    candidates: tuple[Literal["per-token", "static", "weight-only"], ...] = Field(
        default=("per-token", "static"),
        min_length=1,
        description="INT8 methods to try; the fastest that holds the gate on validation is kept",
    )
    fp16: bool = Field(default=True, description="a half-precision variant for CUDA")
    weight_bits: Literal[7, 8] = Field(default=8, description="7 avoids saturation on x86 CPUs without VNNI")
    embeddings: bool = Field(default=True, description="store word embeddings as int8 with one scale a row")
    calibration_texts: int = Field(default=512, ge=8, description="training texts that static's scales are taken from")
    fall_back: bool = Field(
        default=True, description="when the gate fails on validation, the most sensitive matrices go back to float"
    )


class Calibrate(Part):
    """What is fitted on the validation split and stands in the bundle."""

    temperature: bool = Field(default=True, description="scale logits so that scores are probabilities")
    thresholds: bool = Field(default=True, description="multi-label: each label's best threshold instead of 0.5")
    abstention_precision: float | None = Field(
        default=None, gt=0, lt=1, description="state the score from which answers are right this often"
    )


class Evaluate(Part):
    """What is measured on the test split."""

    bootstrap_samples: int = Field(default=1000, ge=100, description="resamples for the 95 % intervals")
    latency_texts: int = Field(default=128, ge=1, description="texts per latency round")
    latency_rounds: int = Field(default=7, ge=3, description="interleaved rounds; the median is reported")
    invariance_texts: int = Field(default=500, ge=1, description="texts whose scores must not depend on batch mates")
    golden_inputs: int = Field(default=32, ge=1, description="test texts whose scores go into the bundle")
    baselines: bool = Field(default=True, description="also measure what the student must beat to be worth its time")


class Gate(Part):
    """What a variant must keep to be shipped; a limit that is null is not checked."""

    max_quality_drop: float = Field(default=0.03, ge=0, description="of the task's metric, below the teacher's")
    max_recall_drop: float | None = Field(default=None, ge=0, description="of any label, below the teacher's")
    max_slice_drop: float | None = Field(default=None, ge=0, description="of the task's metric on the worst slice")
    min_slice_texts: int = Field(default=30, ge=1, description="smaller slices are not judged")
    max_label_flips: float | None = Field(
        default=0.02, ge=0, le=1, description="decisions of a variant that differ from the FP32 student's"
    )
    batch_invariance: bool = Field(default=True, description="INT8 scores must not depend on batch mates, bit by bit")
    max_calibration_error: float | None = Field(default=None, ge=0, le=1, description="ECE after calibration")
    max_size_mb: float | None = Field(default=None, gt=0, description="of the ONNX file")
    max_latency_ms: float | None = Field(default=None, gt=0, description="of one text, on one thread")
    decide_by: Literal["value", "bound"] = Field(
        default="value", description="hold limits against the measured value, or the bad end of its 95 % interval"
    )


class Report(Part):
    """What the bundle's `report.html` shows."""

    texts: int = Field(
        default=20, ge=0, le=20, description="test texts, at most, in each list of mistakes; 0: no text of the data"
    )


class Range(Part):
    """Numbers to search in: whole ones where both ends are."""

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="on a logarithmic scale")

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low below high, and above 0 with log; found {self.low} and {self.high}")
        return self


class Tune(Part):
    """What `limbeck tune` searches; `limbeck compress` does not read it."""

    space: dict[str, Range | tuple[Any, ...]] = Field(
        min_length=1, description="a key such as distill.learning_rate -> a list of values, or low, high and log"
    )


def _whole_number_as_text(value: Any) -> Any:
    """Take `version: 2` as it is meant; 1.10 would have lost its zero to YAML and must be quoted."""
    return str(value) if type(value) is int else value


class Recipe(Part):
    """Everything that decides the outcome of `limbeck compress`."""

    name: Name
    version: Annotated[Name, BeforeValidator(_whole_number_as_text)] = "1"
    task: Task = Task.SINGLE_LABEL
    seed: int = Field(default=13, ge=0, lt=2**32)
    data: Data
    teacher: Teacher
    student: Student
    distill: Distill = Distill()
    vocabulary: Vocabulary | None = Field(default=None, description="absent: the student keeps its vocabulary")
    target: Target | None = Field(default=None, description="absent: the student is not pruned")
    prune: Prune = Prune()
    export: Export = Export()
    quantize: Quantize = Quantize()
    calibrate: Calibrate = Calibrate()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    report: Report = Report()
    tune: Tune | None = None
    price_per_core_hour: float | None = Field(
        default=None, gt=0, description="in any currency; the report then states money per million texts"
    )

    @model_validator(mode="after")
    def _abstention_needs_one_answer(self) -> "Recipe":
        if self.task is Task.MULTI_LABEL and self.calibrate.abstention_precision is not None:
            raise ValueError("calibrate.abstention_precision needs one label a text; found task multi-label")
        return self

    @model_validator(mode="after")
    def _the_llm_can_label(self) -> "Recipe":
        llm = self.teacher.llm
        if llm is not None and self.task is Task.TOKEN_CLASSIFICATION:
            raise ValueError(
                "teacher.llm labels whole texts; found task token-classification, which needs a tag a word"
            )
        if llm is not None and llm.prompt is not None and (self.task is Task.PAIR) != ("{text_pair}" in llm.prompt):
            raise ValueError(f"teacher.llm.prompt: {{text_pair}} belongs to task pair; found task {self.task.value}")
        return self

    @model_validator(mode="after")
    def _prune_has_a_target(self) -> "Recipe":
        if self.target is None and "prune" in self.model_fields_set:
            raise ValueError("prune says how target is reached; target is not given")
        return self

    @model_validator(mode="after")
    def _target_can_be_read(self) -> "Recipe":
        target, longest = self.target, self.data.max_length
        if target is not None and target.latency_ms is not None and target.tokens > longest:
            raise ValueError(f"target.tokens: found {target.tokens}; expected at most data.max_length, {longest}")
        return self

    @model_validator(mode="after")
    def _vocabulary_fits(self) -> "Recipe":
        if self.vocabulary and self.vocabulary.embedding_rank is not None and self.distill.fgm_epsilon:
            raise ValueError("distill.fgm_epsilon moves word embeddings, which embedding_rank replaces; leave one out")
        return self
