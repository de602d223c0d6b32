"""Milliseconds of one attention and one feed-forward net in ONNX Runtime, for every width that a search may choose.

Each is a graph of its own, as the export stage leaves it (attention as one node, then INT8 with one scale a token),
with random weights: time does not depend on them. Widths between those that are timed are interpolated.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from compress.errors import QuantizeError
from compress.graph import MICROSOFT
from compress.mask_search import Curve
from compress.progress import track
from compress.quantize import quantize_model
from compress.recipe import Quantize
from service.engine.session import Session

_POINTS = 8
"""Widths of each kind that are timed for one hidden width."""
_ROUNDS = 5
_LENGTHS = 8
_HIDDEN, _MASK = "hidden", "mask"


def measure_curves(
    hidden_widths: Sequence[int],
    heads: int,
    head_width: int,
    neurons: int,
    lengths: Sequence[int],
    *,
    threads: int,
    scratch: Path,
    console: Console,
) -> tuple[dict[int, Curve], dict[int, Curve]]:
    """Return for each hidden width the milliseconds a text of 0 … `heads` heads and of 0 … `neurons` neurons.

    `lengths` are the tokens of the texts that a mean is taken over; of many, some that stand for all are timed. Files
    lie in `scratch` while it runs.
    """
    timed = np.quantile(np.asarray(lengths), (np.arange(_LENGTHS) + 0.5) / _LENGTHS, method="nearest").tolist()
    grids = {"heads": _grid(heads), "neurons": _grid(neurons)}
    sessions: dict[tuple[str, int, int], Session] = {}
    path = scratch / "part.onnx"
    for hidden in hidden_widths:
        for number in grids["heads"]:
            sessions["heads", hidden, number] = _session(attention(hidden, number, head_width), path, threads)
        for number in grids["neurons"]:
            sessions["neurons", hidden, number] = _session(feed_forward(hidden, number), path, threads)
    path.unlink(missing_ok=True)
    found = _fastest(sessions, [int(length) for length in timed], console)
    curves: dict[str, dict[int, Curve]] = {}
    for kind, most in (("heads", heads), ("neurons", neurons)):
        grid = grids[kind]
        curves[kind] = {h: curve(grid, [found[kind, h, number] for number in grid], most) for h in hidden_widths}
    return curves["heads"], curves["neurons"]


def curve(grid: Sequence[int], values: Sequence[float], most: int) -> Curve:
    """Return the value at 0 … `most`, linear between the points of the grid and before its first; it never falls."""
    rising = np.maximum.accumulate(np.asarray(values, dtype=np.float64))
    before = rising[0]
    if len(grid) > 1:  # the line through the first two points
        before = max(0.0, rising[0] - grid[0] * (rising[1] - rising[0]) / (grid[1] - grid[0]))
    result: Curve = np.interp(np.arange(most + 1), [0, *grid], [before, *rising])
    return result


def attention(hidden: int, heads: int, head_width: int) -> onnx.ModelProto:
    """Return LN(x + attention(x)) as a graph: hidden (B, T, H) float32, mask (B, T) int32 -> (B, T, H)."""
    width = heads * head_width
    nodes = [helper.make_node("MatMul", [_HIDDEN, f"{part}_weight"], [part]) for part in "qkv"]
    inputs = ["q", "k", "v", "qkv_bias", _MASK]
    nodes.append(helper.make_node("MultiHeadAttention", inputs, ["context"], domain=MICROSOFT, num_heads=heads))
    shapes = {"q_weight": (hidden, width), "k_weight": (hidden, width), "v_weight": (hidden, width)}
    return _part(nodes, shapes | {"qkv_bias": (3 * width,), "out_weight": (width, hidden)}, "context", hidden)


def feed_forward(hidden: int, neurons: int) -> onnx.ModelProto:
    """Return LN(x + down(GELU(up(x)))) as a graph: hidden (B, T, H) float32 -> (B, T, H)."""
    nodes = [
        helper.make_node("MatMul", [_HIDDEN, "up_weight"], ["up_product"]),
        helper.make_node("Add", ["up_bias", "up_product"], ["up"]),
        helper.make_node("Div", ["up", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one_float"], ["shifted"]),
        helper.make_node("Mul", ["up", "shifted"], ["doubled"]),
        helper.make_node("Mul", ["doubled", "half"], ["active"]),
    ]
    shapes = {"up_weight": (hidden, neurons), "up_bias": (neurons,), "out_weight": (neurons, hidden)}
    return _part(nodes, shapes, "active", hidden)


def _part(nodes: list[Any], shapes: Mapping[str, tuple[int, ...]], last: str, hidden: int) -> onnx.ModelProto:
    """Finish a graph with the matrix that leads back to the hidden width, the residual and the normalization."""
    random = np.random.default_rng(0)
    nodes += [
        helper.make_node("MatMul", [last, "out_weight"], ["product"]),
        helper.make_node("Add", ["product", "out_bias"], ["biased"]),
        helper.make_node("Add", ["biased", _HIDDEN], ["residual"]),
        helper.make_node("LayerNormalization", ["residual", "gain", "shift"], ["output"], axis=-1, epsilon=1e-12),
    ]
    vectors = {"out_bias": (hidden,), "gain": (hidden,), "shift": (hidden,)}
    arrays = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in {**shapes, **vectors}.items()}
    constants = {"root": np.sqrt(2), "one_float": 1, "half": 0.5}
    arrays |= {name: np.array(value, dtype=np.float32) for name, value in constants.items()}
    graph = helper.make_graph(
        nodes,
        "part",
        [
            helper.make_tensor_value_info(_HIDDEN, TensorProto.FLOAT, ["B", "T", hidden]),
            helper.make_tensor_value_info(_MASK, TensorProto.INT32, ["B", "T"]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", "T", hidden])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _session(model: onnx.ModelProto, path: Path, threads: int) -> Session:
    plain = model.SerializeToString()
    try:
        quantized = quantize_model(model, Quantize())[0].SerializeToString()
    except QuantizeError:  # every matrix is too small for INT8, in a student, too
        quantized = plain
    path.write_bytes(quantized)
    return Session(path, threads=threads)


def _fastest(
    sessions: Mapping[tuple[str, int, int], Session], lengths: Sequence[int], console: Console
) -> dict[tuple[str, int, int], float]:
    """Return each graph's milliseconds a text in its fastest round; all take turns."""
    random = np.random.default_rng(0)
    inputs: dict[tuple[int, int], Any] = {}
    for (_, hidden, _), length in itertools.product(sessions, lengths):
        if (hidden, length) not in inputs:
            values = random.normal(size=(1, length, hidden)).astype(np.float32)
            inputs[hidden, length] = {_HIDDEN: values, _MASK: np.ones((1, length), dtype=np.int32)}
    times: dict[tuple[str, int, int], list[float]] = {key: [] for key in sessions}
    with track(console, "timing layers", (_ROUNDS + 1) * len(sessions)) as advance:
        for turn in range(_ROUNDS + 1):
            for key, session in sessions.items():
                started = time.perf_counter()
                for length in lengths:
                    session.run(inputs[key[1], length])
                if turn:  # the first warms up
                    times[key].append((time.perf_counter() - started) * 1000 / len(lengths))
                advance(1, "")
    return {key: min(values) for key, values in times.items()}


def _grid(most: int) -> list[int]:
    """Return at most `_POINTS` numbers from 1 to `most`, evenly spaced, the last among them."""
    return sorted({max(1, round(most * (point + 1) / _POINTS)) for point in range(_POINTS)})
