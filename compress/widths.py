"""What is left of a pruned model, kept beside its weights: a configuration has one width for all layers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from compress.anatomy import anatomy_of
from compress.cut import Kept, cut, kept_heads
from compress.errors import ModelError
from compress.factorize import rank_of, set_rank

FILE = "widths.json"


@dataclass(frozen=True)
class Widths:
    """The widths of a model whose config.json is that of the model it was cut from."""

    hidden: int
    heads: tuple[tuple[int, ...], ...]
    """Of each layer, which of the heads that its configuration has."""
    neurons: tuple[int, ...]
    """Of each layer."""
    embedding_rank: int | None = None


def widths_of(model: nn.Module) -> Widths | None:
    """Return the widths of a model that was cut, or None when its configuration says all."""
    source: Any = model
    config = source.config
    try:
        anatomy = anatomy_of(model)
    except ModelError:
        return None  # nothing that we cut
    found = Widths(
        hidden=anatomy.hidden,
        heads=tuple(kept_heads(layer) for layer in anatomy.layers),
        neurons=tuple(layer.neurons for layer in anatomy.layers),
        embedding_rank=rank_of(model),
    )
    neurons = config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size
    plain = Widths(
        hidden=config.hidden_size,
        heads=(tuple(range(config.num_attention_heads)),) * config.num_hidden_layers,
        neurons=(neurons,) * config.num_hidden_layers,
    )
    return None if found == plain else found


def write_widths(model: nn.Module, folder: Path) -> None:
    """Write `widths.json` where the model's configuration does not say all."""
    found = widths_of(model)
    if found is not None:
        (folder / FILE).write_text(json.dumps(asdict(found)), encoding="utf-8")


def load_cut(folder: Path, model_class: Any) -> nn.Module:
    """Load a model that was cut: build what its configuration says, cut it, fill in the weights; raises ModelError."""
    try:
        document = json.loads((folder / FILE).read_text(encoding="utf-8"))
        heads = tuple(tuple(layer) for layer in document["heads"])
        widths = Widths(document["hidden"], heads, tuple(document["neurons"]), document["embedding_rank"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / FILE}: not the widths of a pruned model: {error}") from error
    model: nn.Module = model_class.from_config(AutoConfig.from_pretrained(folder))
    if widths.embedding_rank is not None:
        set_rank(model, widths.embedding_rank)
    layers = tuple(range(len(widths.neurons)))
    neurons = tuple(tuple(range(number)) for number in widths.neurons)
    cut(model, Kept(layers, widths.heads, neurons, tuple(range(widths.hidden))))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model
