"""Graph passes that change the speed of an encoder and not its answers.

`fuse_attention` puts one com.microsoft.MultiHeadAttention node in the place of the dozen that an exporter writes for
each attention. `keep_first_tokens` then lets the last layer compute the first tokens only, when the classifier
reads no more than token 0. Each pass touches only what it recognises and says how much that was; the caller compares
the result with torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from compress.graph import MICROSOFT, Graph

_MASK = "attention_mask"
# One token would do, but ONNX Runtime multiplies a single row with another kernel, whose sums depend on the padding:
# 2 of 200 texts then changed their last bit among batch mates. Every text has at least two tokens.
_KEPT_TOKENS = 2
_POSITION_BIAS = 5  # which input of MultiHeadAttention
# operators that treat the tokens of a text one by one
_ROW_WISE = {"Add", "Cast", "Div", "Erf", "Gelu", "LayerNormalization", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"}


def fuse_attention(graph: Graph, heads: int | Sequence[int]) -> int:
    """Fuse every attention whose mask is the padding mask alone; return how many there were.

    `heads` are those of every layer, or of each one, first to last.
    """
    fused = 0
    mask = f"{_MASK}_int32"
    for layer, softmax in enumerate([node for node in graph.nodes if node.op_type == "Softmax"]):
        match = _match_attention(graph, softmax)
        if match is None:
            continue
        last, sources, position_bias = match
        if not fused:
            graph.insert_before(graph.nodes[0], [graph.node("Cast", [_MASK], mask, to=TensorProto.INT32)])
        split = [without_bias(graph, source) for source in sources]
        biases = [bias for _, bias in split if bias is not None]
        inputs, joined = sources, ""
        if len(biases) == len(split):  # MultiHeadAttention adds the three biases itself
            inputs = [product for product, _ in split]
            joined = graph.add_weight(f"{last.output[0]}_bias", np.concatenate(biases))
        number = heads if isinstance(heads, int) else heads[layer]
        inputs = [*inputs, joined, mask]
        if position_bias is not None:
            inputs.append(_before_expanding(graph, position_bias))
        attention = graph.node("MultiHeadAttention", inputs, last.output[0], MICROSOFT, num_heads=number)
        graph.replace(last, [attention])
        fused += 1
    graph.sweep()
    return fused


def keep_first_tokens(graph: Graph) -> bool:
    """Cut the last layer down to the first tokens of each text; return whether the graph allowed it.

    The classifier must read token 0 alone, through operators that treat tokens one by one. Keys and values still see
    every token, so the result is the same.
    """
    attentions = [node for node in graph.nodes if node.op_type == "MultiHeadAttention"]
    gather = next((node for node in graph.nodes if _takes_first_token(graph, node)), None)
    if not attentions or gather is None:
        return False
    attention = attentions[-1]
    projection = _projection(graph, attention.input[0])
    if projection is None or any(user is not attention for user in graph.consumers(attention.input[0])):
        return False
    hidden = projection.input[0]  # (B, T, H), what the last layer reads
    region = _row_wise_region(graph, gather, stop={attention.output[0], hidden})
    if region is None:
        return False
    bounds = {"start": 0, "end": _KEPT_TOKENS, "axis": 1}
    names = [graph.add_weight(f"kept_tokens_{key}", np.array([value], np.int64)) for key, value in bounds.items()]
    first = f"{hidden}_first"  # (B, 2, H)
    graph.insert_before(projection, [graph.node("Slice", [hidden, *names], first)])
    for node in [projection, *region]:
        graph.rewire(node, hidden, first)
    if len(attention.input) > _POSITION_BIAS:  # (…, T, T), a row for each query
        bias = attention.input[_POSITION_BIAS]
        axis = graph.add_weight("kept_tokens_rows", np.array([2], np.int64))
        graph.insert_before(attention, [graph.node("Slice", [bias, *names[:2], axis], f"{bias}_first")])
        graph.rewire(attention, bias, f"{bias}_first")
    return True


def _match_attention(graph: Graph, softmax: NodeProto) -> tuple[NodeProto, list[str], str | None] | None:
    """Return the attention's last node, the (B, T, H) names of query, key and value, and that of its position bias.

    None if it is not one we know. The pattern is Reshape(Transpose(MatMul(Softmax(Add(MatMul(q, k), mask)), v))),
    scaled before or after q · k. MPNet adds a bias (1, heads, T, T) before the mask; others have none.
    """
    add = graph.producer(softmax.input[0])
    if add is None or add.op_type != "Add" or not _is_padding_mask(graph, add.input[1]):
        return None
    scores, position_bias = _scores(graph, add.input[0]), None
    biased = graph.producer(add.input[0])
    if scores is None and biased is not None and biased.op_type == "Add":
        scores, position_bias = _scores(graph, biased.input[0]), biased.input[1]
    context = _only_consumer(graph, softmax.output[0], "MatMul")
    transpose = _only_consumer(graph, context.output[0], "Transpose") if context else None
    reshape = _only_consumer(graph, transpose.output[0], "Reshape") if transpose else None
    if scores is None or context is None or reshape is None:
        return None
    sources = [_before_heads(graph, name) for name in (scores.input[0], scores.input[1], context.input[1])]
    found = [source for source in sources if source is not None]
    return (reshape, found, position_bias) if len(found) == len(sources) else None


def _scores(graph: Graph, name: str) -> NodeProto | None:
    """Return the product of query and key behind `name`, across its scale where that is not part of q and k."""
    node = graph.producer(name)
    if node is not None and node.op_type in ("Div", "Mul") and graph.constant(node.input[1]) is not None:
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type == "MatMul" else None


def _before_expanding(graph: Graph, name: str) -> str:
    """Return a position bias before it was copied for every text of the batch, which MultiHeadAttention does itself."""
    node = graph.producer(name)
    if node is not None and node.op_type == "Expand":
        return str(node.input[0])
    expand = graph.producer(node.input[0]) if node is not None and node.op_type == "Gather" else None
    if node is None or expand is None or expand.op_type != "Expand":
        return name
    some_heads = graph.node("Gather", [expand.input[0], node.input[1]], f"{name}_one", axis=1)
    graph.insert_before(node, [some_heads])
    return str(some_heads.output[0])


def _before_heads(graph: Graph, name: str) -> str | None:
    """Walk from a per-head tensor back over scaling, transposing and reshaping to the (B, T, H) tensor."""
    node = graph.producer(name)
    while node is not None and node.op_type in ("Mul", "Div", "Transpose"):
        node = graph.producer(node.input[0])
    return node.input[0] if node is not None and node.op_type == "Reshape" else None


def _is_padding_mask(graph: Graph, name: str) -> bool:
    """Whether a tensor is computed from the attention mask and from no matrix (such as a position bias)."""
    pending, seen = [name], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        weight = graph.weight(current)
        if weight is not None and weight.ndim > 1:
            return False
        node = graph.producer(current)
        # the shape of a tensor says nothing of its values
        pending += [] if node is None or node.op_type == "Shape" else node.input
    return _MASK in seen


def without_bias(graph: Graph, name: str) -> tuple[str, Any]:
    """Split Add(product, bias) into the product's name and the bias (H,); other tensors have none."""
    node = graph.producer(name)
    if node is not None and node.op_type == "Add":
        for bias, product in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
            value = graph.weight(bias)
            if value is not None and value.ndim == 1:
                return product, value
    return name, None


def _projection(graph: Graph, name: str) -> NodeProto | None:
    """Return the MatMul with a constant matrix behind `name`, across a bias."""
    node = graph.producer(without_bias(graph, name)[0])
    return node if node is not None and multiplies_constant(graph, node) else None


def _row_wise_region(graph: Graph, gather: NodeProto, stop: set[str]) -> list[NodeProto] | None:
    """Return the nodes between `stop` and `gather` if all treat tokens one by one and feed nothing else."""
    region: list[NodeProto] = []
    pending = [gather.input[0]]
    while pending:
        name = pending.pop()
        node = graph.producer(name)
        if name in stop or graph.constant(name) is not None or (node is not None and _contains(region, node)):
            continue
        if node is None or not (node.op_type in _ROW_WISE or multiplies_constant(graph, node)):
            return None
        region.append(node)
        pending += node.input
    for node in region:
        if not all(user is gather or _contains(region, user) for user in graph.consumers(node.output[0])):
            return None
    return region


def _contains(nodes: list[NodeProto], node: NodeProto) -> bool:
    return any(other is node for other in nodes)  # == would compare whole messages


def multiplies_constant(graph: Graph, node: NodeProto) -> bool:
    """Whether a node is a MatMul with a constant matrix."""
    return node.op_type == "MatMul" and graph.weight(node.input[1]) is not None


def _takes_first_token(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "Gather" or all(a.name != "axis" or a.i != 1 for a in node.attribute):
        return False
    index = graph.constant(node.input[1])
    return index is not None and index.ndim == 0 and int(index) == 0


def _only_consumer(graph: Graph, name: str, op: str) -> NodeProto | None:
    """Return the one node that reads the values of `name` (Shape does not) if it is an `op`."""
    users = [user for user in graph.consumers(name) if user.op_type != "Shape"]
    return users[0] if len(users) == 1 and users[0].op_type == op else None
