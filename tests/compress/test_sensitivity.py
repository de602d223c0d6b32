"""The matrix that is made bad on purpose is found, and falling back stops where the gate holds."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.export import export_model
from compress.quantize import quantizable_matrices, quantize_model
from compress.recipe import Quantize
from compress.sensitivity import divergence, fall_back, measure_sensitivity
from service.engine.session import Session
from tests.compress.test_quantize import texts
from tests.support.models import tiny_classifier


def quantize(model: onnx.ModelProto, keep_float: frozenset[str]) -> onnx.ModelProto:
    return quantize_model(model, Quantize(), keep_float=keep_float)[0]


@pytest.fixture(scope="module")
def spoiled() -> onnx.ModelProto:
    """One weight of one matrix is so large that its whole output channel is lost in rounding."""
    import torch

    model = tiny_classifier(layers=2)
    with torch.no_grad():
        weight = model.bert.encoder.layer[1].intermediate.dense.weight
        weight[:, 5] *= 1e4
        model.bert.encoder.layer[0].output.dense.weight[5] = 0
        norm = model.bert.encoder.layer[1].attention.output.LayerNorm
        norm.weight[5] = norm.bias[5] = 0  # the channel is always zero: float never sees the large weights
    return export_model(model, "text-classification", opset=18)


def test_the_worst_matrix_comes_first(spoiled: onnx.ModelProto) -> None:
    calls: list[str] = []
    found = measure_sensitivity(spoiled, quantize, texts(24, seed=1), 0, advance=lambda _, name: calls.append(name))
    assert sorted(name for name, _ in found) == sorted(quantizable_matrices(spoiled)) == sorted(calls)
    assert "layer.1/intermediate" in found[0][0]
    assert found[0][1] > 10 * found[1][1]
    assert all(value > 0 for _, value in found)


def test_falling_back_puts_back_what_the_gate_needs_and_no_more(spoiled: onnx.ModelProto) -> None:
    names = quantizable_matrices(spoiled)
    tried: list[int] = []

    def holds(path: Path) -> bool:
        count = len(names) - sum(node.op_type == "MatMulIntegerToFloat" for node in onnx.load(path).graph.node)
        tried.append(count)
        return count >= 5

    result = fall_back(spoiled, quantize, [(name, 1.0) for name in names], holds)
    assert result.holds
    assert result.kept_float == frozenset(names[:5])
    assert {4, 5} <= set(tried)
    assert len(tried) <= 6
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in result.model.graph.node) == len(names) - 5


def test_a_gate_that_holds_at_once_or_never_is_told_so(spoiled: onnx.ModelProto) -> None:
    ranked = [(name, 1.0) for name in quantizable_matrices(spoiled)]
    at_once = fall_back(spoiled, quantize, ranked, lambda _: True)
    assert (at_once.holds, at_once.kept_float) == (True, frozenset())
    never = fall_back(spoiled, quantize, ranked, lambda _: False)
    assert (never.holds, len(never.kept_float)) == (False, len(ranked))


def test_token_classification_counts_real_tokens_alone(tmp_path: Path) -> None:
    import torch
    import transformers

    from tests.support.models import tiny_config

    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(tiny_config(layers=1, labels=3)).eval()
    exported = export_model(model, "token-classification", opset=18)
    found = measure_sensitivity(exported, quantize, texts(5, seed=1), 0)
    # by hand: every text alone, so without padding
    name, value = found[0]
    every = frozenset(quantizable_matrices(exported))
    outputs = []
    for kept in (every, every - {name}):
        twin = onnx.ModelProto()
        twin.CopyFrom(exported)
        onnx.save(quantize(twin, kept), tmp_path / "model.onnx")
        session = Session(tmp_path / "model.onnx")
        arrays = [np.array([encoding.ids]) for encoding in texts(5, seed=1)]
        zeros = [np.zeros_like(ids) for ids in arrays]
        outputs.append(
            [
                session.run({"input_ids": ids, "attention_mask": zero + 1, "token_type_ids": zero})
                for ids, zero in zip(arrays, zeros, strict=True)
            ]
        )
    assert outputs[0][0].ndim == 3
    assert value == pytest.approx(divergence(*outputs), rel=1e-3)
