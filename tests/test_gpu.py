"""What needs an NVIDIA GPU: run with `make test-gpu` where limbeck[gpu] is installed."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bundle import Bundle
from compress.batches import autocast_dtype, best_device
from compress.export import export_model
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad
from service.registry import load_model
from service.settings import Settings
from tests.support.models import VOCABULARY, tiny_classifier

CUDA = "CUDAExecutionProvider"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        CUDA not in onnxruntime.get_available_providers() or not Path("/dev/nvidiactl").exists(),
        reason="needs an NVIDIA GPU and onnxruntime-gpu: pip install 'limbeck[gpu]'",
    ),
]


def texts(count: int) -> list[Encoding]:
    source = np.random.default_rng(0)
    lengths = source.integers(2, 30, size=count)
    return [Encoding([2, *source.integers(4, VOCABULARY, size=n).tolist(), 3], [0] * (n + 2), False) for n in lengths]


def test_cuda_agrees_with_cpu_and_among_batch_mates(tmp_path: Path) -> None:
    graph = Graph(export_model(tiny_classifier(layers=3), "text-classification", opset=18))
    assert fuse_attention(graph, heads=4) == 3
    assert keep_first_tokens(graph)
    path = tmp_path / "model.onnx"
    onnx.save(graph.finish(), path)
    encodings = texts(64)
    cpu, cuda = Session(path), Session(path, provider=CUDA)
    together = cuda.run(pad(encodings, 0))
    alone = np.concatenate([cuda.run(pad([encoding], 0)) for encoding in encodings])
    assert np.abs(together - cpu.run(pad(encodings, 0))).max() < 2e-3
    assert np.abs(together - alone).max() < 2e-3


def test_a_bundle_made_on_cpu_is_served_on_cuda_only_where_a_variant_allows_it(tiny_bundle: Bundle) -> None:
    model = load_model(tiny_bundle.folder, Settings(bundles=(tiny_bundle.folder,)))
    assert model.session.provider == "CPUExecutionProvider"


def test_training_takes_the_gpu_in_half_precision() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    assert best_device().type == "cuda"
    assert autocast_dtype("auto", best_device()) in (torch.bfloat16, torch.float16)
