"""Graph passes: how much they take in, and that torch's answer stays."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from compress.errors import ExportError
from compress.export import PARITY_TOLERANCE, check_parity, export_model
from compress.fold import fold_biases
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from service.engine.session import Session
from tests.support.models import FAMILIES, VOCABULARY, tiny_classifier, tiny_config

TASK = "text-classification"
FUSED = {"bert": 3, "roberta": 3, "electra": 3, "distilbert": 3, "mpnet": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_export_and_fuse_without_a_change_of_answers(family: str, tmp_path: Path) -> None:
    model = tiny_classifier(family, layers=3)
    path = tmp_path / "model.onnx"
    exported = export_model(model, TASK, opset=18)
    onnx.checker.check_model(exported)
    assert exported.opset_import[0].version == 18
    onnx.save(exported, path)
    assert check_parity(model, path, 2, max_length=32) <= PARITY_TOLERANCE

    graph = Graph(exported)
    assert fuse_attention(graph, heads=4) == FUSED[family]
    assert keep_first_tokens(graph) == (FUSED[family] > 0)
    fused = graph.finish()
    operators = Counter(node.op_type for node in fused.graph.node)
    assert operators["MultiHeadAttention"] == FUSED[family]
    assert operators["Softmax"] == 3 - FUSED[family]
    onnx.save(fused, path)
    assert check_parity(model, path, 2, max_length=32) <= PARITY_TOLERANCE


def test_newer_opsets_export(tmp_path: Path) -> None:
    model, path = tiny_classifier(layers=1), tmp_path / "model.onnx"
    onnx.save(export_model(model, TASK, opset=20), path)
    assert check_parity(model, path, 2, max_length=32) <= PARITY_TOLERANCE


def test_the_last_layer_is_cut_only_when_token_0_alone_is_read() -> None:
    """Mean pooling reads every token: the pass must refuse."""
    graph = Graph(export_model(tiny_classifier("bert"), TASK, opset=18))
    fuse_attention(graph, heads=4)
    gather = next(
        node for node in graph.nodes if node.op_type == "Gather" and node.attribute and node.attribute[0].i == 1
    )
    mean = graph.node("ReduceMean", [gather.input[0]], gather.output[0], keepdims=0)
    mean.input.append(graph.add_weight("axes", np.array([1])))
    graph.replace(gather, [mean])
    assert keep_first_tokens(graph) is False


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_token_classification_is_fused_and_not_cut(family: str, tmp_path: Path) -> None:
    """It reads every token: a last layer that computes the first ones alone would be wrong."""
    torch.manual_seed(0)
    config = tiny_config(family, layers=2, labels=5)
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    with torch.no_grad():  # equal weights, such as biases of zeros, are exported as one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    graph = Graph(export_model(model, "token-classification", opset=18))
    assert fuse_attention(graph, heads=4) == 2
    assert keep_first_tokens(graph) is False
    assert fold_biases(graph) == 4
    onnx.save(graph.finish(), tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", labels=5)
    ids = np.random.default_rng(0).integers(4, VOCABULARY, size=(3, 11))
    mask = (np.arange(11) < np.array([[11], [6], [2]])).astype(np.int64)
    ids[mask == 0] = config.pad_token_id
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    found = session.run({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    assert found.shape == (3, 11, 5)
    assert np.abs(found - expected)[mask == 1].max() <= PARITY_TOLERANCE


def test_parity_finds_another_models_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(export_model(tiny_classifier(seed=0), TASK, opset=18), path)
    with pytest.raises(ExportError, match="differ by"):
        check_parity(tiny_classifier(seed=1), path, 2, max_length=32)
