"""How many worker processes there are, and which share of the settings each gets."""

import importlib.metadata
import math
import os
from pathlib import Path

from service.errors import StartupError
from service.settings import AUTO, Settings, usable_cpus

_MOST = 8  # chosen by itself: each worker has its own copy of the models


def count_workers(settings: Settings) -> int:
    """Return the number of worker processes; raises StartupError when so many are not possible.

    `auto` is a worker for each CPU that its inference calls keep busy; one where a GPU would be used, because one
    process owns the device; and one where processes cannot be forked.
    """
    if settings.workers == AUTO:
        alone = not hasattr(os, "fork") or has_gpu()
        whole_requests = settings.queue_capacity // settings.max_inputs
        calls = usable_cpus() // settings.threads
        return 1 if alone else max(1, min(_MOST, calls, settings.sessions or calls, whole_requests))
    workers = int(settings.workers)
    if workers > 1 and not hasattr(os, "fork"):
        raise StartupError(f"workers is {workers}, but this system cannot fork processes: set LIMBECK_WORKERS=1")
    places = settings.queue_capacity // workers
    if settings.max_inputs > places:
        raise StartupError(
            f"workers is {workers}, so each has {places} of the {settings.queue_capacity} places of queue_capacity, "
            f"but max_inputs is {settings.max_inputs}: raise LIMBECK_QUEUE_CAPACITY, or lower one of the others"
        )
    return workers


def share(settings: Settings, workers: int) -> Settings:
    """Return one worker's settings: inference calls and bounds of the queue divided, at least one call each."""
    calls = settings.sessions
    if workers > 1:  # a single one chooses by itself when it knows its device
        calls = max(1, (calls or usable_cpus() // settings.threads) // workers)
    return settings.model_copy(
        update={
            "workers": workers,
            "sessions": calls,
            "queue_capacity": math.ceil(settings.queue_capacity / workers),
            "queue_capacity_tokens": math.ceil(settings.queue_capacity_tokens / workers),
            "max_connections": math.ceil(settings.max_connections / workers),
        }
    )


def has_gpu() -> bool:
    """Say whether ONNX Runtime's build for CUDA is installed and a driver's device is there, without importing it."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
