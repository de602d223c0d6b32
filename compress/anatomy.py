"""Where each family of encoders keeps what can be cut: heads, neurons, layers, hidden width."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.errors import ModelError


@dataclass(frozen=True)
class _Names:
    """Names of a family's modules; all but `layers` are relative to a layer."""

    layers: str
    attention: str
    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str
    heads: str = "num_attention_heads"


_BERT = _Names(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)
_MPNET = _Names(
    layers="encoder.layer",
    attention="attention.attn",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)
_DISTILBERT = _Names(
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
    heads="n_heads",
)
_FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "mpnet": _MPNET,
    "distilbert": _DISTILBERT,
}
KNOWN = "BERT, RoBERTa, XLM-RoBERTa, ELECTRA, MPNet and DistilBERT"


@dataclass(frozen=True)
class Layer:
    """One encoder layer: LN(x + out(attention(x))), then LN(h + down(activation(up(h))))."""

    module: nn.Module
    attention: Any
    """The module that holds the number of heads."""
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    norm: nn.LayerNorm
    heads_name: str

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(getattr(self.attention, self.heads_name))

    @property
    def head_width(self) -> int:
        """Numbers of a head, which pruning leaves as they are."""
        return int(self.attention.attention_head_size)

    @property
    def neurons(self) -> int:
        """Number of feed-forward neurons."""
        return self.up.out_features


@dataclass(frozen=True)
class Anatomy:
    """An encoder taken apart."""

    layer_list: nn.ModuleList
    layers: tuple[Layer, ...]
    embeddings: nn.Module
    projection: nn.Linear | None
    """ELECTRA's map from narrower embeddings to hidden states, where there is one."""
    reader: nn.Linear
    """The linear layer of pooler or head that reads the last hidden states."""

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return self.reader.in_features

    @property
    def streams(self) -> list[nn.Module]:
        """The modules whose outputs (B, T, H) are hidden states: the embeddings, and every normalization after them."""
        first = self.projection or self.embeddings
        return [first, *(norm for layer in self.layers for norm in (layer.attention_norm, layer.norm))]


def anatomy_of(model: nn.Module) -> Anatomy:
    """Take a classifier apart; raises ModelError for a family that cannot be pruned."""
    source: Any = model
    family = getattr(source.config, "model_type", type(model).__name__)
    names = _FAMILIES.get(family)
    try:
        if names is None:
            raise AttributeError
        body = source.base_model
        layer_list = body.get_submodule(names.layers)
        layers = tuple(_layer(module, names) for module in layer_list)
        reader = _reader(source)
    except AttributeError as error:
        raise ModelError(
            f"a model of type {family!r} cannot be pruned; expected a classifier of {KNOWN}, or leave out `target` "
            "and `vocabulary.embedding_rank`"
        ) from error
    return Anatomy(layer_list, layers, body.embeddings, getattr(body, "embeddings_project", None), reader)


def heads_of(model: nn.Module) -> int | list[int]:
    """Return the heads of each layer; of a family that is not known, the one number that its configuration has."""
    config: Any = model.config
    try:
        return [layer.heads for layer in anatomy_of(model).layers]
    except ModelError:
        return int(config.num_attention_heads)


def _layer(module: nn.Module, names: _Names) -> Layer:
    parts: dict[str, Any] = {
        part: module.get_submodule(getattr(names, part))
        for part in ("attention", "query", "key", "value", "out", "attention_norm", "up", "down", "norm")
    }
    return Layer(module=module, heads_name=names.heads, **parts)


def _reader(model: Any) -> nn.Linear:
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        return pooler.dense  # type: ignore[no-any-return]
    head = getattr(model, "pre_classifier", None) or model.classifier
    return head if isinstance(head, nn.Linear) else head.dense
