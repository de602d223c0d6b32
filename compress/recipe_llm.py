"""The part of a recipe that says how a large language model labels texts."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_OWN_FIELDS = ("model", "messages", "n", "logprobs", "top_logprobs", "stream")
"""Fields of a request that other keys decide."""


def _checked_endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected the base URL of an API, such as https://llm.example.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("expected no user, password, query or fragment; keys belong in api_key_env or api_key_file")
    try:
        usable = parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected a port from 1 to 65535")
    return value.rstrip("/")


class Llm(BaseModel):
    """A language model behind an OpenAI-compatible endpoint that labels the unlabeled texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint: Annotated[str, AfterValidator(_checked_endpoint)] = Field(
        description="base URL of an OpenAI-compatible API; /chat/completions is added to it"
    )
    model: str = Field(min_length=1, description="the model's name there")
    prompt: str | None = Field(
        default=None, description="template with {text}, {text_pair}, {labels}; absent: one that fits the task"
    )
    answers: dict[str, str] = Field(
        default={}, description="label -> what the model is to answer for it, where that is not the label itself"
    )
    api_key_env: str | None = Field(default=None, description="environment variable that holds the key")
    api_key_file: Path | None = Field(default=None, description="file that holds the key")
    weight: float = Field(
        default=1.0, ge=0, description="of its answers beside the teachers' logits; 0: they only train"
    )
    texts: int | None = Field(default=None, ge=1, description="at most so many unlabeled texts, drawn by seed")
    validation_texts: int = Field(default=100, ge=0, description="validation texts that show how often it is right")
    method: Literal["auto", "logprobs", "votes"] = Field(
        default="auto", description="log-probabilities of the labels where the server returns them, else votes"
    )
    samples: int = Field(default=5, ge=1, le=100, description="answers a text, method votes")
    temperature: float = Field(default=0.7, ge=0, le=2, description="of the samples, method votes")
    max_tokens: int = Field(default=16, ge=1, description="of one answer")
    request: dict[str, Any] = Field(default={}, description="more fields of every request; null takes a field out")
    smoothing: float = Field(default=0.02, gt=0, lt=1, description="share of each answer spread over all labels")
    concurrency: int = Field(default=8, ge=1, le=256, description="requests side by side")
    requests_per_minute: float | None = Field(default=None, gt=0, description="absent: as many as are answered")
    timeout_s: float = Field(default=120.0, gt=0, description="for one answer")
    retries: int = Field(default=8, ge=0, le=50, description="of a request, with growing pauses")
    price_per_million_input_tokens: float | None = Field(default=None, ge=0, description="in any currency")
    price_per_million_output_tokens: float | None = Field(default=None, ge=0, description="in the same currency")
    cache: Path | None = Field(default=None, description="file of answers; absent: work/llm-answers.jsonl")

    @model_validator(mode="after")
    def _consistent(self) -> "Llm":
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("expected api_key_env or api_key_file, found both")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env: expected the name of an environment variable, not the key itself")
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("prompt: expected {text} in it, where the text goes")
        taken = sorted(set(self.request) & set(_OWN_FIELDS))
        if taken:
            raise ValueError(f"request: {taken[0]} is decided by other keys; leave it out")
        prices = (self.price_per_million_input_tokens, self.price_per_million_output_tokens)
        if (prices[0] is None) != (prices[1] is None):
            raise ValueError("expected a price for input and output tokens both, or for neither")
        return self

    def decides(self) -> dict[str, Any]:
        """Return the keys that decide what its answers are taken for; the others only how they are got."""
        how = {"api_key_env", "api_key_file", "concurrency", "requests_per_minute", "timeout_s", "retries", "cache"}
        return self.model_dump(mode="json", exclude=how | {"weight"})
