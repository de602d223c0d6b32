"""How much a model's answers depend on each head, neuron, layer and hidden number: Taylor and Fisher.

Each of them gets a gate that its output is multiplied with, 1 for every text. A gate's gradient says what closing it
costs:

- `taylor`: mean of |∂L/∂gate| over the texts, L being the distillation loss; the first term of the Taylor series
  (Molchanov et al. 2017; of heads: Michel et al. 2019, equation 2). Where the student still is the teacher, the loss
  and all of this is zero.
- `fisher`: mean over the texts of the squared gradient of the log-likelihood, in expectation over the model's own
  answers: the diagonal of the Fisher information, half of which is the second term of the loss's series where the first
  vanishes (Kwon et al. 2022, equations 5 to 8, with the distillation loss in the place of the labels'). Logit MSE is a
  Gaussian's log-likelihood; its Fisher is the sum over the logits of (∂logit/∂gate)², of which one backward pass with
  random signs gives an unbiased estimate (Hutchinson 1990). For KL an answer is drawn from the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compress.anatomy import Anatomy, anatomy_of
from compress.batches import Batch, TrainingSet, make_batch, rows_of
from compress.progress import Advance
from compress.train import Loss

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """What closing each gate costs, all in the same unit."""

    heads: tuple[Scores, ...]
    """Of each layer, (heads,)."""
    neurons: tuple[Scores, ...]
    """Of each layer, (neurons,)."""
    layers: Scores
    """(layers,), of a layer that is skipped."""
    hidden: Scores
    """(H,), of a hidden number that is zero everywhere."""


@dataclass(frozen=True)
class Gates:
    """Gates of one batch, 1 each: (B, heads) and (B, neurons) of every layer, (B, layers), (B, H)."""

    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    layers: Tensor
    hidden: Tensor

    @property
    def all(self) -> list[Tensor]:
        """Every gate, in a fixed order."""
        return [*self.heads, *self.neurons, self.layers, self.hidden]


def measure_importance(
    model: nn.Module,
    data: TrainingSet,
    texts: Sequence[int],
    loss: Loss,
    kind: str,
    *,
    pad_id: int,
    seed: int,
    batch_size: int = 16,
    advance: Advance | None = None,
) -> Importance:
    """Return the importance of everything that can be cut, over the given texts of `data`.

    `kind` is `taylor`, `fisher` (of logit MSE), `fisher-softmax` or `fisher-sigmoid` (of the KL of single-label and
    multi-label tasks); `loss` is read by `taylor` alone. The model is left as it was.
    """
    anatomy = anatomy_of(model)
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    model.eval()
    totals: list[Tensor] | None = None
    order = sorted(texts, key=lambda text: data.encoded.encodings[text].tokens)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = make_batch(data, chosen, pad_id, device)
        with gated(anatomy, len(chosen), device) as gates:
            objective = _objective(rows_of(model, batch), batch, loss, kind, random)
            gradients = torch.autograd.grad(objective, gates.all)
        found = [(g.abs() if kind == "taylor" else g.square()).double().sum(dim=0).cpu() for g in gradients]
        totals = found if totals is None else [one + other for one, other in zip(totals, found, strict=True)]
        if advance is not None:
            advance(len(chosen), "")
    if totals is None:
        raise ValueError("no texts to measure importance on")
    scores = [(total / len(order)).numpy() for total in totals]
    count = len(anatomy.layers)
    return Importance(tuple(scores[:count]), tuple(scores[count : 2 * count]), scores[-2], scores[-1])


@contextmanager
def gated(anatomy: Anatomy, texts: int, device: torch.device) -> Iterator[Gates]:
    """Put gates into a model for the block; closing one (0) masks its head, neuron, layer or hidden number."""

    def open_gate(number: int) -> Tensor:
        return torch.ones(texts, number, device=device, requires_grad=True)

    layers = anatomy.layers
    gates = Gates(
        heads=tuple(open_gate(layer.heads) for layer in layers),
        neurons=tuple(open_gate(layer.neurons) for layer in layers),
        layers=open_gate(len(layers)),
        hidden=open_gate(anatomy.hidden),
    )
    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            heads, neurons = gates.heads[index], gates.neurons[index]
            hooks.enter_context(layer.out.register_forward_pre_hook(_scale_input(heads, layer.head_width)))
            hooks.enter_context(layer.down.register_forward_pre_hook(_scale_input(neurons, 1)))
            hooks.enter_context(layer.module.register_forward_hook(_skip(gates.layers[:, index])))
        for stream in anatomy.streams:
            hooks.enter_context(stream.register_forward_hook(_scale_output(gates.hidden)))
        yield gates


def _objective(rows: Tensor, batch: Batch, loss: Loss, kind: str, random: torch.Generator) -> Tensor:
    """Return a scalar whose gradient is that of every text's own objective, since texts do not touch each other."""
    if kind == "taylor":
        return loss(rows, batch).sum()
    if kind == "fisher":
        signs = torch.randint(0, 2, rows.shape, generator=random).to(rows) * 2 - 1
        return (rows * signs).sum()
    detached = rows.detach().cpu()
    if kind == "fisher-softmax":
        drawn = torch.multinomial(detached.softmax(dim=-1), 1, generator=random).squeeze(-1).to(rows.device)
        return -functional.cross_entropy(rows, drawn, reduction="sum")
    answers = torch.bernoulli(detached.sigmoid(), generator=random).to(rows)
    return -functional.binary_cross_entropy_with_logits(rows, answers, reduction="sum")


def _scale_input(gate: Tensor, width: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
        scale = gate.repeat_interleave(width, dim=1)[:, None, :]  # (B, 1, gates × width)
        return (inputs[0] * scale, *inputs[1:])

    return hook


def _scale_output(gate: Tensor) -> Any:
    return lambda _, __, output: output * gate[:, None, :]


def _skip(gate: Tensor) -> Any:
    """Return a hook that mixes a layer's output (B, T, H) with its input: gate · output + (1 − gate) · input."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        mixed = inputs[0] + gate[:, None, None] * (first - inputs[0])
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return hook
