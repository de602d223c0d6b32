"""Several processes that train one model together: each takes a share of every batch, and gradients are added up."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from compress.errors import LostError, TrainingError
from compress.machine import usable_cores

T = TypeVar("T")

PIPE = "LIMBECK_LAUNCHER_PIPE"
"""Environment variable: a descriptor that ends when the process that started the others does."""

_BUCKET_ELEMENTS = 1 << 24
_PATIENCE = timedelta(days=7)  # the others wait through stages of the first; who dies is noticed by his connection


@dataclass(frozen=True)
class Team:
    """The processes of a run, of which this is number `rank` of `size`; the first (0) does all but training alone.

    Every method but the properties must be called by all. Raises LostError when another process has ended.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def shared(self, value: T) -> T:
        """Return the first process's value, which must be what pickle can hold."""
        if self.size == 1:
            return value
        box = [value]
        _together(partial(torch.distributed.broadcast_object_list, box, src=0, device=torch.device("cpu")))
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Return every process's value, in their order."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        _together(partial(torch.distributed.all_gather_object, boxes, value))
        return boxes

    def total(self, value: float) -> float:
        """Return the sum of every process's value."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        _together(partial(torch.distributed.all_reduce, box))
        return float(box)

    def start_alike(self, model: nn.Module) -> None:
        """Give `model` the first process's weights."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                _together(partial(torch.distributed.broadcast, tensor, src=0))

    def add_gradients(self, model: nn.Module) -> None:
        """Let every gradient be the sum of all processes' gradients; what none has a gradient of keeps none."""
        if self.size == 1:
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in trained])
        _together(partial(torch.distributed.all_reduce, used))
        for bucket in _buckets(p for p, count in zip(trained, used.tolist(), strict=True) if count):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            _together(partial(torch.distributed.all_reduce, flat))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()


ALONE = Team()


def connect() -> Team:
    """Return the team that a launcher's environment variables name, `accelerate launch`'s or ours; else this one alone.

    Raises TrainingError when there are more processes than GPUs, where there are any.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    if PIPE in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PIPE]),), daemon=True).start()
    gpus = torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if gpus and processes > gpus:
        raise TrainingError(
            f"--num-processes is {processes}, but this machine has {gpus} GPUs; expected at most one for each"
        )
    options: dict[str, Any] = {"backend": "cpu:gloo,cuda:nccl"} if gpus else {}
    state = PartialState(cpu=not gpus, timeout=_PATIENCE, **options)
    return Team(state.process_index, state.num_processes)


@contextmanager
def on_all_cores(team: Team) -> Iterator[None]:
    """Let the first process compute on every core while the others wait; a number of threads of the user's stays."""
    threads, cores = torch.get_num_threads(), usable_cores()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", team.size))
    if team.size == 1 or threads != max(1, cores // here):
        yield
        return
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def disband() -> None:
    """Leave the team, if there is one; the others are not waited for."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        if bucket and (elements + parameter.numel() > _BUCKET_ELEMENTS or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket


def _together(work: Callable[[], Any]) -> None:
    try:
        work()
    except RuntimeError as error:  # gloo and NCCL say so when a connection is gone
        raise LostError(
            "another training process has ended; what was trained is kept: give the same command again to go on"
        ) from error


def _end_with(descriptor: int) -> None:
    """End this process when the launcher's end of the pipe is closed, however that came about."""
    os.read(descriptor, 1)
    os._exit(143)
