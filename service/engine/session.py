"""The one file that imports ONNX Runtime."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.errors import LabelMismatchError
from service.engine.device import DeviceRunner
from service.engine.errors import SessionError
from service.engine.session_options import CPU, GPU_PROVIDERS, SessionOptions, provider_list
from service.engine.shapes import ShapeGrid

# From 1.29 on ONNX Runtime reports its use to its maker and keeps an identifier on disk, unless told not to before it
# is imported. Set the variable to 0 to allow it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

RUNTIME_VERSION: str = ort.__version__

# Measured slower than the nodes it replaces on CPU, in every model of docs/experiments.md.
_SLOWER_FUSIONS = ["SkipLayerNormFusion", "BiasSkipLayerNormFusion"]


def available_providers() -> list[str]:
    """Return the execution providers of the installed ONNX Runtime, best first."""
    return list(ort.get_available_providers())


class Session:
    """One ONNX file, loaded. `run` may be called from several threads at once."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        provider: str = CPU,
        labels: int | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        """Load `path`.

        `threads` are ONNX Runtime's intra-op threads for one call; `options` says everything else, and the threads,
        too. `labels`, where given, is the number of outputs that the model must have; LabelMismatchError says when it
        has not. Raises SessionError when the file cannot be loaded or the provider is not there.
        """
        if provider not in available_providers():
            raise SessionError(
                f"execution provider {provider} was asked for, but this ONNX Runtime has {available_providers()}; "
                "install limbeck[gpu] on a CUDA machine, or choose CPUExecutionProvider"
            )
        options = options or SessionOptions(threads=threads)
        on_gpu = provider in GPU_PROVIDERS
        if on_gpu:
            ort.preload_dlls()  # finds CUDA and cuDNN in the wheels of limbeck[gpu]
        try:
            self._session = ort.InferenceSession(
                str(path),
                _native(options),
                providers=provider_list(provider, options),
                disabled_optimizers=None if on_gpu else _SLOWER_FUSIONS,
                enable_fallback=0,  # it would print, and take another provider than the one asked for
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise SessionError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        if provider not in self._session.get_providers():
            raise SessionError(f"{path}: {provider} was asked for, but ONNX Runtime fell back to another provider")
        self.path = path
        self.provider = provider
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        output = self._session.get_outputs()[0]
        self.output_name: str = output.name
        declared = output.shape[-1]
        if labels is not None and isinstance(declared, int) and declared != labels:
            raise LabelMismatchError(f"{path}: the model has {declared} outputs, but there are {labels} labels")
        self._labels = labels
        self._output_names = [self.output_name]
        self.grid: ShapeGrid | None = options.grid if on_gpu else None
        self._device = None if self.grid is None else self._device_runner(self.grid, options)

    def run(self, arrays: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return the logits (B, C) float32 for padded arrays (B, T) int64, as `tokenization.pad` makes them."""
        try:
            feed = {name: arrays[name] for name in self.input_names}
        except KeyError as error:
            raise SessionError(f"{self.path}: the model wants input {error}, which no tokenizer gives") from error
        try:
            logits = self._run_any_shape(feed) if self._device is None else self._device.run(feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise SessionError(f"{self.path}: inference failed: {error}") from error
        result = np.asarray(logits, dtype=np.float32)
        if self._labels is not None and result.shape[-1] != self._labels:
            raise LabelMismatchError(
                f"{self.path}: the model gave {result.shape[-1]} outputs, but there are {self._labels} labels"
            )
        return result

    def _run_any_shape(self, feed: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._session.run(self._output_names, feed)[0]
        return logits

    def _device_runner(self, grid: ShapeGrid, options: SessionOptions) -> DeviceRunner:
        try:
            return DeviceRunner(ort, self._session, grid, labels=self._labels, cuda_graphs=options.cuda_graphs)
        except ValueError as error:
            raise SessionError(f"{self.path}: {error}") from error


def _native(options: SessionOptions) -> ort.SessionOptions:
    """Return ONNX Runtime's own form of what concerns the CPU."""
    native = ort.SessionOptions()
    native.intra_op_num_threads = options.threads
    native.inter_op_num_threads = 1
    native.log_severity_level = 3
    native.enable_cpu_mem_arena = options.arena
    native.enable_mem_pattern = False  # it plans memory for one shape and keeps each plan; here shapes vary
    native.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return native
