"""Fake quantisation against the INT8 graph in ONNX Runtime, and its promise to leave nothing behind."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compress.export import export_model
from compress.fuse import fuse_attention
from compress.graph import Graph
from compress.qat import fake_quantize_rows, fake_quantized
from compress.quantize import quantize_model
from compress.recipe import Quantize
from service.engine.session import Session
from service.engine.tokenization import pad
from tests.compress.test_quantize import texts
from tests.support.models import tiny_classifier


def logits(model: nn.Module, batch: dict[str, np.ndarray]) -> torch.Tensor:
    return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits


@pytest.mark.parametrize("bits", [7, 8])
def test_it_computes_what_the_int8_graph_computes(tmp_path: Path, bits: int) -> None:
    model = tiny_classifier(layers=2, labels=3)
    graph = Graph(export_model(model, "text-classification", opset=18))
    fuse_attention(graph, heads=4)
    quantized, counts = quantize_model(graph.finish(), Quantize(weight_bits=bits))
    onnx.save(quantized, tmp_path / "int8.onnx")
    batch = pad(texts(40, seed=3), 0)
    with torch.inference_mode():
        exact = logits(model, batch).numpy()
        with fake_quantized(model, weight_bits=bits) as layers:
            fake = logits(model, batch).numpy()
    found = Session(tmp_path / "int8.onnx").run(batch)
    assert layers == counts.matrices + 1  # the pooler, which sees that it has one row a text
    # a value at a half may go either way, and that is all: the rounding itself is far larger
    assert np.median(np.abs(fake - found)) < 1e-4 * np.abs(found).max()
    assert np.abs(fake - found).mean() < 0.05 * np.abs(fake - exact).mean()


def test_one_layer_agrees_to_float32s_rounding(tmp_path: Path) -> None:
    from tests.compress.test_quantize import linear_model, run

    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=False)
    x = torch.randn(50, 3, 96)
    with torch.inference_mode(), fake_quantized(linear):
        fake = linear(x).numpy().reshape(150, 64)
    model, _ = quantize_model(linear_model(linear.weight.detach().numpy().T.copy()), Quantize())
    found = run(model, x.numpy().reshape(150, 96), tmp_path)
    assert np.abs(fake - found).max() < 1e-4 * np.abs(found).max()


def test_rows_are_rounded_by_the_formula_and_zeros_stay() -> None:
    values = torch.randn(6, 40) * torch.logspace(-3, 3, 6)[:, None]
    values[2] = 0
    exact = values.double().numpy()
    largest = np.abs(exact).max(axis=1, keepdims=True)
    expected = np.rint(127 * exact / np.where(largest > 0, largest, 1)) * largest / 127
    assert np.allclose(fake_quantize_rows(values, 127).numpy(), expected, rtol=1e-5, atol=1e-12)


def test_gradients_pass_straight_through() -> None:
    linear = nn.Linear(96, 64)
    x = torch.randn(8, 2, 96, requires_grad=True)
    upstream = torch.randn(8, 2, 64)
    with fake_quantized(linear):
        (linear(x) * upstream).sum().backward()
    rounded_x, rounded_w = fake_quantize_rows(x, 127).detach(), fake_quantize_rows(linear.weight, 127).detach()
    assert torch.allclose(x.grad, upstream @ rounded_w, atol=1e-5)
    assert torch.allclose(linear.weight.grad, torch.einsum("abn,abk->nk", upstream, rounded_x), atol=1e-4)
    assert torch.allclose(linear.bias.grad, upstream.sum(dim=(0, 1)), atol=1e-5)


def test_training_inside_lowers_the_loss_and_leaves_a_plain_model() -> None:
    model = tiny_classifier(layers=1).train(False)
    kinds = [type(module) for module in model.modules()]
    names, fields = list(model.state_dict()), {name: set(vars(module)) for name, module in model.named_modules()}
    batch = pad(texts(16, seed=3), 0)
    labels = torch.arange(16) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    with fake_quantized(model, keep_float=["classifier"]):
        assert list(model.state_dict()) == names
        for _ in range(12):
            loss = nn.functional.cross_entropy(logits(model, batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert [type(module) for module in model.modules()] == kinds
    assert {name: set(vars(module)) for name, module in model.named_modules()} == fields


def test_layers_come_back_after_an_exception() -> None:
    linear = nn.Linear(96, 64)
    with pytest.raises(RuntimeError, match="stop"), fake_quantized(linear):
        raise RuntimeError("stop")
    assert type(linear) is nn.Linear


def test_large_embeddings_are_rounded_by_row() -> None:
    table = nn.Embedding(5000, 64)
    ids = torch.tensor([[1, 4999, 7]])
    with torch.inference_mode():
        with fake_quantized(table) as layers:
            found = table(ids)
        assert layers == 1
        assert torch.equal(found, fake_quantize_rows(table.weight[ids], 127))
        with fake_quantized(table, embeddings=False) as layers:
            assert layers == 0
