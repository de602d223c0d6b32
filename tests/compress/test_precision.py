"""float16 against ONNX Runtime's own float32 answer and its own converter."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compress.errors import QuantizeError
from compress.export import export_model
from compress.fold import fold_biases, slice_positions
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from compress.precision import to_float16
from service.engine.session import Session
from service.engine.tokenization import pad
from tests.compress.test_quantize import copy, linear_model, texts
from tests.support.models import tiny_classifier


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return export_model(tiny_classifier(layers=2), "text-classification", opset=18)


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = Graph(copy(model))
    fuse_attention(graph, heads=4)
    keep_first_tokens(graph)
    fold_biases(graph)
    slice_positions(graph)
    return graph.finish()


@pytest.mark.parametrize("prepare", [copy, fused])
def test_the_cpu_gives_nearly_float32s_scores(exported: onnx.ModelProto, tmp_path: Path, prepare: object) -> None:
    model = prepare(exported)  # type: ignore[operator]
    half = to_float16(copy(model))
    onnx.checker.check_model(half)
    assert all(value.type.tensor_type.elem_type == TensorProto.INT64 for value in half.graph.input)
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not any(tensor.data_type == TensorProto.FLOAT for tensor in half.graph.initializer)
    onnx.save(model, tmp_path / "float.onnx")
    onnx.save(half, tmp_path / "half.onnx")
    batch = pad(texts(50, seed=3), 0)
    exact, found = Session(tmp_path / "float.onnx").run(batch), Session(tmp_path / "half.onnx").run(batch)
    assert np.isfinite(found).all()
    assert 0 < np.abs(found - exact).max() < 5e-3


def test_weights_are_those_of_onnx_runtimes_converter(exported: onnx.ModelProto) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    theirs = convert_float_to_float16(copy(exported), keep_io_types=True, disable_shape_infer=True)
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in to_float16(copy(exported)).graph.initializer}
    shared = [name for name in found if name in expected and found[name].size > 1 and found[name].dtype == np.float16]
    assert len(shared) > 20
    for name in shared:  # theirs lifts values below 6e-8 to that
        assert np.abs(found[name].astype(np.float32) - expected[name].astype(np.float32)).max() <= 1e-7


def test_a_weight_that_float16_cannot_hold_is_refused() -> None:
    weight = np.ones((80, 80), dtype=np.float32)
    weight[1, 2] = 1e6
    with pytest.raises(QuantizeError, match="float16 cannot"):
        to_float16(linear_model(weight))
