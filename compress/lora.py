"""Fine-tune a big teacher through low-rank updates of its attention (LoRA), by way of peft."""

from typing import Any

import torch
from torch import nn

from compress.errors import ModelError
from compress.intermediate import self_attentions


def with_lora(model: nn.Module, rank: int, alpha: float, dropout: float, seed: int = 0) -> nn.Module:
    """Put LoRA on the queries and values of every layer of `model`, in place, and return it; Hu et al. 2022, section 4.

    A weight becomes W + alpha / rank · B · A, with A drawn from `seed` and B zero, so the outputs do not change yet;
    inputs of A have `dropout`. Trainable are A, B, the classifier head and, where there is one, the pooler. The model
    keeps its class and forward, and its state_dict, with A and B in it, loads into a model wrapped with the same rank.
    Raises ModelError when peft is missing, and for families of models that are not known.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("LoRA needs peft; install it: pip install 'limbeck[train]'") from error
    targets = [name for attention in self_attentions(model) for name in (attention.names[0], attention.names[2])]
    torch.manual_seed(seed)
    # alpha may be any number, whatever peft's annotation says
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets}
    inject_adapter_in_model(LoraConfig(**settings), model)  # which freezes everything else
    source: Any = model
    body = f"{source.base_model_prefix}."
    for name, parameter in model.named_parameters():
        if not name.startswith(body) or name.startswith(f"{body}pooler."):
            parameter.requires_grad_(True)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Add the updates into the weights of a wrapped `model`, in place, and return it: a plain transformers model again.

    All its parameters are trainable again.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model.requires_grad_(True)
