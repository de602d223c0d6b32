"""The parts of a recipe about models and their training: teacher, student, distillation."""

from typing import Literal

from pydantic import Field, model_validator

from compress.recipe_llm import Llm
from compress.recipe_part import Fraction, Part


class Training(Part):
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


class Lora(Part):
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


class OneTeacher(Part):
    """A model that the student learns from."""

    model: str = Field(description="a local folder, a hub id, or package:NAME for an installed package with weights")
    fine_tune: FineTune | None = Field(default=None, description="absent: the teacher is used as it is")
    weight: float = Field(default=1.0, gt=0, description="of its logits in the average of all teachers")


class Teacher(OneTeacher):
    """The model to learn from, which the student is compared with; others may have their say in what it learns."""

    others: tuple[OneTeacher, ...] = Field(default=(), description="more teachers: model, fine_tune and weight each")
    llm: Llm | None = Field(default=None, description="a language model that labels the unlabeled texts")

    @model_validator(mode="after")
    def _what_the_llm_says_is_read(self) -> "Teacher":
        learns = any(teacher.fine_tune is not None for teacher in (self, *self.others))
        if self.llm is not None and self.llm.weight == 0 and not learns:
            raise ValueError(
                "llm.weight: found 0 and no teacher with fine_tune, so that its answers would be paid for and read by "
                "nothing; expected a weight above 0, or fine_tune"
            )
        return self


class Student(Part):
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


class Augment(Part):
    """More texts for distillation, made from the training texts and labeled by the teacher."""

    copies: int = Field(default=0, ge=0, description="changed copies of each training text; 0: none")
    crop: float = Field(default=0.8, ge=0, le=1, description="chance that a copy is a part of its text")
    word_dropout: float = Field(default=0.05, ge=0, lt=1, description="share of the words that are left out")
    span_swap: float = Field(default=0.05, ge=0, le=1, description="chance that two spans of a text change places")
    nearest_words: float = Field(
        default=0.1, ge=0, le=1, description="share of the words replaced by a neighbor in the teacher's embeddings"
    )
    neighbors: int = Field(default=8, ge=1, description="how many nearest words are chosen from")


class Intermediate(Part):
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
