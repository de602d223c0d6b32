"""INT8 in the file alone: close to float, small, and untouched by batch mates."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import QuantizeError
from compress.outputs import batch_invariance
from compress.quantize import quantizable_matrices
from compress.quantize_weights import quantize_weights_only
from service.engine.session import Session
from service.engine.tokenization import pad
from tests.compress.test_quantize import copy, linear_model, run, texts
from tests.support.models import tiny_encoder

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return tiny_encoder()


@pytest.mark.parametrize("gemm", [False, True])
def test_a_product_is_that_of_the_rounded_weight(tmp_path: Path, gemm: bool) -> None:
    weight = RNG.normal(size=(288, 256)).astype(np.float32)
    bias = RNG.normal(size=256).astype(np.float32) if gemm else None
    x = RNG.normal(size=(5, 288)).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 127
    expected = x @ (np.rint(weight.astype(np.float64) / scale) * scale) + (0 if bias is None else bias)
    found = run(quantize_weights_only(linear_model(weight, bias)), x, tmp_path)
    assert np.abs(found - expected).max() < 1e-4


def test_scores_are_close_to_floats_and_do_not_depend_on_batch_mates(encoder: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(encoder, tmp_path / "float.onnx")
    onnx.save(quantize_weights_only(copy(encoder)), tmp_path / "int8.onnx")
    session = Session(tmp_path / "int8.onnx")
    batch = pad(texts(100, seed=3), 0)
    exact = Session(tmp_path / "float.onnx").run(batch)
    assert np.abs(session.run(batch) - exact).mean() < 0.1 * exact.std()
    assert batch_invariance(session.path, texts(200, seed=1), pad_id=0, seed=2).bit_equal
    stored, before = (stored_bytes(onnx.load(tmp_path / name)) for name in ("int8.onnx", "float.onnx"))
    assert stored < 0.5 * before  # embeddings and pooler are still there


def stored_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def test_matrices_can_stay_float_but_one_must_be_there(encoder: onnx.ModelProto) -> None:
    names = quantizable_matrices(encoder)
    kept = quantize_weights_only(copy(encoder), keep_float=frozenset(names[1:]))
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in kept.graph.initializer) == 1
    with pytest.raises(QuantizeError, match="found no MatMul"):
        quantize_weights_only(linear_model(np.ones((8, 8), dtype=np.float32)))
