"""The recipe: frozen models that refuse what they do not know."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bundle.manifest import Name, Task
from compress.recipe_llm import Llm
from compress.recipe_target import Prune, Target, Vocabulary

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(_Part):
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


class Training(_Part):
    """How a model is trained: AdamW with linear warm-up and decay."""

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1, description="texts per optimizer step")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="texts per forward pass; gradients are accumulated up to batch_size"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="layers keep their inputs alone and run again backward: less memory, more time"
    )
    learning_rate: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_ratio: Fraction = Field(default=0.1, description="share of the steps in which the rate rises")
    max_grad_norm: float = Field(default=1.0, gt=0)
    patience: int = Field(default=2, ge=1, description="epochs without a better validation score before stopping")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="autocast; auto takes a half precision only where this device gains from it"
    )
    fgm_epsilon: float = Field(default=0.0, ge=0, description="size of adversarial steps on word embeddings; 0: none")
    r_drop: float = Field(
        default=0.0, ge=0, description="weight of the KL between two dropout passes (α/2 of R-Drop); 0: none"
    )
    checkpoint_seconds: float = Field(default=60, ge=0, le=120, description="longest work lost to a kill")


class Lora(_Part):
    """Low-rank adapters: fine-tuning a big teacher in less memory; they are merged into its weights afterwards."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0, description="the adapters' outputs are scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class FineTune(Training):
    """How the teacher is fine-tuned."""

    lora: Lora | None = Field(default=None, description="absent: all weights are trained")

    @model_validator(mode="after")
    def _embeddings_are_trained(self) -> "FineTune":
        if self.lora is not None and self.fgm_epsilon:
            raise ValueError("fgm_epsilon needs gradients of the word embeddings, which lora freezes; leave one out")
        return self


class OneTeacher(_Part):
    """A model that the student learns from."""

    model: str = Field(description="a local folder, a hub id, or package:NAME for an installed package with weights")
    fine_tune: FineTune | None = Field(default=None, description="absent: the teacher is used as it is")
    weight: float = Field(default=1.0, gt=0, description="of its logits in the average of all teachers")


class Teacher(OneTeacher):
    """The model to learn from, which the student is compared with; others may have their say in what it learns."""

    others: tuple[OneTeacher, ...] = Field(default=(), description="more teachers: model, fine_tune and weight each")
    llm: Llm | None = Field(default=None, description="a language model that labels the unlabeled texts")


class Student(_Part):
    """The small model: some layers of a pre-trained encoder, perhaps narrower."""

    init: str = Field(default="teacher", description="whose layers are taken: teacher, or a model as in teacher.model")
    layers: int | tuple[int, ...] = Field(description="how many layers, evenly spaced, or which ones (from 0)")
    hidden_size: int | None = Field(default=None, ge=8, description="narrower: principal components of the weights")
    heads: int | None = Field(default=None, ge=1, description="with hidden_size; absent: 64 wide each")
    intermediate_size: int | None = Field(default=None, ge=8, description="with hidden_size; absent: 4 × hidden_size")

    @model_validator(mode="after")
    def _width_is_given(self) -> "Student":
        for name in ("heads", "intermediate_size"):
            if getattr(self, name) is not None and self.hidden_size is None:
                raise ValueError(f"{name} belongs to hidden_size, which is not given")
        return self


class Augment(_Part):
    """More texts for distillation, made from the training texts and labeled by the teacher."""

    copies: int = Field(default=0, ge=0, description="changed copies of each training text; 0: none")
    crop: float = Field(default=0.8, ge=0, le=1, description="chance that a copy is a part of its text")
    word_dropout: float = Field(default=0.05, ge=0, lt=1, description="share of the words that are left out")
    span_swap: float = Field(default=0.05, ge=0, le=1, description="chance that two spans of a text change places")
    nearest_words: float = Field(
        default=0.1, ge=0, le=1, description="share of the words replaced by a neighbor in the teacher's embeddings"
    )
    neighbors: int = Field(default=8, ge=1, description="how many nearest words are chosen from")


class Intermediate(_Part):
    """Losses on what lies between input and output; the teacher then runs beside the student."""

    hidden: float = Field(default=0.0, ge=0, description="weight of the hidden states' MSE (TinyBERT)")
    embedding: float = Field(default=0.0, ge=0, description="weight of the embeddings' MSE (TinyBERT)")
    relation: float = Field(default=0.0, ge=0, description="weight of the Q-Q, K-K, V-V relations (MiniLMv2)")
    attention: float = Field(default=0.0, ge=0, description="weight of the attention maps' MSE (TinyBERT)")
    relation_heads: int | None = Field(default=None, ge=1, description="heads of the relations; absent: the teacher's")
    relation_layer: int | None = Field(default=None, ge=0, description="of the teacher (from 0); absent: its last")
    layer_map: tuple[int, ...] | None = Field(
        default=None, description="teacher layer (from 0) of each student layer; absent: evenly spaced"
    )

    @property
    def used(self) -> bool:
        """Whether any of the losses has a weight."""
        return any((self.hidden, self.embedding, self.relation, self.attention))


class Distill(Training):
    """How the student is taught."""

    loss: Literal["mse", "kl"] = "mse"
    temperature: float = Field(default=1.0, gt=0, description="of the kl loss")
    hard_label_weight: float = Field(default=0.0, ge=0, le=1, description="share of cross-entropy with true labels")
    unlabeled_share: float = Field(default=1.0, ge=0, le=1, description="share of the unlabeled texts that is used")
    augment: Augment = Augment()
    intermediate: Intermediate = Intermediate()
    quantization_aware_epochs: int = Field(
        default=0, ge=0, description="more epochs in which the student feels INT8's rounding, at a tenth of the rate"
    )

    @model_validator(mode="after")
    def _temperature_is_read(self) -> "Distill":
        if self.loss != "kl" and self.temperature != 1:
            raise ValueError(f"temperature belongs to loss kl; found it with loss {self.loss}")
        return self


class Export(_Part):
    """The ONNX export."""

    opset: int = Field(default=18, ge=18, le=23, description="version of the ONNX operators")


class Quantize(_Part):
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


class Calibrate(_Part):
    """What is fitted on the validation split and stands in the bundle."""

    temperature: bool = Field(default=True, description="scale logits so that scores are probabilities")
    thresholds: bool = Field(default=True, description="multi-label: each label's best threshold instead of 0.5")
    abstention_precision: float | None = Field(
        default=None, gt=0, lt=1, description="state the score from which answers are right this often"
    )


class Evaluate(_Part):
    """What is measured on the test split."""

    bootstrap_samples: int = Field(default=1000, ge=100, description="resamples for the 95 % intervals")
    latency_texts: int = Field(default=128, ge=1, description="texts per latency round")
    latency_rounds: int = Field(default=7, ge=3, description="interleaved rounds; the median is reported")
    invariance_texts: int = Field(default=500, ge=1, description="texts whose scores must not depend on batch mates")
    golden_inputs: int = Field(default=32, ge=1, description="test texts whose scores go into the bundle")
    baselines: bool = Field(default=True, description="also measure what the student must beat to be worth its time")


class Gate(_Part):
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


class Range(_Part):
    """Numbers to search in: whole ones where both ends are."""

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="on a logarithmic scale")

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low below high, and above 0 with log; found {self.low} and {self.high}")
        return self


class Tune(_Part):
    """What `limbeck tune` searches; `limbeck compress` does not read it."""

    space: dict[str, Range | tuple[Any, ...]] = Field(
        min_length=1, description="a key such as distill.learning_rate -> a list of values, or low, high and log"
    )


def _whole_number_as_text(value: Any) -> Any:
    """Take `version: 2` as it is meant; 1.10 would have lost its zero to YAML and must be quoted."""
    return str(value) if type(value) is int else value


class Recipe(_Part):
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
    def _vocabulary_fits(self) -> "Recipe":
        if self.vocabulary is None:
            return self
        if self.task is Task.TOKEN_CLASSIFICATION:
            raise ValueError(
                "vocabulary is for tasks with one answer a text: with other pieces other words are cut from long "
                "texts, and the teacher's answers would be those of other words; leave it out"
            )
        if self.vocabulary.embedding_rank is not None and self.distill.fgm_epsilon:
            raise ValueError("distill.fgm_epsilon moves word embeddings, which embedding_rank replaces; leave one out")
        return self
