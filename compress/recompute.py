"""Gradient checkpointing: layers keep their inputs alone and run again in the backward pass (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from compress.errors import ModelError
from compress.models import LAYER_LISTS


@contextmanager
def recomputed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Make every layer of `model` run twice while it trains inside the block, where `wanted`; gradients are the same.

    Memory for activations falls from all of a layer's to its input's; a step takes about a third longer. Dropout is
    drawn alike both times. Raises ModelError for families of models that are not known.
    """
    layers = _layers(model) if wanted else []
    for layer in layers:
        plain = layer.forward
        layer.forward = partial(_twice, layer, plain)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _twice(layer: nn.Module, plain: Any, *args: Any, **kwargs: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    return checkpoint(plain, *args, use_reentrant=False, **kwargs)


def _layers(model: nn.Module) -> list[nn.Module]:
    source: Any = model
    for name in LAYER_LISTS:
        try:
            found = model.get_submodule(f"{source.base_model_prefix}.{name}")
        except AttributeError:
            continue
        return list(found.children())
    raise ModelError(
        f"gradient_checkpointing: the layers of a model of type {source.config.model_type!r} cannot be found; expected "
        "an encoder like BERT, RoBERTa, ELECTRA, MPNet or DistilBERT"
    )
