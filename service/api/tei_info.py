"""What Text Embeddings Inference tells of a model and, in headers, of an answer."""

import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from service.engine.request import Classified
from service.engine.session_options import CPU
from service.engine.tokenization import TextInput
from service.model import Model
from service.settings import Settings
from service.visits import VISIT

_TEI_VERSION = "1.8.2"  # whose answers these are


class Info(BaseModel):
    """What is served, as TEI tells it."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


def info_of(model: Model, settings: Settings) -> Info:
    """Return what is served."""
    manifest = model.manifest
    return Info(
        model_id=manifest.name,
        model_sha=manifest.files[model.variant.file].sha256,
        model_dtype=model.variant.dtype,
        model_type={
            "classifier": {
                "id2label": {str(number): label for number, label in enumerate(manifest.labels)},
                "label2id": {label: number for number, label in enumerate(manifest.labels)},
            }
        },
        max_concurrent_requests=settings.queue_capacity,
        max_input_length=manifest.max_length,
        max_batch_tokens=settings.max_batch_tokens,
        max_batch_requests=settings.max_batch_size,
        max_client_batch_size=settings.max_inputs,
        auto_truncate=True,
        tokenization_workers=1,
        version=_TEI_VERSION,
        sha=None,
        docker_label=None,
    )


def measured(model: Model, inputs: Sequence[TextInput], results: Sequence[Classified]) -> dict[str, str]:
    """Return TEI's headers; times are whole milliseconds, the mean of the inputs."""
    total_s = time.monotonic() - VISIT.get().arrived_s
    queue_s, inference_s = (
        sum(getattr(one, name) for one in results) / len(results) for name in ("queue_s", "inference_s")
    )
    characters = sum(len(given) if isinstance(given, str) else len(given[0]) + len(given[1]) for given in inputs)
    values: dict[str, object] = {
        "x-compute-type": "cpu" if model.session.provider == CPU else "gpu",
        "x-compute-characters": characters,
        "x-compute-tokens": sum(one.encoding.tokens for one in results),
    }
    times = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-tokenization-time": max(0.0, total_s - queue_s - inference_s),
        "x-queue-time": queue_s,
        "x-inference-time": inference_s,
    }
    return {name: str(value) for name, value in values.items()} | {
        name: str(round(1000 * seconds)) for name, seconds in times.items()
    }
