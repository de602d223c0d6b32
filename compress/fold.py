"""Graph passes that drop small nodes and not accuracy: in a narrow encoder each node's start costs as much as its work.

Each pass touches only what it recognises and says how much that was; the caller compares the result with torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from compress.fuse import multiplies_constant, without_bias
from compress.graph import Graph


@dataclass(frozen=True)
class _Reader:
    """A MatMul that reads a normalised tensor, and the bias (N,) that is added to its product."""

    weight: Any
    product: str
    adder: NodeProto
    """The Add, or the MultiHeadAttention, that adds it."""
    position: int
    """Which input of `adder` the bias is."""
    part: slice
    """Where in the bias this MatMul's own lies: MultiHeadAttention takes those of query, key and value as one."""


def fold_biases(graph: Graph) -> int:
    """Move biases that are added just before a residual into the normalisation before them; return how many.

    In LN(x @ W + b + h), where h (B, T, H) is the output of an earlier LayerNormalization, h + b costs nothing: b goes
    into that node's own bias. The matrices that read h then see b too, so each one's bias gives up b @ W. One pass
    over (B, T, H) less for each, in float as in INT8.
    """
    folded = 0
    for norm in [node for node in graph.nodes if node.op_type == "LayerNormalization" and len(node.input) > 2]:
        shift = graph.weight(norm.input[2])
        match = _match_residual(graph, norm.output[0])
        if shift is None or match is None:
            continue
        residual, name, readers = match
        product, bias = without_bias(graph, name)
        if bias is None or bias.shape != shift.shape:
            continue
        norm.input[2] = graph.add_weight(f"{norm.output[0]}_shifted_bias", shift + bias)
        for reader in readers:
            _give_up(graph, reader, bias)
        graph.rewire(residual, name, product)
        folded += 1
    graph.sweep()
    return folded


def slice_positions(graph: Graph) -> bool:
    """Read position embeddings as the first T rows of their table instead of gathering them; return whether it could.

    For encoders whose positions are 0 … T−1; those that count from the padding on (RoBERTa) are left alone.
    """
    for node in [node for node in graph.nodes if node.op_type == "Gather"]:
        table, ids = graph.weight(node.input[0]), graph.producer(node.input[1])
        if table is None or table.ndim != 2 or ids is None or ids.op_type != "Slice":
            continue
        positions = graph.constant(ids.input[0])
        if positions is None or not _is_counting(positions, len(table)) or not _ends_at_sequence_length(graph, ids):
            continue
        name = node.output[0]
        start = graph.add_weight("positions_start", np.array([0], np.int64))
        axis = graph.add_weight("positions_axis", np.array([1], np.int64))
        rows = graph.add_weight(f"{node.input[0]}_batch", np.expand_dims(table[: positions.size], 0))  # (1, P, H)
        length = graph.node("Shape", ["input_ids"], f"{name}_length", start=1, end=2)  # (1,)
        graph.replace(node, [length, graph.node("Slice", [rows, start, length.output[0], axis], name)])
        graph.sweep()
        return True
    return False


def _match_residual(graph: Graph, hidden: str) -> tuple[NodeProto, str, list[_Reader]] | None:
    """Return the one residual Add that reads `hidden`, the name of its other input, and the MatMuls that read it.

    None if anything else reads `hidden`, if a MatMul has no bias to give up from, or if the other input is read twice.
    """
    names, residuals, readers = [hidden], [], []
    for name in names:
        for user in graph.consumers(name):
            if user.op_type == "Slice" and user.input[0] == name:
                names.append(user.output[0])
            elif user.op_type == "Shape":
                continue  # says nothing of the values
            elif user.op_type == "Add":
                residuals.append((user, next((other for other in user.input if other != name), name)))
            elif (reader := _reader(graph, user)) is not None:
                readers.append(reader)
            else:
                return None
    if len(residuals) != 1 or len(graph.consumers(residuals[0][1])) != 1:
        return None
    return *residuals[0], readers


def _reader(graph: Graph, matmul: NodeProto) -> _Reader | None:
    if not multiplies_constant(graph, matmul):
        return None
    weight, product = graph.weight(matmul.input[1]), matmul.output[0]
    users = graph.consumers(product)
    if weight is None or len(users) != 1 or list(users[0].input).count(product) != 1:
        return None
    user, width = users[0], weight.shape[1]
    index = list(user.input).index(product)
    if user.op_type == "Add":
        position, first = 1 - index, 0
    elif user.op_type == "MultiHeadAttention" and index < 3 < len(user.input):
        position, first = 3, index * width
    else:
        return None
    bias = graph.weight(user.input[position])
    if bias is None or bias.ndim != 1 or len(bias) < first + width:
        return None
    return _Reader(weight, product, user, position, slice(first, first + width))


def _give_up(graph: Graph, reader: _Reader, shift: Any) -> None:
    """Take `shift` (K,) @ W off the bias of a MatMul that now reads its input with `shift` added."""
    name = reader.adder.input[reader.position]
    values = np.array(graph.weight(name), dtype=np.float64)
    values[reader.part] -= shift.astype(np.float64) @ reader.weight.astype(np.float64)
    less = graph.add_weight(f"{name}_less_{reader.product}", values.astype(np.float32))
    graph.rewire(reader.adder, name, less)


def _is_counting(positions: Any, rows: int) -> bool:
    """Whether a constant is 0, 1, 2 … (1, P) for a table of at least P rows."""
    if positions.ndim != 2 or len(positions) != 1 or positions.size > rows:
        return False
    return bool((positions[0] == np.arange(positions.size)).all())


def _ends_at_sequence_length(graph: Graph, ids: NodeProto) -> bool:
    """Whether a Slice takes the first T along axis 1 in steps of 1, T being the length of `input_ids` (B, T)."""
    if len(ids.input) < 4:
        return False
    start, axis, step = (_scalar(graph, name) for name in (ids.input[1], ids.input[3], ids.input[-1]))
    if start != 0 or axis != 1 or (len(ids.input) > 4 and step != 1):
        return False
    end = graph.producer(ids.input[2])
    while end is not None and end.op_type in ("Unsqueeze", "Reshape"):
        end = graph.producer(end.input[0])
    if end is None or end.op_type != "Gather" or _scalar(graph, end.input[1]) != 1:
        return False
    shape = graph.producer(end.input[0])
    return shape is not None and shape.op_type == "Shape" and shape.input[0] == "input_ids" and not shape.attribute


def _scalar(graph: Graph, name: str) -> float | None:
    value = graph.constant(name)
    return float(value.item()) if value is not None and value.size == 1 else None
