"""Graph passes: how much they take in, and that torch's answer stays."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import ExportError
from compress.export import PARITY_TOLERANCE, check_parity, export_model
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from tests.support.models import FAMILIES, tiny_classifier

TASK = "text-classification"
# MPNet adds a position bias to its scores: not our pattern, so it must be left alone
FUSED = {"bert": 3, "roberta": 3, "electra": 3, "distilbert": 3, "mpnet": 0}


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


def test_parity_finds_another_models_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(export_model(tiny_classifier(seed=0), TASK, opset=18), path)
    with pytest.raises(ExportError, match="differ by"):
        check_parity(tiny_classifier(seed=1), path, 2, max_length=32)
