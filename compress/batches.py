"""Batches of texts, and what a torch model answers to them."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compress.rows import Encoded, FloatArray, gather
from service.engine.tokenization import pad

BUCKET_BATCHES = 50
"""Texts are sorted by length inside pools of this many batches: little padding, still well mixed."""


@dataclass(frozen=True)
class TrainingSet:
    """Tokenised texts with their targets."""

    encoded: Encoded
    teacher_logits: FloatArray | None = None
    """(R, C) soft targets; may be a memory map."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device."""

    inputs: dict[str, Tensor]
    where: tuple[Tensor, Tensor] | None
    """The text and token of each row, each (R,) int64; None when the outputs are the rows."""
    targets: Tensor
    """(R,) or (R, C) int64."""
    teacher_logits: Tensor | None
    """(R, C) float32."""


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


def make_batch(data: TrainingSet, indices: list[int], pad_id: int, device: torch.device) -> Batch:
    """Collate texts of `data` into one padded batch; every array is (B, T) int64 but the targets."""
    arrays = pad([data.encoded.encodings[index] for index in indices], pad_id)
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    rows = data.encoded.rows_of(indices)
    found = data.encoded.texts_and_positions(indices)
    where = None if found is None else (torch.from_numpy(found[0]).to(device), torch.from_numpy(found[1]).to(device))
    targets = torch.from_numpy(data.encoded.targets[rows]).to(device)
    logits = None if data.teacher_logits is None else torch.from_numpy(data.teacher_logits[rows]).to(device)
    return Batch(inputs, where, targets, logits)


def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the outputs (B, C) or (B, T, C); inputs that this family of models does not take are left out."""
    taken = inspect.signature(model.forward).parameters
    logits: Tensor = model(**{name: tensor for name, tensor in inputs.items() if name in taken}).logits
    return logits


def rows_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's rows (R, C) float32 for a batch."""
    rows: Tensor = gather(forward(model, batch.inputs), batch.where).float()
    return rows


def predict(
    model: nn.Module,
    encoded: Encoded,
    pad_id: int,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
    done: int = 0,
) -> Iterator[tuple[list[int], FloatArray]]:
    """Yield (indices of texts, their rows (R, C) float32) over all texts, longest first, but for the first `done`.

    Computed in the precision of the weights, or in `dtype` where given.
    """
    device = next(model.parameters()).device
    encodings = encoded.encodings
    order = sorted(range(len(encodings)), key=lambda index: -encodings[index].tokens)
    data = TrainingSet(encoded)
    model.eval()
    for start in range(done, len(order), batch_size):
        indices = order[start : start + batch_size]
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            rows = rows_of(model, make_batch(data, indices, pad_id, device))
        yield indices, rows.cpu().numpy()


def predict_all(model: nn.Module, encoded: Encoded, pad_id: int) -> FloatArray:
    """Return the rows (R, C) float32 of all texts, in their order."""
    result: FloatArray | None = None
    for indices, rows in predict(model, encoded, pad_id):
        if result is None:
            result = np.empty((int(encoded.first[-1]), rows.shape[1]), dtype=np.float32)
        result[encoded.rows_of(indices)] = rows
    return np.empty((0, 0), dtype=np.float32) if result is None else result
