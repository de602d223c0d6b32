"""The one training loop, read top to bottom. A killed run resumes to the same weights, bit for bit."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from compress.batches import (
    Batch,
    TrainingSet,
    autocast_dtype,
    best_device,
    length_bucketed_batches,
    make_batch,
    rows_of,
)
from compress.errors import TrainingError, UnsavedError
from compress.events import events
from compress.intermediate import IntermediateLoss
from compress.progress import track
from compress.recipe_training import Training
from compress.recompute import recomputed
from compress.regularize import FGM, r_drop
from compress.rows import gather
from compress.team import ALONE, Team

_SEEDS_APART = 1_000_003

Loss = Callable[[Tensor, Batch], Tensor]
"""(R, C) rows and the batch -> one value a row, (R,)."""


@dataclass(frozen=True)
class Beside:
    """Losses on what lies between input and output, and the teacher they compare with."""

    loss: IntermediateLoss
    teacher: nn.Module


@dataclass
class _State:
    """Where training stands; together with the tensors of a checkpoint, all that decides what comes next."""

    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    history: tuple[float, ...] = ()


def train(
    model: nn.Module,
    data: TrainingSet,
    loss: Loss,
    validate: Callable[[nn.Module], float],
    config: Training,
    *,
    pad_id: int,
    seed: int,
    folder: Path,
    console: Console,
    title: str,
    metric: str,
    beside: Beside | None = None,
    team: Team = ALONE,
    events_folder: Path | None = None,
) -> dict[str, Any]:
    """Train `model` in place, leave it with the weights of its best epoch, and return a summary.

    `validate` gives the score, called `metric`, that is to be raised. `beside` adds losses on hidden states, with
    projections that are trained, too. Checkpoints lie in `folder`, one every `config.checkpoint_seconds` and at the end
    of each epoch; a run that finds one goes on from it. Every process of `team` calls this with the same arguments:
    each takes its share of every batch, the first one validates and writes. `events_folder` is for TensorBoard. Raises
    TrainingError when the loss stops being finite, and LostError when another process has ended.
    """
    device = best_device()
    model.to(device)
    torch.manual_seed(seed + _SEEDS_APART * team.rank)  # other dropout in each process, as in one large batch
    folder = Path(team.shared(str(folder)))
    trained = nn.ModuleDict({"model": model} | ({"beside": beside.loss.to(device)} if beside else {}))
    if beside:
        beside.teacher.to(device)
    optimizer = _optimizer(trained, config)
    lengths = [encoding.tokens for encoding in data.encoded.encodings]
    steps_per_epoch = math.ceil(len(lengths) / config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_and_decay(config, steps_per_epoch))
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    scaler.scale(torch.zeros((), device=device))  # it has no scale before, and this process's first share may be empty
    parts = {"model": trained, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}

    if team.first:
        folder.mkdir(parents=True, exist_ok=True)
    team.start_alike(trained)
    state = _load_checkpoint(folder, parts, device, team) or _State()
    total, done = config.epochs * steps_per_epoch, state.epoch * steps_per_epoch + state.step
    if done:
        console.print(f"  {title}: resuming at step {done} of {total}")
    step = _Step(trained, optimizer, scaler, loss, beside, data, config, pad_id, device, dtype, team)
    saved_at = time.monotonic()
    told = events_folder if team.first else None
    with (
        recomputed(model, config.gradient_checkpointing),
        events(told, title, done) as tell,
        track(console, title, total, done) as advance,
    ):
        while state.epoch < config.epochs and not _out_of_patience(state, config.patience):
            model.train()
            batches = length_bucketed_batches(lengths, config.batch_size, seed, state.epoch)
            for indices in batches[state.step :]:
                try:
                    value = step(indices)
                except FloatingPointError as error:
                    raise TrainingError(
                        f"{title}: the loss became {error} at step {state.step + 1} of epoch {state.epoch + 1}; "
                        "lower learning_rate, or set precision: fp32"
                    ) from error
                tell(done, loss=value, learning_rate=float(scheduler.get_last_lr()[0]))
                scheduler.step()
                state.step += 1
                done += 1
                advance(1, f"epoch {state.epoch + 1}/{config.epochs} loss {value:.4f}")
                due = time.monotonic() - saved_at >= config.checkpoint_seconds and state.step < len(batches)
                if team.shared(due):
                    _save_checkpoint(folder, parts, state, team)
                    saved_at = time.monotonic()
            score = team.shared(validate(model) if team.first else 0.0)
            tell(done - 1, **{metric: score})  # with the last step's, so that going on after it leaves it
            console.print(f"  {title}: epoch {state.epoch + 1}/{config.epochs}, validation {metric} {score:.4f}")
            state.history += (score,)
            if score > state.best_score:
                state.best_score, state.best_epoch = score, state.epoch
                if team.first:
                    _save(folder / f"best-{state.epoch}.pt", model.state_dict())
            state.epoch, state.step = state.epoch + 1, 0
            _save_checkpoint(folder, parts, state, team)
            saved_at = time.monotonic()
    team.shared(None)  # the best weights are written
    model.load_state_dict(_load(folder / f"best-{state.best_epoch}.pt", device))
    model.to("cpu").eval()
    return {
        "epochs": state.epoch,
        "best_epoch": state.best_epoch + 1,
        "metric": metric,
        "validation_score": state.best_score,
        "history": list(state.history),
        "precision": str(dtype or torch.float32).removeprefix("torch."),
    }


@dataclass(frozen=True)
class _Step:
    """One optimizer step over some texts; gradients of its micro-batches add up to that of the whole batch."""

    trained: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    beside: Beside | None
    data: TrainingSet
    config: Training
    pad_id: int
    device: torch.device
    dtype: torch.dtype | None
    team: Team = ALONE

    def __call__(self, indices: list[int]) -> float:
        """Return the loss; raises FloatingPointError when it is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        value = self.team.total(self._backward(indices))
        self.team.add_gradients(self.trained)
        if self.config.fgm_epsilon:
            with FGM(self.trained["model"], self.config.fgm_epsilon).perturbed():
                if not self.team.first:  # the sum of the clean pass is in the first process's gradients already
                    self.optimizer.zero_grad(set_to_none=True)
                self._backward(indices)
            self.team.add_gradients(self.trained)
        if not math.isfinite(value):
            raise FloatingPointError(value)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _backward(self, indices: list[int]) -> float:
        """Add the gradient of one pass over this process's share of these texts; return its share of the loss."""
        size = self.config.micro_batch_size or len(indices)
        rows, value = max(1, len(self.data.encoded.rows_of(indices))), 0.0
        own = indices[self.team.rank :: self.team.size]
        for start in range(0, len(own), size):
            batch = make_batch(self.data, own[start : start + size], self.pad_id, self.device)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                share = self._share(batch, rows, len(indices))
            self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            value += float(share.detach())
        return value

    def _share(self, batch: Batch, rows: int, texts: int) -> Tensor:
        """Return a micro-batch's share, a scalar, of the loss of a step of `rows` rows and `texts` texts."""
        model = self.trained["model"]
        if self.beside is None:
            found, extra = rows_of(model, batch), None
        else:
            outputs, extra = self.beside.loss(model, self.beside.teacher, batch.inputs)
            found = gather(outputs, batch.where).float()
        values = self.loss(found, batch)  # (R,)
        if self.config.r_drop:
            again = rows_of(model, batch)
            symmetric = r_drop(found, again, multi_label=batch.targets.ndim > 1)
            values = (values + self.loss(again, batch)) / 2 + self.config.r_drop * symmetric
        share = values.sum() / rows
        return share if extra is None else share + extra.sum() / texts


def _optimizer(model: nn.Module, config: Training) -> torch.optim.AdamW:
    # Biases and normalisation weights are not decayed (BERT, Devlin et al. 2019, appendix A.2).
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # fused: one pass over the weights; on two CPU cores a step takes 12 ms instead of 74 (docs/experiments.md)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _warmup_and_decay(config: Training, steps_per_epoch: int) -> Callable[[int], float]:
    total = config.epochs * steps_per_epoch
    warmup = max(1, round(total * config.warmup_ratio))
    return lambda step: min((step + 1) / warmup, max(0.0, (total - step) / max(1, total - warmup)))


def _out_of_patience(state: _State, patience: int) -> bool:
    return state.epoch - 1 - state.best_epoch >= patience


def _save_checkpoint(folder: Path, parts: dict[str, Any], state: _State, team: Team) -> None:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    random = team.gathered({"cpu": torch.get_rng_state(), "cuda": cuda})
    if not team.first:
        return
    tensors = {name: part.state_dict() for name, part in parts.items()}
    _save(folder / "checkpoint.pt", {"parts": tensors, "random": random, "state": vars(state)})
    for old in folder.glob("best-*.pt"):
        if old.name != f"best-{state.best_epoch}.pt":
            old.unlink()


def _load_checkpoint(folder: Path, parts: dict[str, Any], device: torch.device, team: Team) -> _State | None:
    path = folder / "checkpoint.pt"
    if not team.shared(path.is_file()):
        return None
    checkpoint = _load(path, device)
    for name, part in parts.items():
        part.load_state_dict(checkpoint["parts"][name])
    if team.rank < len(checkpoint["random"]):  # there may have been fewer processes before
        random = checkpoint["random"][team.rank]
        torch.set_rng_state(random["cpu"].cpu())
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"].cpu())
    team.shared(None)  # nobody writes the next one before all have read this
    return _State(**checkpoint["state"])


def _save(path: Path, content: Any) -> None:
    """Write so that a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # a RuntimeError is how torch says that the disk is full
        temporary.unlink(missing_ok=True)
        raise UnsavedError(f"{path}: the checkpoint cannot be written; is the disk full?") from error
    temporary.replace(path)


def _load(path: Path, device: torch.device) -> Any:
    return torch.load(path, map_location=device, weights_only=True)
