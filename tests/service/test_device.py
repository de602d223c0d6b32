"""The runner for GPUs on ONNX Runtime's own CPU tensors and bindings: only the word "cuda" is exchanged."""

import ctypes
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from service.engine import device as device_module
from service.engine.device import DeviceRunner, pinned_allocator
from service.engine.shapes import build_grid
from tests.support.bundles import WORDS, tiny_model

GRID = build_grid(max_batch_size=8, max_batch_tokens=64, max_length=32)


class Runtime:
    """ONNX Runtime with CPU tensors where CUDA's are asked for; remembers each set of run options."""

    def __init__(self):
        self.run_options = []

    def RunOptions(self):  # noqa: N802 - ONNX Runtime's name
        self.run_options.append(onnxruntime.RunOptions())
        return self.run_options[-1]

    class OrtValue:
        @staticmethod
        def ortvalue_from_shape_and_type(shape, dtype, name, number):
            assert (name, number) == ("cuda", 0)
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)


class Watched:
    """A session that remembers the threads that ran it."""

    def __init__(self, session):
        self._session = session
        self.threads = set()

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding, options):
        self.threads.add(threading.current_thread().name)
        self._session.run_with_iobinding(binding, options)


@pytest.fixture
def session(tmp_path):
    onnx.save(tiny_model(), tmp_path / "model.onnx")
    return Watched(onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"]))


def runner(session, runtime=None, *, labels=2, cuda_graphs=False):
    def allocate(count):
        return np.full(count, -1, dtype=np.int64)

    return DeviceRunner(runtime or Runtime(), session, GRID, labels=labels, cuda_graphs=cuda_graphs, allocate=allocate)


def batches(count=60):
    source = np.random.default_rng(1)
    for _ in range(count):
        length = int(source.integers(1, 33))
        rows = int(source.integers(1, max(1, min(8, 64 // length)) + 1))
        mask = (np.arange(length) < source.integers(1, length + 1, size=(rows, 1))).astype(np.int64)
        yield {"input_ids": source.integers(0, 4 + len(WORDS), size=(rows, length)), "attention_mask": mask}


def expected(session, batch):
    return session.run(["logits"], batch)[0]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_padded_batches_give_the_scores_of_unpadded_ones(session, cuda_graphs):
    tested = runner(session, cuda_graphs=cuda_graphs)
    for batch in batches():
        np.testing.assert_allclose(tested.run(batch), expected(session, batch), atol=1e-6)


def test_threads_at_once_get_their_own_results(session):
    tested = runner(session)
    work = list(batches(200))
    with ThreadPoolExecutor(4) as pool:
        for batch, found in zip(work, pool.map(tested.run, work), strict=True):
            np.testing.assert_allclose(found, expected(session, batch), atol=1e-6)


def test_a_result_survives_the_next_run_of_its_shape(session):
    tested = runner(session)
    first, second = ({"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in np.array([[[4, 5]], [[9, 10]]]))
    kept = tested.run(first)
    tested.run(second)
    np.testing.assert_allclose(kept, expected(session, first), atol=1e-6)


def test_each_shape_is_recorded_once_under_its_own_number_by_one_thread(session):
    runtime = Runtime()
    tested = runner(session, runtime, cuda_graphs=True)
    work = list(batches())
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tested.run, work))
    numbers = [options.get_run_config_entry("gpu_graph_id") for options in runtime.run_options]
    shapes = {GRID.fit(*batch["input_ids"].shape) for batch in work}
    assert sorted(map(int, numbers)) == list(range(1, len(shapes) + 1))
    assert len(session.threads) == 1


def test_without_cuda_graphs_no_run_is_numbered(session):
    runtime = Runtime()
    runner(session, runtime).run(next(batches()))
    with pytest.raises(RuntimeError):
        runtime.run_options[0].get_run_config_entry("gpu_graph_id")


def test_a_batch_beyond_the_grid_is_refused(session):
    ids = np.ones((9, 2), dtype=np.int64)
    with pytest.raises(ValueError, match="found a batch of 9 × 2"):
        runner(session).run({"input_ids": ids, "attention_mask": ids})


def test_an_output_of_unknown_shape_is_refused(session, monkeypatch):
    tokens = type("Output", (), {"name": "logits", "shape": ["B", "T", 2]})
    unknown = type("Output", (), {"name": "logits", "shape": ["B", "classes"]})
    for output, labels in ((tokens, 2), (unknown, None)):
        monkeypatch.setattr(session, "get_outputs", lambda output=output: [output], raising=False)
        with pytest.raises(ValueError, match=r"output 'logits'.*expected rows × a known number of labels"):
            runner(session, labels=labels)
    batch = next(batches())
    found = runner(session, labels=2).run(batch)  # the labels say what the graph does not
    monkeypatch.undo()
    np.testing.assert_allclose(found, expected(session, batch), atol=1e-6)


class CudaRuntimeLibrary:
    """What `libcudart` does, with memory of ours."""

    def __init__(self, status=0):
        self.status = self.last_error = status
        self.blocks = {}

    def cudaHostAlloc(self, pointer, size, flags):  # noqa: N802 - CUDA's name
        if not self.status:
            block = ctypes.create_string_buffer(size.value)
            pointer._obj.value = ctypes.addressof(block)
            self.blocks[pointer._obj.value] = block
        return self.status

    def cudaGetLastError(self):  # noqa: N802 - CUDA's name
        self.last_error = 0

    def cudaFreeHost(self, pointer):  # noqa: N802 - CUDA's name
        del self.blocks[pointer.value]


def test_page_locked_memory_is_cudas_and_given_back_with_the_last_view(monkeypatch):
    library, asked = CudaRuntimeLibrary(), []
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda name: asked.append(name) or library)
    runtime = type("Runtime", (), {"cuda_version": "13.0"})
    array = pinned_allocator(runtime)(24)
    assert asked == ["libcudart.so.13"]
    assert array.shape == (24,)
    assert array.dtype == np.int64
    assert list(library.blocks) == [array.ctypes.data]
    view = array[:4].reshape(2, 2)
    del array
    gc.collect()
    view[:] = 3  # still ours
    assert len(library.blocks) == 1
    del view
    gc.collect()
    assert library.blocks == {}


def test_ordinary_memory_is_taken_where_cuda_has_none_to_give(monkeypatch):
    library = CudaRuntimeLibrary(status=2)
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda name: library)
    assert pinned_allocator(onnxruntime)(5).tolist() == [0] * 5
    assert library.last_error == 0  # what is left there fails whatever CUDA does next
    monkeypatch.undo()
    assert pinned_allocator(type("Runtime", (), {"cuda_version": "0.none"}))(5).tolist() == [0] * 5
