"""Passes that drop nodes: how many they take, and that torch's answer stays."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.export import PARITY_TOLERANCE, check_parity, export_model
from compress.fold import fold_biases, slice_positions
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from tests.support.models import tiny_classifier

# DistilBERT and MPNet keep their positions elsewhere or count them from the padding on
POSITIONS = {"bert": True, "electra": True, "roberta": False, "mpnet": False}


@pytest.mark.parametrize("family", POSITIONS)
@pytest.mark.parametrize("fuse", [True, False])
def test_answers_stay(family: str, fuse: bool, tmp_path: Path) -> None:
    model = tiny_classifier(family, layers=3)
    graph = Graph(export_model(model, "text-classification", opset=18))
    if fuse:
        fuse_attention(graph, heads=4)
        keep_first_tokens(graph)
    before = Counter(node.op_type for node in graph.nodes)
    folded = fold_biases(graph)
    assert slice_positions(graph) == POSITIONS[family]
    assert folded == 6  # attention's output and the feed-forward net's, in three layers
    after = Counter(node.op_type for node in graph.nodes)
    assert after["Add"] == before["Add"] - folded
    assert after["Gather"] < before["Gather"] or not POSITIONS[family]
    path = tmp_path / "model.onnx"
    onnx.save(graph.finish(), path)
    assert check_parity(model, path, 2, max_length=32) <= PARITY_TOLERANCE


def test_a_normalised_tensor_with_another_reader_is_left_alone() -> None:
    graph = Graph(export_model(tiny_classifier(layers=1), "text-classification", opset=18))
    fuse_attention(graph, heads=4)
    norm = next(node for node in graph.nodes if node.op_type == "LayerNormalization")
    graph.nodes.append(graph.node("Neg", [norm.output[0]], "negative"))
    assert fold_biases(graph) == 1  # the second normalisation's still can


def test_positions_that_do_not_count_from_zero_are_left_alone() -> None:
    graph = Graph(export_model(tiny_classifier(layers=1), "text-classification", opset=18))
    for node in graph.nodes:
        if node.op_type == "Constant":
            value = onnx.numpy_helper.to_array(node.attribute[0].t)
            if value.ndim == 2:
                node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.roll(value, 1, axis=1)))
    assert slice_positions(graph) is False
