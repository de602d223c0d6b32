"""The one file that imports ONNX Runtime."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.errors import LabelMismatchError
from service.engine.errors import SessionError

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
        provider: str = "CPUExecutionProvider",
        labels: int | None = None,
    ) -> None:
        """Load `path`.

        `threads` are ONNX Runtime's intra-op threads for one call. `labels`, where given, is the number of
        outputs that the model must have; LabelMismatchError says when it has not. Raises SessionError when the
        file cannot be loaded or the provider is not there.
        """
        if provider not in available_providers():
            raise SessionError(
                f"execution provider {provider} was asked for, but this ONNX Runtime has {available_providers()}; "
                "install limbeck[gpu] on a CUDA machine, or choose CPUExecutionProvider"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        on_cpu = provider == "CPUExecutionProvider"
        if provider == "CUDAExecutionProvider":
            ort.preload_dlls()  # finds CUDA and cuDNN in the wheels of limbeck[gpu]
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=[provider], disabled_optimizers=_SLOWER_FUSIONS if on_cpu else None
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

    def run(self, arrays: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return the logits (B, C) float32 for padded arrays (B, T) int64, as `tokenization.pad` makes them."""
        try:
            feed = {name: arrays[name] for name in self.input_names}
        except KeyError as error:
            raise SessionError(f"{self.path}: the model wants input {error}, which no tokenizer gives") from error
        try:
            logits = self._session.run([self.output_name], feed)[0]
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise SessionError(f"{self.path}: inference failed: {error}") from error
        result = np.asarray(logits, dtype=np.float32)
        if self._labels is not None and result.shape[-1] != self._labels:
            raise LabelMismatchError(
                f"{self.path}: the model gave {result.shape[-1]} outputs, but there are {self._labels} labels"
            )
        return result
