"""The one training loop, read top to bottom. A killed run resumes to the same weights, bit for bit."""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from compress.errors import TrainingError
from compress.losses import UNLABELED
from compress.progress import track
from compress.recipe import Training
from service.engine.tokenization import Encoding, pad

BUCKET_BATCHES = 50
"""Texts are sorted by length inside pools of this many batches: little padding, still well mixed."""


@dataclass(frozen=True)
class TrainingSet:
    """Tokenised texts with their targets."""

    encodings: Sequence[Encoding]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    """(N,) label ids; UNLABELED where there is none."""
    teacher_logits: np.ndarray[Any, np.dtype[np.float32]] | None = None
    """(N, C) soft targets."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device."""

    inputs: dict[str, Tensor]
    labels: Tensor
    teacher_logits: Tensor | None


Loss = Callable[[Tensor, Batch], Tensor]
"""(B, C) logits and the batch -> scalar, mean over the rows."""


@dataclass
class _State:
    """Where training stands; together with the tensors of a checkpoint, all that decides what comes next."""

    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    history: tuple[float, ...] = ()


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the half precision to compute in, or None for float32.

    `auto` takes bf16 on GPUs that have it (fp16 on older ones) and on CPUs with AMX or AVX512-BF16 units; elsewhere
    a CPU emulates bf16 and loses time.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if capable else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def length_bucketed_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return one epoch's batches of indices: shuffled, but with texts of like length together."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool = batch_size * BUCKET_BATCHES
    batches = []
    for start in range(0, len(order), pool):
        members = sorted(order[start : start + pool].tolist(), key=lambda index: lengths[index])
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


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
) -> dict[str, Any]:
    """Train `model` in place, leave it with the weights of its best epoch, and return a summary.

    `validate` gives the score to be raised. Checkpoints lie in `folder`, one every `config.checkpoint_seconds` and at
    the end of each epoch; a run that finds one goes on from it. Raises TrainingError when the loss stops being finite.
    """
    device = best_device()
    model.to(device)
    torch.manual_seed(seed)
    optimizer = _optimizer(model, config)
    lengths = [encoding.tokens for encoding in data.encodings]
    steps_per_epoch = math.ceil(len(lengths) / config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_and_decay(config, steps_per_epoch))
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}

    folder.mkdir(parents=True, exist_ok=True)
    state = _load_checkpoint(folder, parts, device) or _State()
    total, done = config.epochs * steps_per_epoch, state.epoch * steps_per_epoch + state.step
    if done:
        console.print(f"  {title}: resuming at step {done} of {total}")
    saved_at = time.monotonic()
    with track(console, title, total, done) as advance:
        while state.epoch < config.epochs and not _out_of_patience(state, config.patience):
            model.train()
            batches = length_bucketed_batches(lengths, config.batch_size, seed, state.epoch)
            for indices in batches[state.step :]:
                value = _step(model, optimizer, scaler, loss, data, indices, config, pad_id, device, dtype)
                scheduler.step()
                state.step += 1
                advance(1, f"epoch {state.epoch + 1}/{config.epochs} loss {value:.4f}")
                if time.monotonic() - saved_at >= config.checkpoint_seconds and state.step < len(batches):
                    _save_checkpoint(folder, parts, state)
                    saved_at = time.monotonic()
            score = validate(model)
            console.print(f"  {title}: epoch {state.epoch + 1}/{config.epochs}, validation accuracy {score:.4f}")
            state.history += (score,)
            if score > state.best_score:
                state.best_score, state.best_epoch = score, state.epoch
                _save(folder / f"best-{state.epoch}.pt", model.state_dict())
            state.epoch, state.step = state.epoch + 1, 0
            _save_checkpoint(folder, parts, state)
            saved_at = time.monotonic()
    model.load_state_dict(_load(folder / f"best-{state.best_epoch}.pt", device))
    model.to("cpu").eval()
    return {
        "epochs": state.epoch,
        "best_epoch": state.best_epoch + 1,
        "validation_accuracy": state.best_score,
        "history": list(state.history),
        "precision": str(dtype or torch.float32).removeprefix("torch."),
    }


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Loss,
    data: TrainingSet,
    indices: list[int],
    config: Training,
    pad_id: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> float:
    """One optimizer step; gradients of its micro-batches add up to that of the whole batch."""
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    size = config.micro_batch_size or len(indices)
    for start in range(0, len(indices), size):
        micro = indices[start : start + size]
        batch = make_batch(data, micro, pad_id, device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = forward(model, batch.inputs)  # (B, C)
        share = loss(logits.float(), batch) * (len(micro) / len(indices))
        scaler.scale(share).backward()  # type: ignore[no-untyped-call]
        value += float(share.detach())
    if not math.isfinite(value):
        raise TrainingError(f"the loss became {value}; lower learning_rate, or set precision: fp32")
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    return value


def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits (B, C); inputs that this family of models does not take (token types, say) are left out."""
    taken = inspect.signature(model.forward).parameters
    logits: Tensor = model(**{name: tensor for name, tensor in inputs.items() if name in taken}).logits
    return logits


def make_batch(data: TrainingSet, indices: list[int], pad_id: int, device: torch.device) -> Batch:
    """Collate rows of `data` into one padded batch; every array is (B, T) int64 but the targets."""
    arrays = pad([data.encodings[index] for index in indices], pad_id)
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    labels = torch.from_numpy(data.labels[indices]).to(device)
    logits = None if data.teacher_logits is None else torch.from_numpy(data.teacher_logits[indices]).to(device)
    return Batch(inputs, labels, logits)


def predict(
    model: nn.Module, encodings: Sequence[Encoding], pad_id: int, batch_size: int = 64
) -> Iterator[tuple[list[int], np.ndarray[Any, np.dtype[np.float32]]]]:
    """Yield (indices, logits (B, C) float32) over all texts, longest first, in the precision of the weights."""
    device = next(model.parameters()).device
    order = sorted(range(len(encodings)), key=lambda index: -encodings[index].tokens)
    data = TrainingSet(encodings, np.full(len(encodings), UNLABELED, dtype=np.int64))
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        with torch.inference_mode():
            logits = forward(model, make_batch(data, indices, pad_id, device).inputs)
        yield indices, logits.float().cpu().numpy()


def predict_all(model: nn.Module, encodings: Sequence[Encoding], pad_id: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the logits (N, C) float32 of all texts, in their order."""
    parts = list(predict(model, encodings, pad_id))
    result = np.empty((len(encodings), parts[0][1].shape[1]), dtype=np.float32)
    for indices, logits in parts:
        result[indices] = logits
    return result


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


def _save_checkpoint(folder: Path, parts: dict[str, Any], state: _State) -> None:
    tensors = {name: part.state_dict() for name, part in parts.items()}
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    random = {"cpu": torch.get_rng_state(), "cuda": cuda}
    _save(folder / "checkpoint.pt", {"parts": tensors, "random": random, "state": vars(state)})
    for old in folder.glob("best-*.pt"):
        if old.name != f"best-{state.best_epoch}.pt":
            old.unlink()


def _load_checkpoint(folder: Path, parts: dict[str, Any], device: torch.device) -> _State | None:
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return None
    checkpoint = _load(path, device)
    for name, part in parts.items():
        part.load_state_dict(checkpoint["parts"][name])
    torch.set_rng_state(checkpoint["random"]["cpu"].cpu())
    if checkpoint["random"]["cuda"] is not None:
        torch.cuda.set_rng_state(checkpoint["random"]["cuda"].cpu())
    return _State(**checkpoint["state"])


def _save(path: Path, content: Any) -> None:
    """Write so that a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # how torch says that the disk is full
        raise TrainingError(f"{path}: the checkpoint cannot be written; is the disk full?") from error
    temporary.replace(path)


def _load(path: Path, device: torch.device) -> Any:
    return torch.load(path, map_location=device, weights_only=True)
