"""Make a student: some layers of a model, and perhaps a part of its width.

A narrower student starts from the wider model's weights, not from chance. The hidden states of a transformer's layers
all live in one space, that of the embeddings, because each layer adds to it; so one projection P (H, h) serves for all
of them. Its columns are the principal components of the word embeddings. A matrix that reads hidden states is
multiplied with P on that side, one that writes them on the other; of heads and of feed-forward neurons the strongest
are kept.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from compress.errors import ModelError
from compress.models import label_names, take_layers
from compress.recipe_training import Student

_HEAD_WIDTH = 64
_WIDTH = 4


def student_of(model: nn.Module, student: Student, labels: list[str], seed: int) -> nn.Module:
    """Return a new classifier made of a part of `model`, as the recipe says; raises ModelError."""
    small = take_layers(model, student.layers, labels, seed)
    if student.hidden_size is None:
        return small
    heads = student.heads or max(1, student.hidden_size // _HEAD_WIDTH)
    return narrow(small, student.hidden_size, heads, student.intermediate_size or _WIDTH * student.hidden_size, seed)


def narrow(model: nn.Module, hidden_size: int, heads: int, intermediate_size: int, seed: int) -> nn.Module:
    """Return `model` with fewer numbers per token, projected on the principal components of its word embeddings.

    Works for BERT-like encoders (BERT, RoBERTa, ELECTRA). Raises ModelError for other families, and when
    `hidden_size` is larger than the model's or not divisible by `heads`.
    """
    source: Any = model
    config = source.config
    layers = _layers(source.base_model)
    if hidden_size >= config.hidden_size or hidden_size % heads:
        raise ModelError(
            f"student.hidden_size: found {hidden_size} with {heads} heads for a model {config.hidden_size} wide; "
            "expected a smaller width that the heads divide"
        )
    if intermediate_size > config.intermediate_size:
        raise ModelError(
            f"student.intermediate_size: found {intermediate_size}; expected at most the model's "
            f"{config.intermediate_size}"
        )
    changed = {"hidden_size": hidden_size, "num_attention_heads": heads, "intermediate_size": intermediate_size}
    if config.model_type == "electra":
        changed["embedding_size"] = hidden_size
    torch.manual_seed(seed)
    small: Any = type(source)(AutoConfig.for_model(**{**config.to_dict(), **changed}))
    small_layers = _layers(small.base_model)
    embeddings, small_embeddings = source.base_model.embeddings, small.base_model.embeddings
    basis = principal_components(embeddings.word_embeddings.weight.detach(), hidden_size)  # (H, h)
    # projecting loses length; LayerNorm and the layers after it expect the old size of each number
    grow = (config.hidden_size / hidden_size) ** 0.5
    with torch.no_grad():
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            if hasattr(embeddings, name):
                getattr(small_embeddings, name).weight.copy_(getattr(embeddings, name).weight @ basis * grow)
        for old, new in zip(layers, small_layers, strict=True):
            _narrow_layer(old, new, basis, grow)
    small.config.update(label_names([config.id2label[index] for index in range(config.num_labels)]))
    result: nn.Module = small
    return result.eval()


def principal_components(table: Tensor, number: int) -> Tensor:
    """Return the first `number` principal directions (H, number) of the rows of a table (V, H)."""
    centered = table.double() - table.double().mean(dim=0)
    _, vectors = torch.linalg.eigh(centered.T @ centered)  # ascending
    basis: Tensor = vectors.flip(1)[:, :number].to(table.dtype)
    return basis


def _narrow_layer(old: Any, new: Any, basis: Tensor, grow: float) -> None:
    attention, small = old.attention.self, new.attention.self
    kept = _strongest_heads(attention.value.weight, attention.num_attention_heads, small.query.out_features)
    for name in ("query", "key", "value"):
        reads, target = getattr(attention, name), getattr(small, name)
        target.weight.copy_(reads.weight[kept] @ basis / grow)
        target.bias.copy_(reads.bias[kept])
    new.attention.output.dense.weight.copy_(basis.T @ old.attention.output.dense.weight[:, kept] * grow)
    neurons = _strongest(old.output.dense.weight.T, new.intermediate.dense.out_features)
    new.intermediate.dense.weight.copy_(old.intermediate.dense.weight[neurons] @ basis / grow)
    new.intermediate.dense.bias.copy_(old.intermediate.dense.bias[neurons])
    new.output.dense.weight.copy_(basis.T @ old.output.dense.weight[:, neurons] * grow)


def _strongest_heads(values: Tensor, heads: int, width: int) -> Tensor:
    """Return the rows (width,) of the heads whose values weigh most; two narrow heads may become one wide one."""
    per_head = values.reshape(heads, -1)  # (heads, width of one × H)
    each = len(values) // heads
    chosen = _strongest(per_head, -(-width // each))
    rows: Tensor = (chosen[:, None] * each + torch.arange(each)).flatten()[:width]
    return rows


def _strongest(rows: Tensor, number: int) -> Tensor:
    """Return the indices, in order, of the rows with the largest norm."""
    found: Tensor = rows.norm(dim=1).topk(number).indices.sort().values
    return found


def _layers(encoder: Any) -> Any:
    try:
        layers = encoder.encoder.layer
        layers[0].attention.self.query  # noqa: B018 - asks whether it is a BERT-like layer
    except AttributeError as error:
        raise ModelError(
            f"a model of type {encoder.config.model_type!r} cannot be made narrower; expected an encoder like BERT, "
            "RoBERTa or ELECTRA, or leave out student.hidden_size"
        ) from error
    return layers
