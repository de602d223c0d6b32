"""The dialect of vLLM's and SGLang's `/classify`."""

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bundle.manifest import Activation
from service.api.classify import Classifier, Question, scored
from service.api.failures import Dialect
from service.api.routes import ASK_EXAMPLES, documented, require_json
from service.api.schemas import as_list
from service.engine.queue import Priority
from service.errors import InvalidInputError, ServiceError
from service.registry import Registry

_PATH = "/classify"
_KINDS = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


class VllmClassifyRequest(BaseModel):
    """Texts to classify; unknown keys are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["A fine film."]}]})

    model: str | None = Field(default=None, description="the only or the default model where it is absent")
    input: Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=str | list[str])] = Field(
        description="one text or several"
    )
    truncate_prompt_tokens: int | None = Field(
        default=None,
        ge=-1,
        description="-1: as many as the model reads, which is what is done in any case; fewer than that are refused",
    )
    use_activation: bool | None = Field(default=None, description="`false` gives logits instead of scores")
    priority: int = Field(default=0, description="above 0: served after others")
    request_id: str | None = Field(default=None, max_length=128)


class Classification(BaseModel):
    """The answer for one text."""

    index: int
    label: str | None
    probs: list[float] = Field(description="in the order of the model's labels")
    num_classes: int


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class VllmClassifyResponse(BaseModel):
    """The answers, in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="seconds since 1970")
    model: str
    data: list[Classification]
    usage: Usage


class VllmError(BaseModel):
    """What went wrong."""

    error: dict[str, Any]


def explain(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error in vLLM's words."""
    kind = _KINDS.get(error.status, "BadRequestError" if error.status < 500 else "InternalServerError")
    told = {"message": error.message, "type": kind, "param": error.field, "code": error.status}
    return error.status, {"error": told}


DIALECT = Dialect(lambda path: path == _PATH, explain)

_ERRORS = documented(*ASK_EXAMPLES, explain=explain, model=VllmError)


def router(registry: Registry, classifier: Classifier) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["vllm"], dependencies=[Depends(require_json)], responses=_ERRORS)

    @routes.post(_PATH, summary="Classify as vLLM does")
    async def classify(body: VllmClassifyRequest, request: Request) -> VllmClassifyResponse:
        model = registry.get(body.model)
        manifest = model.manifest
        if body.truncate_prompt_tokens is not None and 0 <= body.truncate_prompt_tokens < manifest.max_length:
            raise InvalidInputError(
                "truncate_prompt_tokens",
                f"found {body.truncate_prompt_tokens}, expected -1, or the {manifest.max_length} tokens that "
                f"{manifest.name} reads, or more",
            )
        question = Question(
            body.input,
            field="input",
            priority=Priority.BULK if body.priority > 0 else Priority.INTERACTIVE,
            function=Activation.NONE if body.use_activation is False else None,
        )
        results = scored(question, model, await classifier.ask(question, model, request.receive))
        tokens = sum(one.tokens for one in results)
        return VllmClassifyResponse(
            id=f"classify-{body.request_id or uuid.uuid4().hex}",
            created=int(time.time()),
            model=manifest.name,
            data=[
                Classification(
                    index=index,
                    label=manifest.labels[int(one.scores.argmax())],
                    probs=one.scores.tolist(),
                    num_classes=len(manifest.labels),
                )
                for index, one in enumerate(results)
            ],
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )

    return routes
