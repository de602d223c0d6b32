"""Quantisation-aware training: a torch model that computes as its per-token INT8 twin will.

Inside `fake_quantized`, every nn.Linear that `compress.quantize` would quantise rounds its input row by row and its
weight channel by channel, as the INT8 graph does, and rounded embeddings have one scale a row. Gradients pass through
the rounding unchanged (the straight-through estimator of Bengio et al. 2013); scales are not learned but taken from the
largest magnitude each time, as in Q8BERT (Zafrir et al. 2019, section 2), so nothing is ever clipped. The weights that
are trained are the float ones: names, shapes and checkpoints stay as they are, and after the block the plain model is
exported and quantised as any other.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.quantize_weights import MIN_GEMM_ELEMENTS, MIN_MATRIX_ELEMENTS, MIN_TABLE_BYTES

_LEVELS = 127


@contextmanager
def fake_quantized(
    model: nn.Module,
    *,
    weight_bits: int = 8,
    embeddings: bool = True,
    keep_float: Collection[str] = (),
    is_quantized: Callable[[str, nn.Linear], bool] | None = None,
) -> Iterator[int]:
    """Make `model` compute with rounded activations and weights inside the block; yields how many layers do.

    `keep_float` are module names (of `named_modules`) that stay float; `is_quantized(name, linear)` decides for the
    others, by default by size, as `compress.quantize` does for a MatMul. Layers are given back as they were when the
    block ends, also after an exception.
    """
    decide = is_quantized or (lambda _, linear: linear.weight.numel() >= MIN_MATRIX_ELEMENTS)
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for name, module in model.named_modules():
            if type(module) is nn.Linear and name not in keep_float and decide(name, module):
                twin: type[nn.Module] = _QuantizedLinear
            elif type(module) is nn.Embedding and embeddings and _is_large(module) and name not in keep_float:
                twin = _QuantizedEmbedding
            else:
                continue
            changed.append((module, type(module)))
            module.__class__ = twin
            module.limbeck_weight_levels = 2 ** (weight_bits - 1) - 1
        yield len(changed)
    finally:
        for module, plain in changed:
            module.__class__ = plain
            del module.limbeck_weight_levels


def fake_quantize_rows(values: Tensor, levels: int) -> Tensor:
    """Round each row (the last axis) of a float tensor to `levels` steps on either side of zero.

    The gradient is that of the identity. An all-zero row stays zero.
    """
    exact = values.detach().float()
    largest = exact.abs().amax(dim=-1, keepdim=True)  # (…, 1)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    rounded = torch.round(exact / safe * levels) * (safe / levels)
    return values + (rounded.to(values.dtype) - values.detach())


class _QuantizedLinear(nn.Linear):
    """An nn.Linear whose forward is that of the INT8 graph, up to float32's rounding."""

    limbeck_weight_levels: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """Map (…, K) to (…, N)."""
        if input.ndim == 2 and self.weight.numel() < MIN_GEMM_ELEMENTS:  # one row a text: a Gemm, too small for INT8
            return super().forward(input)
        weight = fake_quantize_rows(self.weight, self.limbeck_weight_levels)  # (N, K), a row is a channel
        return functional.linear(fake_quantize_rows(input, _LEVELS), weight, self.bias)


class _QuantizedEmbedding(nn.Embedding):
    """An nn.Embedding whose rows are rounded after they were looked up, which is the same and cheaper."""

    limbeck_weight_levels: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """Map ids (…) to embeddings (…, H)."""
        return fake_quantize_rows(super().forward(input), _LEVELS)


def _is_large(module: nn.Embedding) -> bool:
    return module.weight.numel() * 4 >= MIN_TABLE_BYTES
