"""From logits to labels and scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Activation

FloatArray = NDArray[np.float32]


def activate(logits: FloatArray, activation: Activation, temperature: float = 1.0) -> FloatArray:
    """Turn logits (B, C) float32 into scores (B, C) float32.

    Both functions are stable: softmax subtracts the row's maximum, sigmoid never takes the exponential of a
    positive number. `temperature` divides the logits first (Guo et al. 2017, equation 9).
    """
    scaled = logits.astype(np.float32, copy=False) / np.float32(temperature)
    if activation is Activation.SOFTMAX:
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)
    if activation is Activation.SIGMOID:
        decayed = np.exp(-np.abs(scaled))
        return np.asarray(np.where(scaled >= 0, 1 / (1 + decayed), decayed / (1 + decayed)), dtype=np.float32)
    return np.asarray(scaled, dtype=np.float32)


def rank(scores: FloatArray, labels: Sequence[str], top_k: int | None = None) -> list[tuple[str, float]]:
    """Pair one row of scores (C,) with its labels, highest first; equal scores keep label order."""
    values = scores.tolist()  # for a few labels plain Python is faster than numpy's sort
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top_k]
    return [(labels[index], values[index]) for index in order]
