"""The graphs that are timed compute what a layer computes, as torch has it; curves go through their points."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console
from torch.nn import functional

from compress.latency_table import attention, curve, feed_forward, measure_curves
from compress.quantize import quantize_model
from compress.recipe import Quantize
from service.engine.session import Session

HIDDEN = 64


def weights(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    return {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in model.graph.initializer}


def run(model: onnx.ModelProto, folder: Path, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=False)
    onnx.save(model, folder / "part.onnx")
    return Session(folder / "part.onnx").run({"hidden": x, "mask": mask})


def given() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    mask = (np.arange(9) < np.array([[9], [5]])).astype(np.int32)
    return random.normal(size=(2, 9, HIDDEN)).astype(np.float32), mask


def normalized(w: dict[str, torch.Tensor], x: torch.Tensor) -> np.ndarray:
    return functional.layer_norm(x, (HIDDEN,), w["gain"], w["shift"], 1e-12).numpy()


def test_attention_is_torchs(tmp_path: Path) -> None:
    x, mask = given()
    model = attention(HIDDEN, heads=3, head_width=16)
    w, t = weights(model), torch.from_numpy(x)
    parts = zip("qkv", w["qkv_bias"].split(48), strict=True)
    q, k, v = ((t @ w[f"{name}_weight"] + bias).view(2, 9, 3, 16).transpose(1, 2) for name, bias in parts)
    visible = torch.from_numpy(mask).bool()[:, None, None, :]
    context = functional.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).reshape(2, 9, 48)
    expected = normalized(w, context @ w["out_weight"] + w["out_bias"] + t)
    assert np.abs(run(model, tmp_path, x, mask) - expected)[mask == 1].max() < 1e-4


def test_feed_forward_is_torchs(tmp_path: Path) -> None:
    x, mask = given()
    model = feed_forward(HIDDEN, neurons=96)
    w, t = weights(model), torch.from_numpy(x)
    active = functional.gelu(t @ w["up_weight"] + w["up_bias"])
    expected = normalized(w, active @ w["out_weight"] + w["out_bias"] + t)
    assert np.abs(run(model, tmp_path, x, mask) - expected).max() < 1e-4


def test_both_are_int8_as_a_student_is() -> None:
    for model, matrices, activations in ((attention(64, 4, 16), 4, 2), (feed_forward(64, 128), 2, 2)):
        quantized, counts = quantize_model(model, Quantize())
        assert (counts.matrices, counts.activations) == (matrices, activations)
        assert any("MatMulIntegerToFloat" in node.op_type for node in quantized.graph.node)


def test_curves_go_through_their_points_and_never_fall() -> None:
    found = curve([2, 4, 8], [1.0, 2.0, 3.0], 8)
    assert found.tolist() == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0])
    assert curve([2, 4], [3.0, 2.0], 4).tolist() == pytest.approx([3.0, 3.0, 3.0, 3.0, 3.0])
    assert curve([1], [5.0], 1).tolist() == [5.0, 5.0]


def test_every_width_has_its_time(tmp_path: Path) -> None:
    heads, neurons = measure_curves(
        [32, 64], 4, 16, 128, [5, 9, 30], threads=1, scratch=tmp_path, console=Console(quiet=True)
    )
    for curves, most in ((heads, 4), (neurons, 128)):
        assert sorted(curves) == [32, 64]
        for values in curves.values():
            assert values.shape == (most + 1,)
            assert (np.diff(values) >= 0).all()
            assert values[-1] > 0
    assert list(tmp_path.iterdir()) == []
