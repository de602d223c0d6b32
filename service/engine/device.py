"""Runs a session on a GPU through fixed buffers: one pair a shape of the grid, bound once, copied to and from.

ONNX Runtime comes in as an argument, so that only `session.py` imports it and tests can pass another.
"""

import ctypes
import logging
import math
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.shapes import ShapeGrid

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
Allocate = Callable[[int], IntArray]


@dataclass(frozen=True)
class _Bound:
    """One shape's buffers and binding. The addresses never change: a recorded CUDA graph reads and writes there."""

    host: dict[str, IntArray]  # (rows, length) each; shapes share the memory, because one runs at a time
    device: dict[str, Any]  # OrtValue of the same shape each
    output: Any  # OrtValue
    binding: Any
    run_options: Any


class DeviceRunner:
    """An `onnxruntime.InferenceSession` on a GPU, its grid of shapes and their buffers.

    `run` may be called from several threads; one batch runs at a time, on the session's one stream. CUDA graphs are
    recorded for the thread that runs them, so with `cuda_graphs` all runs take place in one thread of the runner's.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        grid: ShapeGrid,
        *,
        labels: int | None,
        cuda_graphs: bool,
        allocate: Allocate | None = None,
    ) -> None:
        """Prepare buffers for the largest shape.

        `labels` is the width of the output where the graph does not say it. `allocate` returns that many int64 of
        host memory that a GPU copies from fast. Raises ValueError when the output's shape cannot be known beforehand.
        """
        self._runtime = runtime
        self._session = session
        self._grid = grid
        self._cuda_graphs = cuda_graphs
        self._names = tuple(node.name for node in session.get_inputs())
        self._output = session.get_outputs()[0]
        self._output_tail = _output_tail(self._output, labels)
        most = max(rows * length for rows, length in grid.shapes)
        allocate = allocate or pinned_allocator(runtime)
        self._host = {name: allocate(most) for name in self._names}
        self._bound: dict[tuple[int, int], _Bound] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limbeck-cuda") if cuda_graphs else None

    def run(self, feed: Mapping[str, IntArray]) -> NDArray[np.float32]:
        """Return the output's first B rows for inputs (B, T) int64; raises ValueError for a batch beyond the grid."""
        if self._thread is not None:
            return self._thread.submit(self._run, feed).result()
        with self._lock:
            return self._run(feed)

    def _run(self, feed: Mapping[str, IntArray]) -> NDArray[np.float32]:
        rows, length = feed[self._names[0]].shape
        shape = self._grid.fit(rows, length)
        bound = self._bound.get(shape)
        if bound is None:
            bound = self._bound[shape] = self._bind(shape)
        for name in self._names:
            self._grid.fill(bound.host[name], name, feed[name])
            bound.device[name].update_inplace(bound.host[name])
        self._session.run_with_iobinding(bound.binding, bound.run_options)
        result: NDArray[np.float32] = bound.output.numpy()[:rows].copy()  # it may be a view of what the next run fills
        return result

    def _bind(self, shape: tuple[int, int]) -> _Bound:
        new = self._runtime.OrtValue.ortvalue_from_shape_and_type
        host = {name: memory[: math.prod(shape)].reshape(shape) for name, memory in self._host.items()}
        device = {name: new(list(shape), np.int64, "cuda", 0) for name in self._names}
        output = new([shape[0], *self._output_tail], np.float32, "cuda", 0)
        binding = self._session.io_binding()
        for name, value in device.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(self._output.name, output)
        run_options = self._runtime.RunOptions()
        if self._cuda_graphs:  # 0 is ONNX Runtime's own; each shape is recorded under its number
            run_options.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1))
        return _Bound(host, device, output, binding, run_options)


def _output_tail(output: Any, labels: int | None) -> list[int]:
    """Return the output's shape without its rows."""
    declared = output.shape
    width = declared[-1] if isinstance(declared[-1], int) else labels
    if len(declared) != 2 or width is None:
        raise ValueError(f"output {output.name!r} has the shape {declared}; expected rows × a known number of labels")
    return [width]


def pinned_allocator(runtime: Any) -> Allocate:
    """Return what allocates page-locked memory, from which a GPU copies without a detour; ordinary where there is none.

    It is CUDA's own `cudaHostAlloc`, out of the library that ONNX Runtime has loaded: it offers none to Python itself.
    """
    major = str(getattr(runtime, "cuda_version", "")).partition(".")[0]
    try:
        library = ctypes.CDLL(f"libcudart.so.{major}")
    except OSError as error:
        log.info("no page-locked memory (%s); copies to the GPU go through ordinary memory", error)
        return lambda count: np.zeros(count, dtype=np.int64)
    return lambda count: _pinned(library, count)


def _pinned(library: Any, count: int) -> IntArray:
    pointer = ctypes.c_void_p()
    status = library.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(count * 8), ctypes.c_uint(0))
    if status != 0 or not pointer.value:
        library.cudaGetLastError()  # forget it, or ONNX Runtime's next kernel is blamed for it
        log.info("no page-locked memory (CUDA's error %d); copies to the GPU go through ordinary memory", status)
        return np.zeros(count, dtype=np.int64)
    memory = (ctypes.c_int64 * count).from_address(pointer.value)
    release = weakref.finalize(memory, library.cudaFreeHost, pointer)
    release.atexit = False  # CUDA may be gone by then, and the memory goes with the process
    return np.ctypeslib.as_array(memory)  # keeps `memory` alive
