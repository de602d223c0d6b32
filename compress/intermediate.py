"""Teach a student what lies inside the teacher: hidden states, attention scores, relations of queries, keys, values."""

import inspect
import math
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.losses import attention_transfer, hidden_mse, relation_kl
from compress.models import evenly_spaced

_QKV_NAMES = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # MPNet
)


@dataclass(frozen=True)
class SelfAttention:
    """The self-attention of one layer, wherever its family keeps it."""

    names: tuple[str, ...]
    """Names, in the model, of the linear layers that make queries, keys and values."""
    linears: tuple[Any, ...]
    """These layers, of D outputs each."""
    heads: int


@dataclass(frozen=True)
class Projected:
    """What one layer's self-attention makes of its input."""

    query: Tensor
    """(B, T, D), all heads side by side; `key` and `value` alike."""
    key: Tensor
    value: Tensor
    heads: int
    position_bias: Tensor | None
    """(1, heads, T, T), what MPNet adds to its scores."""

    def scores(self) -> Tensor:
        """Return the attention scores (B, heads, T, T) float32, before padding is masked out and before the softmax."""
        texts, tokens, width = self.query.shape
        shape = (texts, tokens, self.heads, width // self.heads)
        query, key = (x.float().view(shape).transpose(1, 2) for x in (self.query, self.key))  # (B, heads, T, d)
        scores: Tensor = query @ key.transpose(-1, -2) / math.sqrt(shape[-1])
        return scores if self.position_bias is None else scores + self.position_bias.float()


@dataclass(frozen=True)
class Intermediate:
    """What one run of a model gives."""

    logits: Tensor
    """(B, C), or (B, T, C) from token classification."""
    hidden: tuple[Tensor, ...]
    """(B, T, H) each: the embeddings, then every layer; empty unless asked for."""
    attention: dict[int, Projected]
    """Of the layers asked for, counted from 0."""


def self_attentions(model: nn.Module) -> list[SelfAttention]:
    """Return the self-attention of every layer, first to last; raises ModelError for families that are not known."""
    source: Any = model
    found = []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        linears = next((names for names in _QKV_NAMES if all(linear in children for linear in names)), None)
        if linears is not None:
            heads: Any = module.n_heads if hasattr(module, "n_heads") else module.num_attention_heads
            modules = tuple(children[linear] for linear in linears)
            found.append(SelfAttention(tuple(f"{name}.{linear}" for linear in linears), modules, heads))
    if not found or len(found) != source.config.num_hidden_layers:
        raise ModelError(
            f"the queries, keys and values of a model of type {source.config.model_type!r} cannot be found; expected "
            "an encoder like BERT, RoBERTa, ELECTRA, MPNet or DistilBERT"
        )
    return found


def read(
    model: nn.Module, inputs: dict[str, Tensor], *, hidden: bool = False, layers: Collection[int] = ()
) -> Intermediate:
    """Run `model` once on `inputs`, (B, T) int64 each, and return the logits with what is asked for.

    `hidden` asks for hidden states, `layers` for queries, keys and values of these layers. Inputs that the family does
    not take (token types, say) are left out. Any attention implementation will do. Raises ModelError.
    """
    taken = inspect.signature(model.forward).parameters
    attentions = self_attentions(model) if layers else []
    outputs: dict[Any, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            for linear in attentions[layer].linears:
                hook = linear.register_forward_hook(lambda module, _, output: outputs.update({module: output}))
                hooks.enter_context(hook)
        result = model(**{name: x for name, x in inputs.items() if name in taken}, output_hidden_states=hidden)

    bias = _position_bias(model, inputs["input_ids"]) if layers else None
    attention = {}
    for layer in layers:
        query, key, value = (outputs[linear] for linear in attentions[layer].linears)
        attention[layer] = Projected(query, key, value, attentions[layer].heads, bias)
    return Intermediate(result.logits, result.hidden_states if hidden else (), attention)


def default_layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Return the teacher's layer for each layer of the student: evenly spaced, last to last (3 of 6 -> 1, 3, 5).

    Raises ModelError when the student has more layers than the teacher.
    """
    if student_layers > teacher_layers:
        raise ModelError(
            f"the student has {student_layers} layers, the teacher {teacher_layers}; expected a student with no more "
            "layers than its teacher"
        )
    return tuple(evenly_spaced(student_layers, teacher_layers))


def check_layer_map(layer_map: Sequence[int], student_layers: int, teacher_layers: int) -> None:
    """Raise ModelError unless `layer_map` has a layer of the teacher, from 0, for each of the student, in order."""
    rising = list(layer_map) == sorted(set(layer_map))
    inside = all(0 <= layer < teacher_layers for layer in layer_map)
    if len(layer_map) != student_layers or not rising or not inside:
        raise ModelError(
            f"the layer map is {list(layer_map)}; expected {student_layers} rising numbers from 0 to "
            f"{teacher_layers - 1}, the teacher's layer for each of the student's {student_layers}, such as "
            f"{list(default_layer_map(student_layers, teacher_layers))}"
        )


class Projections(nn.Module):
    """Learned maps from the student's width to the teacher's: W_h and W_e of TinyBERT (Jiao et al. 2020).

    They are trained along with the student and left behind afterwards. There is one for all layers and one for the
    embeddings, each (Hs, Ht), and only where it is needed: models of the same width are compared as they are.
    """

    hidden: nn.Parameter | None
    embedding: nn.Parameter | None

    def __init__(self, student_width: int, teacher_width: int, *, hidden: bool, embedding: bool, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, wanted in (("hidden", hidden), ("embedding", embedding)):
            weight = None
            if wanted and student_width != teacher_width:
                weight = nn.Parameter(torch.empty(student_width, teacher_width))
                nn.init.orthogonal_(weight, generator=generator)  # keeps the size of what it maps
            self.register_parameter(name, weight)


class IntermediateLoss(nn.Module):
    """Compares a student with its teacher inside, text by text.

    The loss of a text is the sum of four, each times its weight; what has the weight 0 is not computed.

    - `hidden`: `hidden_mse` of mapped layers, their mean; `embedding`: that of the embeddings.
    - `attention`: `attention_transfer` of mapped layers, their mean.
    - `relation`: the sum of `relation_kl` of queries, keys and values, between the student's last layer and the
      teacher's `relation_layer` (by default its last; Wang et al. 2021 recommend one above the middle for large
      teachers). `relation_heads` is by default the number of the teacher's attention heads.

    `layer_map` names, from 0, the teacher's layer for each layer of the student; by default `default_layer_map`.

    Parameters are the `projections` alone, drawn from `seed`: the optimizer takes them and checkpoints keep them, while
    both models stay outside. Raises ModelError when the two models cannot be compared as asked.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        hidden: float = 0.0,
        embedding: float = 0.0,
        attention: float = 0.0,
        relation: float = 0.0,
        layer_map: Sequence[int] | None = None,
        relation_layer: int | None = None,
        relation_heads: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        small, large = _config(student), _config(teacher)
        depth, teacher_depth = small.num_hidden_layers, large.num_hidden_layers
        self.hidden, self.embedding, self.attention, self.relation = hidden, embedding, attention, relation
        self.layer_map: tuple[int, ...] = ()
        if hidden or attention:
            self.layer_map = tuple(layer_map) if layer_map is not None else default_layer_map(depth, teacher_depth)
            check_layer_map(self.layer_map, depth, teacher_depth)
        self.last_layer = depth - 1
        self.relation_layer = teacher_depth - 1 if relation_layer is None else relation_layer
        self.relation_heads = large.num_attention_heads if relation_heads is None else relation_heads
        if attention:
            _check_heads(student, teacher, self.layer_map)
        if relation:
            self._check_relation(student, teacher)
        self.projections = Projections(
            small.hidden_size, large.hidden_size, hidden=hidden > 0, embedding=embedding > 0, seed=seed
        )

    def forward(self, student: nn.Module, teacher: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Run both models on `inputs` (B, T) int64; return the student's logits and each text's loss, (B,) float32.

        The teacher runs in evaluation mode and without gradients. Autocast applies to the models, not to the loss.
        Inputs that a family does not take are left out.
        """
        mask = inputs["attention_mask"]
        hidden = bool(self.hidden or self.embedding)
        own_layers = set(range(len(self.layer_map))) if self.attention else set()
        other_layers = set(self.layer_map) if self.attention else set()
        if self.relation:
            own_layers.add(self.last_layer)
            other_layers.add(self.relation_layer)
        own = read(student, inputs, hidden=hidden, layers=sorted(own_layers))
        with torch.no_grad():
            other = read(teacher.eval(), inputs, hidden=hidden, layers=sorted(other_layers))
        with torch.autocast(mask.device.type, enabled=False):
            return own.logits, self._loss(own, other, mask)

    def _loss(self, own: Intermediate, other: Intermediate, mask: Tensor) -> Tensor:
        total = torch.zeros(len(mask), device=mask.device)  # (B,)
        pairs = list(enumerate(self.layer_map))
        if self.embedding:
            loss = hidden_mse(own.hidden[0], other.hidden[0], mask, self.projections.embedding)
            total = total + self.embedding * loss
        if self.hidden:
            projection = self.projections.hidden
            losses = [hidden_mse(own.hidden[i + 1], other.hidden[j + 1], mask, projection) for i, j in pairs]
            total = total + self.hidden * torch.stack(losses).mean(dim=0)
        if self.attention:
            scores = [(own.attention[i].scores(), other.attention[j].scores()) for i, j in pairs]
            losses = [attention_transfer(of_student, of_teacher, mask) for of_student, of_teacher in scores]
            total = total + self.attention * torch.stack(losses).mean(dim=0)
        if self.relation:
            last, target = own.attention[self.last_layer], other.attention[self.relation_layer]
            vectors = [(last.query, target.query), (last.key, target.key), (last.value, target.value)]
            losses = [relation_kl(mine, theirs, mask, self.relation_heads) for mine, theirs in vectors]
            total = total + self.relation * torch.stack(losses).sum(dim=0)
        return total

    def _check_relation(self, student: nn.Module, teacher: nn.Module) -> None:
        own, other = self_attentions(student), self_attentions(teacher)
        if not 0 <= self.relation_layer < len(other):
            raise ModelError(
                f"the relation layer is {self.relation_layer}; expected one of the teacher's layers, from 0 to "
                f"{len(other) - 1}"
            )
        widths = [layer.linears[0].out_features for layer in (own[self.last_layer], other[self.relation_layer])]
        if self.relation_heads < 1 or any(width % self.relation_heads for width in widths):
            raise ModelError(
                f"{self.relation_heads} relation heads do not divide the student's width {widths[0]} and the teacher's "
                f"{widths[1]}; choose a divisor of {math.gcd(*widths)}"
            )


def _config(model: nn.Module) -> Any:
    source: Any = model
    return source.config


def _check_heads(student: nn.Module, teacher: nn.Module, layer_map: Sequence[int]) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        kind = getattr(_config(model), "position_embedding_type", "absolute")
        if kind != "absolute":
            raise ModelError(f"the {name} has positions of type {kind!r}; attention transfer expects absolute ones")
    own, other = self_attentions(student), self_attentions(teacher)
    for layer, teacher_layer in enumerate(layer_map):
        heads, teacher_heads = own[layer].heads, other[teacher_layer].heads
        if heads != teacher_heads:
            raise ModelError(
                f"layer {layer} of the student has {heads} attention heads, layer {teacher_layer} of the teacher "
                f"{teacher_heads}; attention transfer compares heads one to one: use relation distillation, which "
                "splits both into the same number"
            )


def _position_bias(model: nn.Module, input_ids: Tensor) -> Tensor | None:
    """Return what MPNet adds to the scores of every layer, (1, heads, T, T); None for other families."""
    source: Any = model
    compute = getattr(getattr(source.base_model, "encoder", None), "compute_position_bias", None)
    bias: Tensor | None = compute(input_ids[:1]) if compute else None
    return bias
