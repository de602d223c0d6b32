"""Take heads, neurons, layers and hidden width out of a model for good."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from compress.anatomy import Layer, anatomy_of
from compress.factorize import FactorizedEmbedding

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """What stays of a model; every index counts in the model that is cut, from 0, and rises."""

    layers: Indices
    heads: tuple[Indices, ...]
    """Of each layer that stays, the heads."""
    neurons: tuple[Indices, ...]
    """Of each layer that stays, the feed-forward neurons."""
    hidden: Indices
    """Which of the hidden states' numbers."""


class SomeHeads(MPNetSelfAttention):  # type: ignore[misc]
    """MPNet's attention with some of its heads: it takes the position bias of these, which all layers share."""

    kept_heads: tuple[int, ...]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Map (B, T, H) to (B, T, H); `position_bias` is (B, heads of the whole model, T, T)."""
        if position_bias is not None:
            position_bias = position_bias[:, list(self.kept_heads)]
        return super().forward(hidden_states, attention_mask, head_mask, position_bias, output_attentions, **kwargs)


def cut(model: nn.Module, kept: Kept) -> None:
    """Leave in `model` only what is kept; in place. Raises ModelError for a family that cannot be pruned.

    The result computes what the whole model does with everything else masked out, where normalizations see the kept
    hidden numbers alone.
    """
    anatomy = anatomy_of(model)
    source: Any = model
    with torch.no_grad():
        for index, heads, neurons in zip(kept.layers, kept.heads, kept.neurons, strict=True):
            layer = anatomy.layers[index]
            _cut_heads(layer, heads)
            _cut_neurons(layer, neurons)
        dropped = sorted(set(range(len(anatomy.layers))) - set(kept.layers))
        for index in reversed(dropped):
            del anatomy.layer_list[index]
        source.config.num_hidden_layers = len(kept.layers)
        if len(kept.hidden) < anatomy.hidden:
            _cut_hidden(model, torch.tensor(kept.hidden))


def whole(model: nn.Module) -> Kept:
    """Return the cut that takes nothing away."""
    anatomy = anatomy_of(model)
    return Kept(
        layers=tuple(range(len(anatomy.layers))),
        heads=tuple(tuple(range(layer.heads)) for layer in anatomy.layers),
        neurons=tuple(tuple(range(layer.neurons)) for layer in anatomy.layers),
        hidden=tuple(range(anatomy.hidden)),
    )


def kept_heads(layer: Layer) -> Indices:
    """Return which of the original's heads a layer has."""
    return getattr(layer.attention, "kept_heads", None) or tuple(range(layer.heads))


def _cut_heads(layer: Layer, heads: Indices) -> None:
    if len(heads) == layer.heads:
        return
    width, original = layer.head_width, kept_heads(layer)
    rows = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
    for linear in (layer.query, layer.key, layer.value):
        take(linear, rows=rows)
    take(layer.out, columns=rows)
    set_heads(layer, tuple(original[head] for head in heads))


def set_heads(layer: Layer, heads: Indices) -> None:
    """Tell a layer's attention which of the original's heads it has."""
    attention, width = layer.attention, layer.head_width
    setattr(attention, layer.heads_name, len(heads))
    setattr(attention, "dim" if layer.heads_name == "n_heads" else "all_head_size", len(heads) * width)
    attention.kept_heads = heads
    if type(attention) is MPNetSelfAttention:
        attention.__class__ = SomeHeads


def _cut_neurons(layer: Layer, neurons: Indices) -> None:
    if len(neurons) < layer.neurons:
        chosen = torch.tensor(neurons)
        take(layer.up, rows=chosen)
        take(layer.down, columns=chosen)


def _cut_hidden(model: nn.Module, kept: Tensor) -> None:
    anatomy = anatomy_of(model)
    if anatomy.projection is not None:
        take(anatomy.projection, rows=kept)
    else:
        for module in anatomy.embeddings.children():
            if isinstance(module, nn.Embedding):
                module.weight = nn.Parameter(module.weight.detach()[:, kept].clone())
                module.embedding_dim = len(kept)
            elif isinstance(module, FactorizedEmbedding):
                take(module.project, rows=kept)
            elif isinstance(module, nn.LayerNorm):
                _take_norm(module, kept)
    reader = anatomy.reader
    for layer in anatomy.layers:
        for linear in (layer.query, layer.key, layer.value, layer.up):
            take(linear, columns=kept)
        for linear in (layer.out, layer.down):
            take(linear, rows=kept)
        for norm in (layer.attention_norm, layer.norm):
            _take_norm(norm, kept)
    take(reader, columns=kept)


def take(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Leave some outputs (rows of the weight) or inputs (columns) of a linear layer; in place."""
    weight = linear.weight.detach()
    if rows is not None:
        weight = weight[rows]
        linear.out_features = len(rows)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach()[rows].clone())
    if columns is not None:
        weight = weight[:, columns]
        linear.in_features = len(columns)
    linear.weight = nn.Parameter(weight.clone())


def _take_norm(norm: nn.LayerNorm, kept: Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight.detach()[kept].clone())
    norm.bias = nn.Parameter(norm.bias.detach()[kept].clone())
    norm.normalized_shape = (len(kept),)
