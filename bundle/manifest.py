"""The schema of `manifest.json`, format version 1 (docs/bundle-format.md states it with MUST and MAY)."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 1

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Task(StrEnum):
    """What the classifier's outputs mean."""

    SINGLE_LABEL = "single-label"
    MULTI_LABEL = "multi-label"
    PAIR = "pair"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task, not a password


class Activation(StrEnum):
    """The function that turns logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Schema):
    """One file of the bundle."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Variant(_Schema):
    """One ONNX file and where it may run."""

    name: Name
    file: str
    dtype: str = Field(description="dtype of the weights that matter: float32, float16 or int8")
    execution_providers: tuple[str, ...] = Field(min_length=1, description="ONNX Runtime providers it may be sent to")
    golden_tolerance: float = Field(gt=0, description="largest allowed change of a golden score")
    batch_invariant: bool = Field(description="scores measured bit-equal over random batchings on CPU")
    gate_passed: bool = Field(description="kept enough quality to be served")
    gate_reason: str | None = Field(default=None, description="why it did not pass")
    forced: bool = Field(default=False, description="shipped by order although it did not pass")

    @property
    def servable(self) -> bool:
        """Whether a service may serve it."""
        return self.gate_passed or self.forced


class Interval(_Schema):
    """A metric on the test split with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class ClassMetrics(_Schema):
    """Quality for one label."""

    precision: float
    recall: float
    f1: float
    support: int


class Latency(_Schema):
    """Milliseconds per call at one batch size: median of the rounds, and the fastest and slowest round."""

    median_ms: float
    fastest_ms: float
    slowest_ms: float


class BatchInvariance(_Schema):
    """Scores of each text alone against the same text among random batch mates."""

    texts: int
    batchings: int
    max_difference: float
    bit_equal: bool


class LatencyByBatch(_Schema):
    """Latency at the batch sizes that are measured."""

    batch_1: Latency
    batch_8: Latency
    batch_32: Latency


class SpeedupByBatch(_Schema):
    """How many times faster than the teacher in FP32, in the same run."""

    batch_1: float
    batch_8: float
    batch_32: float


class SliceMetrics(_Schema):
    """The main metric on a part of the test split."""

    texts: int
    value: float
    drop: Interval | None = Field(default=None, description="below the teacher, paired; null without true labels")


class CalibrationBin(_Schema):
    """Rows whose confidence is above `low` and at most `high`."""

    low: float
    high: float
    count: int
    mean_confidence: float | None
    accuracy: float | None


class Calibration(_Schema):
    """How far confidence is from how often the model is right, on the test split."""

    expected_error: float = Field(description="ECE, after temperature scaling")
    bins: tuple[CalibrationBin, ...]


class SplitFingerprint(_Schema):
    """The content of one split."""

    rows: int
    sha256: Sha256


class Quality(_Schema):
    """What a model gets right on the test split; it needs true labels."""

    scores: dict[str, Interval] = Field(description="metric -> value, the task's main metric first")
    retained: Interval | None = Field(description="share of the teacher's main metric, paired bootstrap")
    drop: Interval = Field(description="of the main metric below the teacher, paired bootstrap")
    recall_drops: dict[str, Interval]
    per_class: dict[str, ClassMetrics]
    slices: dict[str, SliceMetrics]
    calibration: Calibration


class StageMetrics(_Schema):
    """One row of the stage table: one model, measured in ONNX Runtime."""

    stage: str
    quality: Quality | None = Field(default=None, description="null where the data had no true labels")
    onnx_bytes: int
    latency_ms: LatencyByBatch | None = Field(default=None, description="one thread; null where it is not run on CPU")
    speedup: SpeedupByBatch | None = None
    label_flips: Interval = Field(description="share of decisions that differ from the FP32 student's (teacher: 0)")
    batch_invariance: BatchInvariance | None = None


class BaselineMetrics(_Schema):
    """A cheap model that a student must beat clearly to be worth its latency."""

    name: str
    score: Interval = Field(description="the task's main metric")
    student_gain: Interval = Field(description="how far the student is above it, paired bootstrap")
    size_bytes: int
    milliseconds_per_text: float | None


class Lineage(_Schema):
    """What went into the bundle."""

    recipe: dict[str, Any]
    data: dict[str, SplitFingerprint]
    overlap: dict[str, int] = Field(default={}, description="rows of one split whose text stands in another, too")
    teachers: dict[str, Any] = Field(
        default={}, description="where others taught beside the teacher: `validation`, each one's main metric; `llm`"
    )
    vocabulary: dict[str, Any] | None = Field(
        default=None,
        description="of a pruned vocabulary: `tokens`, `tokens_before`, `changed_encodings` (share of each split's "
        "texts), `variance_kept` (of factorized embeddings) and `test_score` (before, after, taught)",
    )
    models: dict[str, Any] = Field(
        default={}, description="what training began from: name in the recipe -> file -> SHA-256, or a hub id"
    )
    files: dict[str, Sha256] = Field(
        default={}, description="what the stages before the measurements left, by `stage/file`"
    )
    seeds: dict[str, int]
    library_versions: dict[str, str]
    machine: str
    created_at: str = Field(description="UTC, ISO 8601")


class TargetOutcome(_Schema):
    """What the student was pruned for, and what it came to in INT8."""

    kind: str = Field(description="speedup (over the teacher, batch 1), latency_ms or size_mb")
    wanted: float
    reached: float
    tokens: int | None = Field(default=None, description="of latency_ms: length of the text")
    threads: int | None = Field(default=None, description="of latency_ms")
    met: bool = Field(description="within 10 % of what was wanted")
    reason: str | None = Field(default=None, description="why it was not met")


class Manifest(_Schema):
    """The whole of `manifest.json`."""

    format_version: int = FORMAT_VERSION
    name: Name
    version: Name
    task: Task
    labels: tuple[str, ...] = Field(min_length=1, description="in the order of the model's output ids")
    activation: Activation
    max_length: int = Field(ge=3, description="tokens, specials included")
    input_names: tuple[str, ...] = Field(min_length=1)
    output_name: str
    temperature: float = Field(default=1.0, gt=0, description="calibration: logits are divided by it")
    variants: tuple[Variant, ...] = Field(min_length=1)
    metrics: tuple[StageMetrics, ...] = ()
    baselines: tuple[BaselineMetrics, ...] = ()
    target: TargetOutcome | None = Field(default=None, description="where the recipe had a target")
    lineage: Lineage
    files: dict[str, FileEntry]
    # Room from format 1 on; each is null until a task needs it.
    thresholds: dict[str, float] | None = Field(default=None, description="label -> decision threshold (multi-label)")
    abstention: dict[str, float] | None = Field(
        default=None, description="threshold, and the precision and coverage it had on the validation split"
    )
    text_pair: bool = Field(default=False, description="the model was trained on text pairs")
    tag_scheme: str | None = Field(default=None, description="IOB1, IOB2 or BIOES (token classification)")
    reference_statistics: dict[str, Any] | None = Field(default=None, description="what drift is measured against")

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: each must be unique, found {list(self.labels)}")
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variants: each name must be unique, found {names}")
        return self

    def variant(self, name: str) -> Variant:
        """Return the variant called `name`; KeyError names those there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(f"no variant {name!r}; this bundle has {[variant.name for variant in self.variants]}")


class GoldenInput(_Schema):
    """One line of `golden.jsonl`: an input and the scores each variant gave where the bundle was made."""

    text: str
    text_pair: str | None = None
    label: str | None = Field(default=None, description="the true label; null when the data had none")
    scores: dict[str, tuple[float, ...]] = Field(
        description="variant -> score of each label, in label order; token classification: token after token"
    )
