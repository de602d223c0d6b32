"""What needs an NVIDIA GPU: run with `make test-gpu` where limbeck[gpu] is installed."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
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
from compress.precision import to_float16
from service.engine.device import pinned_allocator
from service.engine.session import Session
from service.engine.session_options import CUDA, SessionOptions
from service.engine.shapes import build_grid
from service.engine.tokenization import Encoding, pad
from service.model import load_model
from service.settings import Settings
from tests.support.models import VOCABULARY, tiny_classifier

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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused float32 classifier, and beside it `model.fp16.onnx`."""
    graph = Graph(export_model(tiny_classifier(layers=3), "text-classification", opset=18))
    assert fuse_attention(graph, heads=4) == 3
    assert keep_first_tokens(graph)
    path = tmp_path_factory.mktemp("gpu") / "model.onnx"
    onnx.save(graph.finish(), path)
    onnx.save(to_float16(onnx.load(path)), path.with_suffix(".fp16.onnx"))
    return path


GRID = build_grid(max_batch_size=64, max_batch_tokens=2048, max_length=32)


def test_cuda_agrees_with_cpu_and_among_batch_mates(model: Path) -> None:
    encodings = texts(64)
    cpu, cuda = Session(model), Session(model, provider=CUDA)
    together = cuda.run(pad(encodings, 0))
    alone = np.concatenate([cuda.run(pad([encoding], 0)) for encoding in encodings])
    assert np.abs(together - cpu.run(pad(encodings, 0))).max() < 2e-3
    assert np.abs(together - alone).max() < 2e-3


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize(("suffix", "tolerance"), [(".onnx", 2e-3), (".fp16.onnx", 2e-2)])
def test_fixed_buffers_agree_with_cpu_for_every_shape_of_the_grid(
    model: Path, suffix: str, tolerance: float, cuda_graphs: bool
) -> None:
    options = SessionOptions(grid=GRID, cuda_graphs=cuda_graphs)
    cpu, cuda = Session(model), Session(model.with_suffix(suffix), provider=CUDA, options=options)
    for turn in range(2):  # the second replays what the first recorded, on other texts
        for rows, length in GRID.shapes:
            ids = np.random.default_rng(turn).integers(4, VOCABULARY, size=(rows, length))
            arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            arrays["attention_mask"][:, length // 2 :] = turn
            assert np.abs(cuda.run(arrays) - cpu.run(arrays)).max() < tolerance, (rows, length, turn)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_at_once_get_their_own_results_on_cuda(model: Path, cuda_graphs: bool) -> None:
    cpu = Session(model)
    cuda = Session(model, provider=CUDA, options=SessionOptions(grid=GRID, cuda_graphs=cuda_graphs))
    batches = [pad([encoding], 0) for encoding in texts(200)]
    with ThreadPoolExecutor(4) as pool:
        for batch, found in zip(batches, pool.map(cuda.run, batches), strict=True):
            assert np.abs(found - cpu.run(batch)).max() < 2e-3


def test_copies_come_from_page_locked_memory() -> None:
    onnxruntime.preload_dlls()
    array = pinned_allocator(onnxruntime)(16)
    library = ctypes.CDLL(f"libcudart.so.{onnxruntime.cuda_version.partition('.')[0]}")
    flags = ctypes.c_uint()
    # CUDA knows the flags of page-locked memory only
    assert library.cudaHostGetFlags(ctypes.byref(flags), ctypes.c_void_p(array.ctypes.data)) == 0
    ordinary = np.zeros(16, dtype=np.int64)
    assert library.cudaHostGetFlags(ctypes.byref(flags), ctypes.c_void_p(ordinary.ctypes.data)) != 0
    library.cudaGetLastError()  # forget the refusal just asked for


def test_a_bundle_made_on_cpu_is_served_on_cuda_only_where_a_variant_allows_it(tiny_bundle: Bundle) -> None:
    model = load_model(tiny_bundle.folder, Settings(bundles=(tiny_bundle.folder,)))
    assert model.session.provider == "CPUExecutionProvider"


def test_training_takes_the_gpu_in_half_precision() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    assert best_device().type == "cuda"
    assert autocast_dtype("auto", best_device()) in (torch.bfloat16, torch.float16)
