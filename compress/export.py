"""Stage three: torch to ONNX, checked against torch. Everything that knows the exporter is in this file."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from compress import distill, teacher
from compress.anatomy import heads_of
from compress.batches import forward
from compress.errors import ExportError
from compress.fold import fold_biases, slice_positions
from compress.fuse import fuse_attention, keep_first_tokens
from compress.graph import Graph
from compress.models import load_classifier
from compress.stage import Run
from service.engine.errors import SessionError
from service.engine.session import Session

TEACHER, STUDENT = "teacher.fp32.onnx", "model.fp32.onnx"

PARITY_SHAPES = ((1, 8), (1, 64), (3, 17), (8, 32), (2, 128))
"""(batch, length) pairs; within a batch the rows are padded unevenly."""
PARITY_TOLERANCE = 2e-4
"""Largest allowed difference of a logit; float32 in another order of summation gives about 1e-6."""


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `teacher.fp32.onnx` as the exporter makes it (the yardstick) and `model.fp32.onnx`, fused."""
    recipe, labels, spec = run.recipe, run.splits.labels, run.spec
    summary: dict[str, Any] = {}
    sources = {TEACHER: run.folder("teacher") / teacher.MODEL, STUDENT: run.student / distill.MODEL}
    for name, source in sources.items():
        model = load_classifier(str(source), labels, recipe.seed, spec, keep_head=True)
        path = folder / name
        onnx.save(export_model(model, spec.exporter_task, recipe.export.opset, folder), path)
        summary[name] = {"parity": check_parity(model, path, len(labels), recipe.data.max_length)}
        if name == STUDENT:
            summary[name] |= fuse(model, path, len(labels), recipe.data.max_length)
        run.console.print(f"  {name}: largest difference from torch {summary[name]['parity']:.1e}")
    return summary


def export_model(model: nn.Module, task: str, opset: int, scratch: Path | None = None) -> onnx.ModelProto:
    """Return the ONNX model that optimum writes, with named dynamic axes; raises ExportError.

    Temporary files lie in `scratch` (default: the system's place) until it returns.
    """
    from optimum.exporters.onnx import onnx_export_from_model

    with tempfile.TemporaryDirectory(dir=scratch) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of constants that are constants
        logging.getLogger("optimum").setLevel(logging.ERROR)
        try:
            onnx_export_from_model(model, folder, opset=opset, task=task, do_validation=False)
        except Exception as error:  # optimum and torch raise many kinds
            kind = getattr(model.config, "model_type", "unknown")
            raise ExportError(f"a model of type {kind!r} cannot be exported at opset {opset}: {error}") from error
        return onnx.load(Path(folder) / "model.onnx")


def check_parity(model: nn.Module, path: Path, labels: int, max_length: int) -> float:
    """Compare ONNX Runtime with torch at several shapes; return the largest difference, raise ExportError if large."""
    try:
        session = Session(path, labels=labels)
    except SessionError as error:
        raise ExportError(f"{path.name}: {error}") from error
    random = np.random.default_rng(0)
    config: Any = model.config
    worst = 0.0
    for batch, length in PARITY_SHAPES:
        shape = (batch, min(length, max_length))
        lengths = random.integers(shape[1] // 2, shape[1] + 1, size=batch)
        lengths[0] = shape[1]
        mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
        ids = np.where(mask == 1, random.integers(4, config.vocab_size, size=shape), config.pad_token_id)
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        with torch.inference_mode():
            expected = forward(model, {name: torch.from_numpy(array) for name, array in arrays.items()}).numpy()
        found = session.run(arrays)
        own = slice(None) if found.ndim == 2 else mask == 1  # what stands for padding is nobody's
        difference = float(np.abs(found[own] - expected[own]).max())
        worst = max(worst, difference)
        if not difference <= PARITY_TOLERANCE:  # also catches NaN
            raise ExportError(
                f"{path.name}: at batch {batch}, length {shape[1]} ONNX Runtime and torch differ by {difference:.2e}; "
                f"expected at most {PARITY_TOLERANCE:.0e}"
            )
    return worst


def fuse(model: nn.Module, path: Path, labels: int, max_length: int) -> dict[str, Any]:
    """Run the graph passes on the file and keep them only if the result still agrees with torch."""
    graph = Graph(onnx.load(path))
    done = optimize(graph, model)
    fused = path.with_suffix(".fused")
    onnx.save(graph.finish(), fused)
    try:
        parity = check_parity(model, fused, labels, max_length)
    except ExportError:
        fused.unlink()
        return {"fused_attentions": 0, "last_layer_cut": False, "folded_biases": 0, "sliced_positions": False}
    fused.replace(path)
    return {"parity": parity, **done}


def optimize(graph: Graph, model: nn.Module) -> dict[str, Any]:
    """Run the graph passes that change speed and not answers; return how much each one took in."""
    attentions = fuse_attention(graph, heads_of(model))
    first_token = keep_first_tokens(graph)
    return {
        "fused_attentions": attentions,
        "last_layer_cut": first_token,
        "folded_biases": fold_biases(graph),
        "sliced_positions": slice_positions(graph),
    }
