"""What the Open Inference Protocol tells of models: tensors, configuration, statistics, the repository's index."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.model import Model
from service.registry import Registry
from service.settings import Settings
from service.visits import VISIT

_NS = 1_000_000_000


def inputs_of(model: Model) -> list[dict[str, Any]]:
    """Return the inputs that a model takes."""
    names = ["text", "text_pair"] if model.manifest.text_pair else ["text"]
    return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names]


def outputs_of(model: Model) -> list[dict[str, Any]]:
    """Return the outputs that a model gives; entities are JSON, one list a text."""
    if model.tags:
        return [{"name": "entities", "datatype": "BYTES", "shape": [-1]}]
    return [
        {"name": "scores", "datatype": "FP32", "shape": [-1, len(model.manifest.labels)]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]


def metadata(model: Model, versions: Sequence[Model]) -> dict[str, Any]:
    """Return a model's metadata."""
    return {
        "name": model.manifest.name,
        "versions": [one.manifest.version for one in versions],
        "platform": "onnxruntime_onnx",
        "inputs": inputs_of(model),
        "outputs": outputs_of(model),
    }


def config(model: Model, settings: Settings) -> dict[str, Any]:
    """Return a model's configuration as Triton writes it."""
    kinds = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}

    def described(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": one["name"], "data_type": kinds[one["datatype"]], "dims": one["shape"][1:] or [1]}
            for one in tensors
        ]

    return {
        "name": model.manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": settings.max_inputs,
        "input": described(inputs_of(model)),
        "output": described(outputs_of(model)),
    }


def index(models: Sequence[Model], registry: Registry, lifecycle: Lifecycle) -> list[dict[str, str]]:
    """Return the repository's index: what is served, what was unloaded, what could not be loaded.

    Only of `models` and of others that the request's key allows; reasons, which name folders, are for administrators.
    """
    visit = VISIT.get()
    served = [
        _entry(model.name, "READY" if model.ready else "UNAVAILABLE", "" if model.ready else "its worker died")
        | {"version": model.version}
        for model in models
    ]
    names = {model.name for model in registry.all()}
    admin = visit.caller is None or visit.caller.admin
    out = dict.fromkeys(lifecycle.unloaded - names, "unloaded")
    failed = {name: reason if admin else "could not be loaded" for name, reason in lifecycle.failures.items()}
    missing = {name: reason for name, reason in (failed | out).items() if name not in names and visit.may_ask(name)}
    return served + [_entry(name, "UNAVAILABLE", reason) for name, reason in sorted(missing.items())]


def _entry(name: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": "", "state": state, "reason": reason}


def statistics(models: Sequence[Model], metrics: Metrics) -> dict[str, Any]:
    """Return what models did since the service started, all of its workers together."""
    found = {
        (sample.name, sample.labels["model"], sample.labels["version"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if "version" in sample.labels and "le" not in sample.labels
    }
    return {"model_stats": [_statistics(model, found) for model in models]}


def _statistics(model: Model, found: Mapping[tuple[str, str, str], float]) -> dict[str, Any]:
    def value(name: str) -> float:
        return found.get((name, model.manifest.name, model.manifest.version), 0.0)

    def timed(name: str) -> dict[str, int]:
        return {"count": int(value(f"{name}_count")), "ns": int(value(f"{name}_sum") * _NS)}

    inputs, batches = int(value("limbeck_batch_size_sum")), int(value("limbeck_batch_size_count"))
    queue, infer = timed("limbeck_queue_wait_seconds"), timed("limbeck_inference_seconds")
    nothing = {"count": 0, "ns": 0}
    return {
        "name": model.manifest.name,
        "version": model.manifest.version,
        "last_inference": 0,
        "inference_count": inputs,
        "execution_count": batches,
        "inference_stats": {
            "success": {"count": inputs, "ns": queue["ns"] + infer["ns"]},
            "fail": {"count": int(value("limbeck_failed_batches_total")), "ns": 0},
            "queue": queue,
            "compute_input": timed("limbeck_tokenization_seconds"),
            "compute_infer": infer,
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }
