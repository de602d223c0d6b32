"""Per-token INT8 against the formula in numpy, against float, and against itself among batch mates."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizeError
from compress.export import export_model
from compress.fold import fold_biases
from compress.fuse import fuse_attention
from compress.graph import Graph
from compress.outputs import batch_invariance
from compress.quantize import quantizable_matrices, quantize_model, quantize_symmetric
from compress.recipe import Quantize
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad
from tests.support.models import VOCABULARY, tiny_config, tiny_encoder

RNG = np.random.default_rng(0)


def linear_model(weight: np.ndarray, gemm_bias: np.ndarray | None = None) -> onnx.ModelProto:
    """x (B, K) float32 -> x @ weight (+ bias)."""
    weights = [numpy_helper.from_array(weight, "w")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    if gemm_bias is not None:
        weights = [numpy_helper.from_array(weight.T.copy(), "w"), numpy_helper.from_array(gemm_bias, "b")]
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", weight.shape[1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / "linear.onnx"
    onnx.save(model, path)
    return Session(path).run({"x": x})


def by_formula(x: np.ndarray, weight: np.ndarray, bits: int = 8) -> np.ndarray:
    """The docstring of compress.quantize in float64."""
    levels = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=0) / levels
    weight8 = np.clip(np.rint(weight / scale), -levels, levels)
    row_max = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12)
    q = np.rint(127 * x / row_max)
    return row_max / 127 * (q @ weight8) * scale


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("gemm", [False, True])
def test_the_graph_computes_the_formula(tmp_path: Path, bits: int, gemm: bool) -> None:
    weight = RNG.normal(size=(288, 256)).astype(np.float32)
    bias = RNG.normal(size=256).astype(np.float32) if gemm else None
    x = (RNG.normal(size=(7, 288)) * np.logspace(-6, 6, 7)[:, None]).astype(np.float32)
    x[3] = 0  # an all-zero row must give zeros, not NaN
    model, counts = quantize_model(linear_model(weight, bias), Quantize(weight_bits=bits))
    assert (counts.matrices, counts.activations, counts.tables) == (1, 1, 0)
    found = run(model, x, tmp_path) - (0 if bias is None else bias)
    expected = by_formula(x.astype(np.float64), weight.astype(np.float64), bits)
    # where 127·x/r lies at a half, float32 may round to the other side: one step of one product
    step = np.abs(x).max(axis=1, keepdims=True) / 127 * np.abs(weight).max(axis=0)
    magnitude = np.abs(expected) + (0 if bias is None else np.abs(bias))
    assert (np.abs(found - expected) <= 1.01 * step + 1e-5 * magnitude).all()
    assert (found[3] == 0).all()


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_weight_is_within_half_a_step_of_its_float(bits: int, axis: int) -> None:
    weight = (RNG.standard_t(df=2, size=(50, 70))).astype(np.float32)  # heavy tails
    weight[:, 3] = weight[4] = 0
    values, scale = quantize_symmetric(weight, axis=axis, bits=bits)
    assert values.dtype == np.int8
    assert np.abs(values.astype(int)).max() == 2 ** (bits - 1) - 1
    assert scale.shape == ((1, 70) if axis == 1 else (50, 1))
    assert (np.abs(values - weight.astype(np.float64) / scale.astype(np.float64)) <= 0.5 + 1e-5).all()


def test_a_large_table_has_values_next_to_the_middle_of_a_step() -> None:
    """Among millions of weights some lie so close to a half that float32 division would round them the wrong way."""
    weight = np.random.default_rng(5).normal(size=(4096, 1024)).astype(np.float32)
    values, scale = quantize_symmetric(weight, axis=0, bits=8)
    error = np.abs(values - weight.astype(np.float64) / scale.astype(np.float64))
    assert error.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = np.ones((80, 80), dtype=np.float32)
    weight[1, 2] = bad
    with pytest.raises(QuantizeError, match="NaN or infinity"):
        quantize_model(linear_model(weight), Quantize())


def test_a_graph_with_nothing_to_quantise_is_refused() -> None:
    with pytest.raises(QuantizeError, match="found no MatMul with a constant matrix"):
        quantize_model(linear_model(np.ones((8, 8), dtype=np.float32)), Quantize())


def gelu_model(weight: np.ndarray, as_operator: bool) -> onnx.ModelProto:
    """x (B, K) float32 -> GELU(x) @ weight, GELU as one operator or as exporters before opset 20 write it."""
    if as_operator:
        nodes = [helper.make_node("Gelu", ["x"], ["g"])]
    else:
        nodes = [
            helper.make_node("Div", ["x", "root"], ["d"]),
            helper.make_node("Erf", ["d"], ["e"]),
            helper.make_node("Add", ["e", "one"], ["a"]),
            helper.make_node("Mul", ["x", "a"], ["m"]),
            helper.make_node("Mul", ["m", "half"], ["g"]),
        ]
    scalars = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["g", "w"], ["y"])],
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")]
        + [numpy_helper.from_array(np.float32(value), name) for name, value in scalars.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("as_operator", [True, False])
def test_gelu_needs_no_absolute_value(tmp_path: Path, as_operator: bool) -> None:
    """It is never below -0.17, so its largest value, or 0.17, bounds a row."""
    weight = RNG.normal(size=(96, 64)).astype(np.float32)
    x = (RNG.normal(size=(20, 96)) * np.logspace(-3, 2, 20)[:, None]).astype(np.float32)
    x[4] = -np.abs(x[4])  # a row without a positive value
    model, _ = quantize_model(gelu_model(weight, as_operator), Quantize())
    assert "Abs" not in {node.op_type for node in model.graph.node}
    exact = run(gelu_model(weight, as_operator), x, tmp_path)
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), 0.17)
    # half a step of each input and each weight, random signs
    assert (np.abs(run(model, x, tmp_path) - exact) < 0.02 * largest * np.sqrt(96)).all()


@pytest.mark.parametrize("root", [1.0, 2.0])
def test_another_function_of_erf_is_not_taken_for_gelu(root: float) -> None:
    model = gelu_model(np.ones((96, 64), dtype=np.float32), as_operator=False)
    next(t for t in model.graph.initializer if t.name == "root").CopyFrom(
        numpy_helper.from_array(np.float32(root), "root")
    )
    assert "Abs" in {node.op_type for node in quantize_model(model, Quantize())[0].graph.node}


def test_rows_of_zeros_and_of_the_smallest_numbers_stay_finite(tmp_path: Path) -> None:
    weight = RNG.normal(size=(96, 64)).astype(np.float32)
    x = np.zeros((4, 96), dtype=np.float32)
    x[1, 3], x[2], x[3] = 1e-45, 1e-38, 3e38 / 96
    found = run(quantize_model(linear_model(weight), Quantize())[0], x, tmp_path)
    assert np.isfinite(found).all()
    assert (found[0] == 0).all()
    assert np.abs(found[:3]).max() < 1e-35
    assert np.abs(found[3] - x[3] @ weight).max() < 0.01 * np.abs(found[3]).max()


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return tiny_encoder(layers=3)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def test_an_encoder_shares_the_activation_of_query_key_and_value(encoder: onnx.ModelProto) -> None:
    _, counts = quantize_model(copy(encoder), Quantize())
    # a layer: query, key, value, output, two of the feed-forward net. Pooler and classifier are too small.
    assert counts.matrices == 3 * 6
    # key and value of the last layer read every token, its query the first ones only
    assert counts.activations == 3 * 4 + 1


def test_matrices_that_are_named_stay_float(encoder: onnx.ModelProto) -> None:
    names = quantizable_matrices(encoder)
    assert len(set(names)) == 3 * 6
    assert any("layer.0/attention/self/query" in name for name in names)
    model, counts = quantize_model(copy(encoder), Quantize(), keep_float=frozenset(names[:4]))
    assert counts.matrices == len(names) - 4
    assert set(names[:4]) <= {node.name for node in model.graph.node if node.op_type == "MatMul"}
    none, counts = quantize_model(copy(encoder), Quantize(), keep_float=frozenset(names))
    assert counts.matrices == counts.activations == 0
    assert none == copy(encoder)
    with pytest.raises(QuantizeError, match="no quantisable matrix or activation called mistyped"):
        quantize_model(copy(encoder), Quantize(), keep_float=frozenset(["mistyped"]))


def dequantized(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Name of each INT8 weight -> its float32 value, (K, N)."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [name.removesuffix("_int8") for name, values in arrays.items() if values.dtype == np.int8]
    return {name: arrays[f"{name}_int8"] * (arrays[f"{name}_scale"] * 127) for name in names}


def test_the_float_weights_are_gone_and_every_int8_weight_is_within_half_a_step(encoder: onnx.ModelProto) -> None:
    floats = {t.name: numpy_helper.to_array(t) for t in encoder.graph.initializer}
    quantized, counts = quantize_model(copy(encoder), Quantize())
    restored = dequantized(quantized)
    assert len(restored) == counts.matrices
    names = {tensor.name for tensor in quantized.graph.initializer}
    for name, weight in restored.items():
        float_name, _, use = name.rpartition("_")
        assert float_name not in names
        original = floats[float_name].T if use == "transposed" else floats[float_name]
        step = np.abs(original).max(axis=0) / 127
        assert (np.abs(weight - original) <= 0.5 * step * (1 + 1e-4)).all()


def test_a_weight_that_is_used_in_three_ways_is_quantised_for_each(tmp_path: Path) -> None:
    weight = RNG.normal(size=(520, 520)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["w", "ids"], ["rows"]),
            helper.make_node("MatMul", ["rows", "w"], ["product"]),
            helper.make_node("Gemm", ["product", "w"], ["y"], transB=1),
        ],
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 520])],
        [numpy_helper.from_array(weight, "w")],
    )
    quantized, counts = quantize_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), Quantize()
    )
    assert (counts.matrices, counts.tables) == (2, 1)
    onnx.save(quantized, tmp_path / "tied.onnx")
    ids = np.arange(0, 520, 9)
    exact = weight[ids] @ weight @ weight.T
    found = Session(tmp_path / "tied.onnx").run({"ids": ids})
    assert np.abs(found - exact).mean() < 0.03 * exact.std()


def texts(count: int, seed: int) -> list[Encoding]:
    source = np.random.default_rng(seed)
    lengths = source.integers(2, 30, size=count)
    return [Encoding([2, *source.integers(4, VOCABULARY, size=n).tolist(), 3], [0] * (n + 2), False) for n in lengths]


def test_scores_do_not_depend_on_batch_mates(encoder: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantized, _ = quantize_model(copy(encoder), Quantize())
    onnx.save(quantized, path)
    report = batch_invariance(path, texts(500, seed=1), pad_id=0, seed=2)
    assert report.texts == 500
    assert report.bit_equal
    assert report.max_difference == 0


def test_the_scores_of_tokens_do_not_depend_on_batch_mates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(tiny_config(layers=2, labels=5)).eval()
    graph = Graph(export_model(model, "token-classification", opset=18))
    fuse_attention(graph, heads=4)
    fold_biases(graph)
    quantized, counts = quantize_model(graph.finish(), Quantize())
    assert counts.matrices == 12
    onnx.save(quantized, tmp_path / "int8.onnx")
    assert batch_invariance(tmp_path / "int8.onnx", texts(200, seed=1), pad_id=0, seed=2).bit_equal


def test_stock_dynamic_quantisation_is_found_out(encoder: onnx.ModelProto, tmp_path: Path) -> None:
    """The invariance check must be able to fail: ONNX Runtime's own method does."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(encoder, tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "stock.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    report = batch_invariance(tmp_path / "stock.onnx", texts(60, seed=1), pad_id=0, seed=2)
    assert not report.bit_equal
    assert report.max_difference > 1e-3


def test_int8_stays_close_to_float(encoder: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(encoder, tmp_path / "float.onnx")
    quantized, _ = quantize_model(copy(encoder), Quantize())
    onnx.save(quantized, tmp_path / "int8.onnx")
    batch = pad(texts(200, seed=3), 0)
    exact, close = Session(tmp_path / "float.onnx").run(batch), Session(tmp_path / "int8.onnx").run(batch)
    spread = exact.std()
    assert spread > 0.01
    assert np.abs(close - exact).mean() < 0.1 * spread


def test_a_large_embedding_table_becomes_int8_by_row(tmp_path: Path) -> None:
    table = RNG.normal(size=(5000, 64)).astype(np.float32)
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 64])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert quantize_model(copy(model), Quantize(embeddings=False))[1].tables == 0
    quantized, counts = quantize_model(copy(model), Quantize())
    assert counts.tables == 1
    assert quantized.ByteSize() < model.ByteSize() * 0.28
    ids = np.arange(0, 5000, 7)
    path = tmp_path / "lookup.onnx"
    onnx.save(quantized, path)
    step = np.abs(table).max(axis=1, keepdims=True) / 127
    restored = np.rint(table / step) * step
    expected = by_formula(restored[ids].astype(np.float64), weight.astype(np.float64))
    assert np.abs(Session(path).run({"ids": ids}) - expected).max() < 0.2
