"""The JSON of the native API, as the OpenAPI document shows it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from bundle import Task
from bundle.manifest import StageMetrics
from service.api.names import PRIORITY_HEADER, TIMEOUT_HEADER
from service.settings import MAX_TIMEOUT_MS

TimeoutMs = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)]
PriorityName = Literal["interactive", "bulk"]
FunctionName = Literal["softmax", "sigmoid", "none"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPair(_Request):
    """Two texts that the model compares."""

    text: str
    text_pair: str


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(pair)" if isinstance(value, dict | TextPair) else None


# The tags are in parentheses so that messages can leave them out of a field's name (`service.api.failures`).
Input = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[TextPair, Tag("(pair)")],
    Discriminator(
        _kind,
        custom_error_type="input_type",
        custom_error_message="expected a string or an object with text and text_pair",
    ),
]


def as_list(value: Any) -> Any:
    """Take a single text for a list of one."""
    return [value] if isinstance(value, str) else value


class Options(_Request):
    """What every request may say about how it is answered."""

    truncate: Literal[False, "head", "tail", "window"] = Field(
        default="head",
        description="what is read of a text that is longer than the model reads: its head, its tail, or all of it in "
        "overlapping windows (not of pairs); `false`: such a text is refused with its length and the limit",
    )
    stride: int | None = Field(
        default=None,
        ge=0,
        description="tokens that neighboring windows share, at most half of one; a quarter of max_length by default",
    )
    timeout_ms: TimeoutMs | None = Field(
        default=None,
        description=f"milliseconds from the request's arrival after which its answer is of no use: what has not run by "
        f"then is not run, and the answer is 504; wins over the header {TIMEOUT_HEADER}",
    )
    priority: PriorityName | None = Field(
        default=None,
        description="interactive (the default) is served before bulk, which does not starve; wins over the header "
        f"{PRIORITY_HEADER}",
    )


class ClassifyRequest(Options):
    """Texts to classify."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["A fine film."]},
                {"inputs": ["A fine film.", "Two hours I will not get back."], "top_k": 1},
                {"inputs": [{"text": "A man sleeps.", "text_pair": "Nobody is awake."}]},
                {"inputs": ["A fine film."], "timeout_ms": 200, "priority": "bulk"},
                {"inputs": ["A very long review …"], "truncate": "window", "stride": 8, "aggregate": "max"},
            ]
        }
    )

    inputs: Annotated[list[Input], BeforeValidator(as_list, json_schema_input_type=str | list[Input])] = Field(
        description="texts or, for models of text pairs, objects; a single string counts as a list of one"
    )
    top_k: int | None = Field(default=None, ge=1, description="only so many of the highest labels; all by default")
    function_to_apply: FunctionName | None = Field(
        default=None,
        description="what turns the model's logits into scores; the model's own function by default. `none` gives "
        "the logits, without the bundle's calibration",
    )
    aggregate: Literal["mean", "max"] = Field(
        default="mean", description="how the scores of a text's windows become one, label by label"
    )


class LabelScore(BaseModel):
    """One label and its score."""

    label: str
    score: float


class Result(BaseModel):
    """The answer for one input."""

    labels: list[LabelScore] = Field(description="highest score first")
    truncated: bool = Field(description="the input was longer than the model's max_length and was cut")
    tokens: int = Field(description="tokens that the model read, specials included, in all windows together")
    predicted: list[str] = Field(
        default=[],
        description="of multi-label models: the labels whose score is at least the bundle's threshold for them",
    )
    windows: int | None = Field(default=None, description="how many windows were read, where they were asked for")
    stride: int | None = Field(default=None, description="tokens that neighboring windows share")


class ClassifyResponse(BaseModel):
    """The answers, in the order of the inputs, and who gave them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "movie-reviews",
                    "version": "1",
                    "variant": "int8",
                    "results": [
                        {
                            "labels": [{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}],
                            "truncated": False,
                            "tokens": 6,
                        }
                    ],
                }
            ]
        }
    )

    model: str
    version: str
    variant: str
    results: list[Result]


class ModelCard(BaseModel):
    """One model in the list; the keys that OpenAI-style clients read, and its versions."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["limbeck"] = "limbeck"
    ready: bool
    versions: list[str] = Field(
        description="first what answers unless a request pins another: the highest, or what a rollout says; then the "
        "others, highest first"
    )


class ModelList(BaseModel):
    """All loaded models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModelDetails(BaseModel):
    """One model, at the version that answers unless a request pins another."""

    name: str
    ready: bool
    task: Task
    labels: list[str] = Field(description="in the order of the model's outputs")
    text_pair: bool
    max_length: int = Field(description="tokens, specials included; longer inputs are cut")
    version: str
    versions: list[str]
    variant: str
    metrics: list[StageMetrics] = Field(description="measured on the test split when the bundle was made")


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="for people")
    field: str | None = Field(default=None, description="the part of the request at fault; absent where none is")


class ErrorBody(BaseModel):
    """The body of every answer that is not a result."""

    error: ErrorDetail
