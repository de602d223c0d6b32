"""One of several processes that train a tiny model together; what it does is read back from files."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console

from compress.batches import Batch, TrainingSet
from compress.errors import LostError
from compress.intermediate import IntermediateLoss
from compress.narrow import narrow
from compress.recipe_training import Training
from compress.rows import one_row_each
from compress.team import ALONE, connect, disband
from compress.train import Beside, train
from service.engine.tokenization import Encoding
from tests.support.command import _CONTEXT
from tests.support.models import VOCABULARY, tiny_classifier


def data(count: int, seed: int = 0) -> TrainingSet:
    """Texts labeled by whether token 4 is in them."""
    source = np.random.default_rng(seed)
    labels = source.integers(0, 2, size=count)
    ids = [
        [2, *([4] * label), *source.integers(5, VOCABULARY, size=source.integers(2, 12)).tolist(), 3]
        for label in labels
    ]
    return TrainingSet(one_row_each([Encoding(i, [0] * len(i), False) for i in ids], labels.astype(np.int64)))


def loss(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(rows, batch.targets, reduction="none")


def run(folder: Path, options: dict[str, Any], *, dropout: bool, dies_at: int | None = None) -> None:
    """Train as the environment says; the first process writes weights, and all of them tell how it ended."""
    torch.set_num_threads(1)
    team = connect()
    model: torch.nn.Module = tiny_classifier(seed=1)
    beside = None
    if options.pop("beside", False):
        teacher = tiny_classifier(seed=5)
        model = narrow(tiny_classifier(seed=1), 32, heads=2, intermediate_size=64, seed=0)
        beside = Beside(IntermediateLoss(model, teacher, hidden=1.0, seed=1), teacher)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
        if hasattr(module, "dropout_prob") and not dropout:
            module.dropout_prob = 0.0  # of fused attention
    steps = 0

    def counted(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if dies_at is not None and team.rank == team.size - 1 and steps > dies_at:
            os._exit(9)
        return loss(rows, batch)

    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_seconds": 0}
    try:
        summary = train(
            model,
            data(57),  # the last batch of an epoch is a single text: not each process has one
            counted,
            lambda model: float(sum(parameter.detach().sum() for parameter in model.parameters())),
            Training.model_validate(settings | options),
            pad_id=0,
            seed=3,
            folder=folder / ("checkpoints" if team.first else f"of-{team.rank}"),
            console=Console(quiet=True),
            title="training",
            metric="accuracy",
            beside=beside,
            team=team,
            events_folder=folder / "events",
        )
    except LostError as error:
        (folder / f"lost-{team.rank}.txt").write_text(str(error))
        os._exit(1)
    if team.first:
        torch.save((model.state_dict(), summary), folder / "result.pt")
    else:
        torch.save(model.state_dict(), folder / f"result-{team.rank}.pt")
    if team != ALONE:
        disband()


def together(folder: Path, processes: int, options: dict[str, Any], **how: Any) -> list[int]:
    """Run it in so many processes; their exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers = []
    for rank in range(processes):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        workers.append(_CONTEXT.Process(target=_main, args=(environment, run, folder, dict(options), how)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
        if worker.is_alive():
            worker.kill()
    return [worker.exitcode for worker in workers]


def _main(
    environment: dict[str, Any], work: Callable[..., None], folder: Path, options: dict[str, Any], how: dict[str, Any]
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    work(folder, options, **how)
