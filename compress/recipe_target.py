"""The parts of a recipe that make a student smaller than its teacher's layers: vocabulary, target, pruning."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from compress.recipe_part import Part


class Vocabulary(Part):
    """Fewer word pieces for the student, and perhaps a table of two factors; the tokenizer is rebuilt."""

    min_count: int = Field(
        default=1, ge=1, description="keep tokens seen this often in the texts that the student learns from"
    )
    embedding_rank: int | None = Field(default=None, ge=8, description="factorize word embeddings by SVD; absent: no")
    epochs: int = Field(default=1, ge=0, description="distillation afterwards, with what distill says; 0: none")


class Target(Part):
    """What the INT8 student must cost; the pruner cuts until it does. Exactly one of the first three."""

    speedup: float | None = Field(default=None, gt=1, description="over the teacher in FP32: real lengths, batch 1")
    latency_ms: float | None = Field(default=None, gt=0, description="of one text of `tokens` tokens")
    size_mb: float | None = Field(default=None, gt=0, description="of the ONNX file, in 10⁶ bytes")
    tokens: int = Field(default=32, ge=3, description="with latency_ms: length of the text, specials included")
    threads: int = Field(default=1, ge=1, description="with latency_ms: threads of ONNX Runtime")

    @model_validator(mode="after")
    def _one_kind(self) -> "Target":
        given = [name for name in ("speedup", "latency_ms", "size_mb") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of speedup, latency_ms or size_mb; found {given or 'none'}")
        if given != ["latency_ms"] and self.model_fields_set & {"tokens", "threads"}:
            raise ValueError(f"tokens and threads belong to latency_ms; found them with {given[0]}")
        return self

    @property
    def kind(self) -> str:
        """Which of the three it is."""
        return next(name for name in ("speedup", "latency_ms", "size_mb") if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """The number that is wanted."""
        return float(getattr(self, self.kind))


class Prune(Part):
    """How the student is cut to its target."""

    steps: int = Field(default=4, ge=1, description="cuts, each with distillation after it")
    importance: Literal["fisher", "taylor"] = Field(
        default="fisher", description="what a cut costs: squared or absolute gradients of gates"
    )
    texts: int = Field(default=512, ge=8, description="texts of the transfer set that importance is measured on")
    epochs: int = Field(default=1, ge=1, description="distillation after each cut but the last")
    final_epochs: int = Field(default=3, ge=1, description="distillation after the last cut")
    learning_rate: float | None = Field(default=None, gt=0, description="absent: distill.learning_rate")
    layers: bool = Field(default=True, description="whether whole layers may go")
    hidden: bool = Field(default=True, description="whether the hidden states may become narrower")
    block: int = Field(default=32, ge=1, description="feed-forward neurons go in multiples of this")
    measurements: Path | None = Field(
        default=None, description="costs.json of an earlier run, read instead of timing this machine"
    )
