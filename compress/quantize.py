"""Per-token INT8: an answer that does not depend on the other texts in its batch.

Stock dynamic quantisation takes one activation scale for a whole batch, so a text's score changes with its batch
mates. Here each token (row of the activation) has a scale of its own:

    r = max|x|                         (…, 1)     float32, at least 1e-12
    q = round(127 · x / r) + 128       (…, K)     uint8 in 1 … 255
    y = r · ((q − 128) @ W₈) · s/127   (…, N)     float32; W₈ int8, s (N,) the scale of each output channel

The symmetric row-wise scheme is that of LLM.int8() (Dettmers et al. 2022, section 2.1, vector-wise quantisation),
written with ONNX and com.microsoft operators alone. Q, K and V read one activation and share its q and r. Attention's
own products stay float, and so do matrices too small to gain. Word embeddings are int8 with one scale a row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from compress.errors import QuantizeError
from compress.graph import MICROSOFT, Graph
from compress.recipe import Quantize
from compress.stage import Run

FLOAT_MODEL, MODEL = "model.fp32.onnx", "model.int8.onnx"

MIN_MATRIX_ELEMENTS = 4096
"""Smaller matrices (a classifier's last layer) take less time in float than quantising their input takes."""
MIN_TABLE_BYTES = 1 << 20
"""Smaller embedding tables (positions, token types) are not worth three more nodes."""
_ACTIVATION_MAX = 127.0
_HALF_STEP = 0.5 + 1e-5  # the largest value may lie past the last level by as much as its scale was rounded
_ZERO_POINT = np.uint8(128)


@dataclass(frozen=True)
class QuantizedCounts:
    """How much of a graph is INT8 now."""

    matrices: int
    activations: int
    tables: int


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model.int8.onnx`."""
    model = onnx.load(run.folder("export") / FLOAT_MODEL)
    quantized, counts = quantize_model(model, run.recipe.quantize)
    onnx.save(quantized, folder / MODEL)
    run.console.print(
        f"  INT8: {counts.matrices} matrices on {counts.activations} activations, {counts.tables} embedding tables"
    )
    return vars(counts)


def quantize_model(model: onnx.ModelProto, config: Quantize) -> tuple[onnx.ModelProto, QuantizedCounts]:
    """Return `model` with its large constant matrices and embedding tables in INT8; the argument is used up.

    Raises QuantizeError when there is none, or when a weight holds NaN or infinity.
    """
    graph = Graph(model)
    shared: dict[str, tuple[str, str]] = {}
    matrices = tables = 0
    for node in list(graph.nodes):
        if config.embeddings and _is_table(graph, node):
            _quantize_table(graph, node)
            tables += 1
        elif (matrix := _constant_matrix(graph, node)) is not None:
            _quantize_matmul(graph, node, matrix, shared, config.weight_bits)
            matrices += 1
    if not matrices:
        raise QuantizeError(
            f"found no MatMul or Gemm with a constant matrix of at least {MIN_MATRIX_ELEMENTS} elements; "
            "expected an encoder exported to ONNX in float32"
        )
    return graph.finish(), QuantizedCounts(matrices, len(shared), tables)


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


def _quantize_matmul(graph: Graph, node: NodeProto, matrix: Any, shared: dict[str, tuple[str, str]], bits: int) -> None:
    # a weight may be shared with a table, or with a product that reads it the other way round
    name = f"{node.input[1]}_{'transposed' if _is_transposed(node) else 'columns'}"
    source, output = node.input[0], node.output[0]
    new: list[NodeProto] = []
    if source not in shared:
        shared[source] = _quantize_activation(graph, source, new)
    quantized, row_max = shared[source]
    values, scale = quantize_symmetric(matrix, axis=1, bits=bits)
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else None
    product = f"{output}_product" if bias else output
    inputs = [
        quantized,
        graph.add_weight(f"{name}_int8", values),
        graph.add_weight("one", np.float32(1)),
        graph.add_weight(f"{name}_scale", (scale[0] / np.float32(_ACTIVATION_MAX)).astype(np.float32)),
        graph.add_weight("zero_point", _ZERO_POINT),
    ]
    new += [
        graph.node("MatMulIntegerToFloat", inputs, f"{output}_unscaled", MICROSOFT),
        graph.node("Mul", [f"{output}_unscaled", row_max], product),
    ]
    if bias:
        new.append(graph.node("Add", [product, bias], output))
    graph.replace(node, new)


def _quantize_activation(graph: Graph, source: str, new: list[NodeProto]) -> tuple[str, str]:
    """Append the nodes that quantise `source` (…, K) row by row; return the names of q and r."""
    largest = graph.add_weight("activation_max", np.float32(_ACTIVATION_MAX))
    smallest = graph.add_weight("smallest_row_max", np.float32(1e-12))
    last = graph.add_weight("last_axis", np.array([-1], dtype=np.int64))
    absolute, maximum, row_max, inverse, scaled, quantized = (
        f"{source}_{part}" for part in ("abs", "max", "row_max", "inverse", "scaled", "uint8")
    )
    new += [
        graph.node("Abs", [source], absolute),
        graph.node("ReduceMax", [absolute, last], maximum, keepdims=1),
        graph.node("Max", [maximum, smallest], row_max),
        graph.node("Div", [largest, row_max], inverse),
        graph.node("Mul", [source, inverse], scaled),
        graph.node(
            "QuantizeLinear",
            [scaled, graph.add_weight("one", np.float32(1)), graph.add_weight("zero_point", _ZERO_POINT)],
            quantized,
        ),
    ]
    return quantized, row_max


def _quantize_table(graph: Graph, node: NodeProto) -> None:
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


def _is_table(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute):
        return False
    table = graph.weight(node.input[0])
    return table is not None and table.ndim == 2 and table.dtype == np.float32 and table.nbytes >= MIN_TABLE_BYTES


def _constant_matrix(graph: Graph, node: NodeProto) -> Any:
    """Return the (K, N) float32 matrix a node multiplies with, or None when the node stays as it is."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    matrix = graph.weight(node.input[1])
    if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32 or matrix.size < MIN_MATRIX_ELEMENTS:
        return None
    if node.op_type == "MatMul":
        return matrix
    attributes = {attribute.name: attribute for attribute in node.attribute}
    plain = all(attributes[name].f == 1.0 for name in ("alpha", "beta") if name in attributes)
    if not plain or ("transA" in attributes and attributes["transA"].i):
        return None
    return matrix.T if _is_transposed(node) else matrix


def _is_transposed(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
