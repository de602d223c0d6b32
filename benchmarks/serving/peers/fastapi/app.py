"""Plain FastAPI and ONNX Runtime, as most people write it: models in and out, one inference a request."""

import os

from classifier import Classifier
from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    """Texts to classify."""

    inputs: list[str]


class LabelScore(BaseModel):
    """One label's score."""

    label: str
    score: float


class Response(BaseModel):
    """Each text's labels."""

    results: list[list[LabelScore]]


app = FastAPI()
classifier = Classifier()


def in_a_thread(request: Request) -> Response:
    """Classify in Starlette's thread pool."""
    return Response.model_validate({"results": classifier.classify(request.inputs)})


async def in_the_loop(request: Request) -> Response:
    """Classify in the event loop: it blocks, and it spares the way to a thread and back."""
    return Response.model_validate({"results": classifier.classify(request.inputs)})


app.post("/classify")(in_a_thread if os.environ["PEER_ROUTE"] == "def" else in_the_loop)
