"""INT8 weights: symmetric rounding, embedding tables with one scale a row, and models that are INT8 in the file alone.

Symmetric int8 with one scale for each output channel is what Krishnamoorthi (2018, section 3.1) found to cost a network
next to nothing. `quantize_weights_only` leaves the activations float: each weight is stored as int8 and becomes float32
again when ONNX Runtime folds constants at load, so the file is small, the answers are nearly FP32's, and the speed is
FP32's.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from compress.errors import QuantizeError
from compress.graph import Graph

MIN_MATRIX_ELEMENTS = 4096
"""A smaller matrix takes less time in float than quantising its input takes."""
MIN_GEMM_ELEMENTS = 1 << 16
"""The same for a Gemm (pooler, classifier), which has one row a text to multiply and not one a token."""
MIN_TABLE_BYTES = 1 << 20
"""Smaller embedding tables (positions, token types) are not worth three more nodes."""
_HALF_STEP = 0.5 + 1e-5  # the largest value may lie past the last level by as much as its scale was rounded


def quantize_symmetric(weight: Any, axis: int, bits: int) -> tuple[Any, Any]:
    """Return int8 values and float32 scales of a 2-D float32 weight, one scale for each slice along `axis`.

    The other axis is reduced: axis 1 of a (K, N) matrix gives scales (1, N), axis 0 of a (V, H) table (V, 1). Values
    lie in ±(2^(bits−1) − 1), each within half a step of its float. Raises QuantizeError for NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise QuantizeError("a weight holds NaN or infinity; training went wrong before this")
    levels = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=1 - axis, keepdims=True).astype(np.float32) / np.float32(levels)
    # an all-zero slice has all-zero values whatever the scale; a subnormal scale would overflow in the division
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    # in float64: the quotient's rounding in float32 could put a value near the middle of a step on the wrong side
    steps = weight.astype(np.float64) / scale.astype(np.float64)
    values = np.clip(np.rint(steps), -levels, levels).astype(np.int8)
    if (np.abs(values - steps) > _HALF_STEP).any():
        raise QuantizeError("an INT8 weight is more than half a step from its float value")
    return values, scale


def quantize_weights_only(
    model: onnx.ModelProto, *, embeddings: bool = True, weight_bits: int = 8, keep_float: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Return `model` with int8 weights in the file and float32 arithmetic; the argument is used up.

    Each matrix (K, N) becomes int8 with one scale for each output channel, under a Cast and a Mul that ONNX Runtime
    folds at load; those named in `keep_float` stay as they are. Scores do not depend on batch mates any more than
    FP32's. Raises QuantizeError when there is no matrix to store, when a name is unknown, or when a weight holds NaN or
    infinity.
    """
    graph = Graph(model)
    check_names(keep_float, {matrix_name(node) for node, _ in constant_matrices(graph)})
    done: dict[str, str] = {}
    for node in list(graph.nodes):
        if embeddings and is_table(graph, node):
            quantize_table(graph, node)
        elif (matrix := constant_matrix(graph, node)) is not None and matrix_name(node) not in keep_float:
            name = node.input[1]
            use = f"{name}_{'transposed' if is_transposed(node) else 'columns'}"
            if use not in done:
                done[use] = _store(graph, node, use, matrix, weight_bits)
            graph.rewire(node, name, done[use])
    return graph.finish()


def quantize_table(graph: Graph, node: NodeProto) -> None:
    """Make a Gather read int8 rows with one scale each; an embedding is its row times its scale."""
    table, ids, output = node.input[0], node.input[1], node.output[0]
    values, scale = quantize_symmetric(graph.weight(table), axis=0, bits=8)
    rows = f"{table}_rows"
    graph.replace(
        node,
        [
            graph.node("Gather", [graph.add_weight(f"{rows}_int8", values), ids], f"{output}_int8"),
            graph.node("Cast", [f"{output}_int8"], f"{output}_float", to=TensorProto.FLOAT),
            graph.node("Gather", [graph.add_weight(f"{rows}_scale", scale), ids], f"{output}_scale"),
            graph.node("Mul", [f"{output}_float", f"{output}_scale"], output),
        ],
    )


def is_table(graph: Graph, node: NodeProto) -> bool:
    """Whether a node looks up rows of a large float32 table."""
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute):
        return False
    table = graph.weight(node.input[0])
    return table is not None and table.ndim == 2 and table.dtype == np.float32 and table.nbytes >= MIN_TABLE_BYTES


def constant_matrix(graph: Graph, node: NodeProto) -> Any:
    """Return the (K, N) float32 matrix a node multiplies with, or None when the node stays as it is."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    matrix = graph.weight(node.input[1])
    if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32:
        return None
    if node.op_type == "MatMul":
        return matrix if matrix.size >= MIN_MATRIX_ELEMENTS else None
    attributes = {attribute.name: attribute for attribute in node.attribute}
    plain = all(attributes[name].f == 1.0 for name in ("alpha", "beta") if name in attributes)
    if not plain or ("transA" in attributes and attributes["transA"].i) or matrix.size < MIN_GEMM_ELEMENTS:
        return None
    return matrix.T if is_transposed(node) else matrix


def is_transposed(node: NodeProto) -> bool:
    """Whether a Gemm reads its matrix as (N, K)."""
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def matrix_name(node: NodeProto) -> str:
    """Return what a matrix is called in `keep_float`: its node's name, which exporters make from the module's."""
    return str(node.name or node.output[0])


def bias_after(graph: Graph, node: NodeProto) -> tuple[str, NodeProto | None] | None:
    """Return the name of the (N,) bias that a MatMul or Gemm is given, and the Add that gives it to a MatMul."""
    if node.op_type == "Gemm":
        return (node.input[2], None) if len(node.input) > 2 else None
    users = graph.consumers(node.output[0])
    if len(users) != 1 or users[0].op_type != "Add" or graph.is_output(node.output[0]):
        return None
    name = next((name for name in users[0].input if name != node.output[0]), "")
    bias, matrix = graph.weight(name), graph.weight(node.input[1])
    fits = bias is not None and matrix is not None and bias.shape == (matrix.shape[1],)
    return (name, users[0]) if fits else None


def constant_matrices(graph: Graph) -> list[tuple[NodeProto, Any]]:
    """Return every node with a large constant matrix, and the matrix; raises QuantizeError when there is none."""
    found = [(node, constant_matrix(graph, node)) for node in graph.nodes]
    matrices = [(node, matrix) for node, matrix in found if matrix is not None]
    if not matrices:
        raise QuantizeError(
            f"found no MatMul with a constant matrix of at least {MIN_MATRIX_ELEMENTS} elements and no Gemm with "
            f"{MIN_GEMM_ELEMENTS}; expected an encoder exported to ONNX in float32"
        )
    return matrices


def check_names(given: Collection[str], known: Collection[str]) -> None:
    """Raise QuantizeError for names that the model does not have."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise QuantizeError(f"the model has no quantisable matrix or activation called {', '.join(unknown)}")


def _store(graph: Graph, node: NodeProto, name: str, matrix: Any, bits: int) -> str:
    """Put int8 values and scales before `node`; return the name of the float32 weight that is made of them."""
    values, scale = quantize_symmetric(matrix, axis=1, bits=bits)
    if is_transposed(node):
        values, scale = values.T, scale.T
    inputs = [graph.add_weight(f"{name}_int8", np.ascontiguousarray(values)), graph.add_weight(f"{name}_scale", scale)]
    cast = graph.node("Cast", [inputs[0]], f"{name}_cast", to=TensorProto.FLOAT)
    graph.insert_before(node, [cast, graph.node("Mul", [f"{name}_cast", inputs[1]], f"{name}_float")])
    return f"{name}_float"
