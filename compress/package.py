"""Stage six: gate the variants, record golden scores, write the bundle."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bundle import LAYOUT, GoldenInput, Manifest, Task, Variant, write_bundle
from bundle.manifest import Lineage, StageMetrics
from compress import evaluate, export, quantize, teacher
from compress.errors import GateError
from compress.machine import describe_machine
from compress.recipe import Gate
from compress.report import model_card
from compress.stage import Run, library_versions, write_atomic
from compress.tasks import SPECS
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad

BUNDLE = "bundle"
TOLERANCES = {"fp32": 1e-4, "int8": 2e-2}
"""Largest change of a golden score between machines: float32 sums in another order; INT8 kernels differ by CPU."""
_TEMPERATURE = 1.0


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write the bundle to `OUT/bundle` and its manifest's hash to `manifest.sha256`; raises GateError."""
    recipe = run.recipe
    metrics = {row.stage: row for row in evaluate.read_metrics(run.folder("evaluate"))}
    variants = [
        _variant("int8", "int8", metrics[evaluate.INT8], metrics[evaluate.TEACHER], recipe.gate),
        _variant("fp32", "float32", metrics[evaluate.STUDENT], metrics[evaluate.TEACHER], recipe.gate),
    ]
    if not any(variant.gate_passed for variant in variants):
        found = "\n".join(f"  {variant.name}: {variant.gate_reason}" for variant in variants)
        raise GateError(
            f"no variant passed the gate:\n{found}\nTrain longer, keep more layers, add unlabeled text, or loosen the "
            f"gate{_left_over(run.out / BUNDLE)}"
        )
    models = {"int8": run.folder("quantize") / quantize.MODEL, "fp32": run.folder("export") / export.STUDENT}
    sessions = {name: Session(path, labels=len(run.splits.labels)) for name, path in models.items()}
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        task=recipe.task,
        labels=tuple(run.splits.labels),
        activation=SPECS[recipe.task].activation,
        max_length=recipe.data.max_length,
        input_names=sessions["fp32"].input_names,
        output_name=sessions["fp32"].output_name,
        temperature=_TEMPERATURE,
        text_pair=recipe.task is Task.PAIR,
        variants=tuple(variants),
        metrics=tuple(metrics.values()),
        lineage=Lineage(
            recipe=recipe.model_dump(mode="json"),
            data=run.splits.fingerprints(),
            seeds={"seed": recipe.seed},
            library_versions=library_versions(),
            machine=describe_machine(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        files={},
    )
    tokenizer = run.folder("teacher") / teacher.TOKENIZER
    golden = golden_lines(run, sessions, Tokenizer(tokenizer, recipe.data.max_length))
    files: dict[str, Path | bytes] = {LAYOUT.model(name): path for name, path in models.items()}
    files |= {LAYOUT.tokenizer: tokenizer, LAYOUT.golden: golden}
    files[LAYOUT.card] = model_card(manifest, {name: _size(source) for name, source in files.items()}).encode()
    for leftover in run.out.glob(f".{BUNDLE}.*"):  # of a run that was killed while it wrote; we hold the folder
        shutil.rmtree(leftover)
    bundle = write_bundle(run.out / BUNDLE, manifest, files)
    write_atomic(folder / LAYOUT.manifest_hash, (bundle.folder / LAYOUT.manifest_hash).read_text(encoding="ascii"))
    return {"bundle": str(bundle.folder.name), "gate_passed": [v.name for v in variants if v.gate_passed]}


def golden_lines(run: Run, sessions: dict[str, Session], tokenizer: Tokenizer) -> bytes:
    """Return `golden.jsonl`: test texts drawn by seed, each run alone through every variant."""
    test = run.splits.test
    chosen = np.random.default_rng(run.recipe.seed).permutation(len(test))[: run.recipe.evaluate.golden_inputs]
    activation = SPECS[run.recipe.task].activation
    lines = []
    for example in (test[index] for index in sorted(chosen)):
        arrays = pad(tokenizer.encode([example.input]), tokenizer.pad_id)
        scores = {
            name: tuple(float(score) for score in activate(session.run(arrays), activation, _TEMPERATURE)[0])
            for name, session in sessions.items()
        }
        golden = GoldenInput(text=example.text, text_pair=example.text_pair, label=example.label, scores=scores)
        lines.append(golden.model_dump_json())
    return ("\n".join(lines) + "\n").encode()


def _variant(name: str, dtype: str, own: StageMetrics, reference: StageMetrics, gate: Gate) -> Variant:
    providers = ("CPUExecutionProvider",) if name == "int8" else ("CPUExecutionProvider", "CUDAExecutionProvider")
    reasons = _gate_reasons(name, own, reference, gate)
    return Variant(
        name=name,
        file=LAYOUT.model(name),
        dtype=dtype,
        # ONNX Runtime has no CUDA kernels for graphs quantised at run time: INT8 would be slower than float there
        execution_providers=providers,
        golden_tolerance=TOLERANCES[name],
        batch_invariant=own.batch_invariance is not None and own.batch_invariance.bit_equal,
        gate_passed=not reasons,
        gate_reason="; ".join(reasons) or None,
    )


def _gate_reasons(name: str, own: StageMetrics, reference: StageMetrics, gate: Gate) -> list[str]:
    """Return what keeps a variant from being served, with what was found and what was expected."""
    reasons = []
    lowest = reference.accuracy.value - gate.max_accuracy_drop
    if own.accuracy.value < lowest:
        reasons.append(
            f"accuracy {own.accuracy.value:.4f}, expected at least {lowest:.4f} (teacher "
            f"{reference.accuracy.value:.4f} less gate.max_accuracy_drop {gate.max_accuracy_drop:g})"
        )
    if own.agreement < gate.min_agreement:
        reasons.append(
            f"{own.agreement:.1%} of the labels equal the FP32 student's, expected at least gate.min_agreement "
            f"{gate.min_agreement:.1%}"
        )
    invariance = own.batch_invariance
    if name == "int8" and invariance is not None and not invariance.bit_equal:
        reasons.append(f"logits change by up to {invariance.max_difference:.1e} among batch mates, expected no change")
    return reasons


def _left_over(bundle: Path) -> str:
    return f". {bundle} is an earlier run's and was left as it is" if bundle.exists() else ""


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size
