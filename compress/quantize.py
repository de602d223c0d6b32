"""INT8 whose answers do not depend on the other texts in a batch: activations scaled per token, or by a constant.

Stock dynamic quantisation takes one activation scale for a whole batch, so a text's score changes with its batch
mates. Here each token (row of the activation) has a scale of its own:

    r = max|x|                         (…, 1)     float32
    q = round(127 · x / r) + 128       (…, K)     uint8 in 1 … 255
    y = r · ((q − 128) @ W₈) · s/127   (…, N)     float32; W₈ int8, s (N,) the scale of each output channel

The symmetric row-wise scheme is that of LLM.int8() (Dettmers et al. 2022, section 2.1, vector-wise quantisation),
written with ONNX and com.microsoft operators alone. In an all-zero row x / r is NaN and q arbitrary; y is r times
something finite, so it is zero as it should be. Q, K and V share one activation's q and r. Attention's own products
stay float, and so do matrices too small to gain. Word embeddings are int8 with one scale a row.

An activation whose range was calibrated (compress/quantize_static.py) has a constant scale and zero point instead:
a third of the nodes, and the bias is added inside the product.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from compress.errors import QuantizeError
from compress.graph import MICROSOFT, Graph
from compress.quantize_weights import (
    bias_after,
    check_names,
    constant_matrices,
    constant_matrix,
    is_table,
    is_transposed,
    matrix_name,
    quantize_symmetric,
    quantize_table,
)
from compress.recipe import Quantize

Range = tuple[float, float]
"""Smallest and largest value that an activation's constant scale represents."""

_LEVELS = 127
_ZERO_POINT = 128
_GELU_MINIMUM = 0.17  # GELU(x) >= -0.17


@dataclass(frozen=True)
class QuantizedCounts:
    """How much of a graph is INT8 now."""

    matrices: int
    activations: int
    tables: int


def quantize_model(
    model: onnx.ModelProto,
    config: Quantize,
    *,
    keep_float: frozenset[str] = frozenset(),
    activation_ranges: Mapping[str, Range] | None = None,
) -> tuple[onnx.ModelProto, QuantizedCounts]:
    """Return `model` with its large constant matrices and embedding tables in INT8; the argument is used up.

    `keep_float` names matrices (of `quantizable_matrices`) that stay float. Activations (of `quantizable_activations`)
    named in `activation_ranges` get a constant scale, all others one scale a token. Raises QuantizeError when there is
    no matrix to quantise, when a name is unknown, or when a weight holds NaN or infinity.
    """
    graph = Graph(model)
    found = constant_matrices(graph)
    ranges = dict(activation_ranges or {})
    check_names(keep_float, {matrix_name(node) for node, _ in found})
    check_names(ranges, {node.input[0] for node, _ in found})
    writer = _Writer(graph, config.weight_bits, ranges)
    matrices = tables = 0
    for node in list(graph.nodes):
        if config.embeddings and is_table(graph, node):
            quantize_table(graph, node)
            tables += 1
        elif (matrix := constant_matrix(graph, node)) is not None and matrix_name(node) not in keep_float:
            writer.quantize(node, matrix)
            matrices += 1
    return graph.finish(), QuantizedCounts(matrices, len(writer.activations), tables)


def quantizable_matrices(model: onnx.ModelProto) -> list[str]:
    """Return the names of the matrices that `quantize_model` quantises, in the order of the graph.

    Raises QuantizeError when there is none.
    """
    return [matrix_name(node) for node, _ in constant_matrices(Graph(model))]


def quantizable_activations(model: onnx.ModelProto, *, normalized_only: bool = False) -> list[str]:
    """Return the names of the activations (…, K) float32 that those matrices multiply, each once.

    With `normalized_only`, those alone that come out of a LayerNormalization: their range varies least among texts.
    """
    graph = Graph(model)
    names = list(dict.fromkeys(node.input[0] for node, _ in constant_matrices(graph)))
    return [name for name in names if not normalized_only or _is_normalized(graph, name)]


@dataclass
class _Writer:
    """Puts INT8 products where float ones stood."""

    graph: Graph
    bits: int
    ranges: Mapping[str, Range]
    activations: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name of each quantised activation -> names of its uint8 values and of what its product is multiplied with."""

    def quantize(self, node: NodeProto, matrix: Any) -> None:
        """Replace one MatMul or Gemm with `matrix` (K, N)."""
        source = node.input[0]
        new: list[NodeProto] = []
        constant = source in self.ranges
        if source not in self.activations:
            self.activations[source] = self._constant_scale(source, new) if constant else self._row_scale(source, new)
        (self._with_constant_scale if constant else self._with_row_scale)(node, matrix, new)
        self.graph.replace(node, new)

    def _weight(self, node: NodeProto, matrix: Any, divisor: int) -> list[str]:
        """Add a matrix; return the names of its int8 values (K, N) and of its scales (N,), divided by `divisor`."""
        # a weight may be shared with a table, or with a product that reads it the other way round
        name = f"{node.input[1]}_{'transposed' if is_transposed(node) else 'columns'}"
        values, scale = quantize_symmetric(matrix, axis=1, bits=self.bits)
        scale = (scale[0] / np.float32(divisor)).astype(np.float32)
        suffix = "scale" if divisor > 1 else "constant_scale"
        return [self.graph.add_weight(f"{name}_int8", values), self.graph.add_weight(f"{name}_{suffix}", scale)]

    def _with_row_scale(self, node: NodeProto, matrix: Any, new: list[NodeProto]) -> None:
        graph, output = self.graph, node.output[0]
        quantized, row_max = self.activations[node.input[0]]
        values, scale = self._weight(node, matrix, _LEVELS)
        bias = bias_after(graph, node) if node.op_type == "Gemm" else None  # a MatMul's Add stays where it is
        product = f"{output}_product" if bias else output
        inputs = [quantized, values, graph.add_weight("one", np.float32(1)), scale, self._zero_point(_ZERO_POINT)]
        new += [
            graph.node("MatMulIntegerToFloat", inputs, f"{output}_unscaled", MICROSOFT),
            graph.node("Mul", [f"{output}_unscaled", row_max], product),
        ]
        if bias:
            new.append(graph.node("Add", [product, bias[0]], output))

    def _with_constant_scale(self, node: NodeProto, matrix: Any, new: list[NodeProto]) -> None:
        graph, output = self.graph, node.output[0]
        quantized, step = self.activations[node.input[0]]
        _, zero_point = scale_of(self.ranges[node.input[0]])
        values, scale = self._weight(node, matrix, 1)
        inputs = [quantized, values, step, scale, self._zero_point(zero_point)]
        bias = bias_after(graph, node)
        if bias is not None:
            inputs += ["", bias[0]]  # no zero point for the weight
            if bias[1] is not None:
                output = bias[1].output[0]
                graph.replace(bias[1], [])
        new.append(graph.node("MatMulIntegerToFloat", inputs, output, MICROSOFT))

    def _row_scale(self, source: str, new: list[NodeProto]) -> tuple[str, str]:
        """Append the nodes that quantise `source` (…, K) row by row; return the names of q and r."""
        graph = self.graph
        last = graph.add_weight("last_axis", np.array([-1], dtype=np.int64))
        step = graph.add_weight("step", np.float32(1 / _LEVELS))
        row_max, scaled, quantized = (f"{source}_{part}" for part in ("row_max", "scaled", "uint8"))
        if _is_gelu(graph, source):
            # its values below zero are small: one pass over the widest activation less
            bound = graph.add_weight("gelu_minimum", np.float32(_GELU_MINIMUM))
            new.append(graph.node("ReduceMax", [source, last], f"{source}_max", keepdims=1))
            new.append(graph.node("Max", [f"{source}_max", bound], row_max))
        else:
            new.append(graph.node("Abs", [source], f"{source}_abs"))
            new.append(graph.node("ReduceMax", [f"{source}_abs", last], row_max, keepdims=1))
        new.append(graph.node("Div", [source, row_max], scaled))
        new.append(graph.node("QuantizeLinear", [scaled, step, self._zero_point(_ZERO_POINT)], quantized))
        return quantized, row_max

    def _constant_scale(self, source: str, new: list[NodeProto]) -> tuple[str, str]:
        """Append the node that quantises `source` (…, K) with one scale for ever; return the names of q and scale."""
        scale, zero_point = scale_of(self.ranges[source])
        step = self.graph.add_weight(f"{source}_step", np.float32(scale))
        quantized = f"{source}_uint8"
        new.append(self.graph.node("QuantizeLinear", [source, step, self._zero_point(zero_point)], quantized))
        return quantized, step

    def _zero_point(self, value: int) -> str:
        return self.graph.add_weight(f"zero_point_{value}", np.uint8(value))


def scale_of(bounds: Range) -> tuple[float, int]:
    """Return the step and the zero point (0 … 255) of a uint8 activation in `bounds`, which are stretched to hold 0.

    Raises QuantizeError when the bounds are not finite.
    """
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if not np.isfinite(high - low):
        raise QuantizeError(f"an activation's range is {bounds}; expected finite bounds. Did training diverge?")
    step = max((high - low) / 255, float(np.finfo(np.float32).tiny))
    return step, round(-low / step)


def _is_normalized(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    while node is not None and node.op_type == "Slice":
        node = graph.producer(node.input[0])
    return node is not None and node.op_type == "LayerNormalization"


def _is_gelu(graph: Graph, name: str) -> bool:
    """Whether a tensor is GELU(x): the operator, or x · (1 + erf(x / √2)) · ½ with its factors in any order."""
    node = graph.producer(name)
    if node is None:
        return False
    if node.op_type == "Gelu":
        return True
    factors, half = _factors(graph, name)
    if half != 0.5 or len(factors) != 2:
        return False
    return any(_is_erf_of(graph, one, other) for one, other in (factors, factors[::-1]))


def _factors(graph: Graph, name: str) -> tuple[list[str], float]:
    """Take a product apart into its computed factors and the product of its scalar constants."""
    pending, factors, constant = [name], [], 1.0
    while pending:
        current = pending.pop()
        value, node = graph.constant(current), graph.producer(current)
        if value is not None and value.size == 1:
            constant *= value.item()
        elif node is not None and node.op_type == "Mul":
            pending += node.input
        else:
            factors.append(current)
    return factors, constant


def _is_erf_of(graph: Graph, name: str, x: str) -> bool:
    """Whether `name` is 1 + erf(x / √2); another divisor would have another minimum."""
    add = graph.producer(name)
    if add is None or add.op_type != "Add":
        return False
    erf = next((node for node in map(graph.producer, add.input) if node is not None and node.op_type == "Erf"), None)
    one = next((value for value in map(graph.constant, add.input) if value is not None and value.size == 1), None)
    if erf is None or one is None or one.item() != 1.0:
        return False
    scaled = graph.producer(erf.input[0])
    if scaled is None or scaled.op_type not in ("Div", "Mul") or x not in scaled.input:
        return False
    root = graph.constant(next((other for other in scaled.input if other != x), ""))
    expected = np.sqrt(2) if scaled.op_type == "Div" else np.sqrt(0.5)
    return root is not None and root.size == 1 and bool(np.isclose(root.item(), expected, rtol=1e-4))
