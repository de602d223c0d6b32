"""Last stage: hold the variants against the gate, record golden scores, write the bundle."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bundle import LAYOUT, Bundle, GoldenInput, Manifest, Task, Variant, write_bundle
from bundle.manifest import BaselineMetrics, Lineage, StageMetrics, TargetOutcome
from compress import distill, evaluate, export, search, teacher
from compress.calibrate import read_fitted
from compress.confidence import Fitted
from compress.errors import GateError
from compress.examples import Example
from compress.gate import Check, Measured, SliceDrop, check_gate, failures_table, reasons
from compress.machine import describe_machine
from compress.measure import STUDENT
from compress.model_card import model_card
from compress.models import model_identity
from compress.recipe import Gate
from compress.reference import MOST_TEXTS, reference_statistics
from compress.report_html import report_html
from compress.stage import Run, library_versions, write_atomic
from compress.story import Story, story_of
from compress.tasks import TaskSpec
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad

BUNDLE = "bundle"
TOLERANCES = {"float32": 1e-4, "int8": 2e-2, "float16": 2e-2}
"""Largest change of a golden score between machines: float32 sums in another order; INT8 kernels differ by CPU."""
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# ONNX Runtime has no CUDA kernels for graphs quantised at run time: INT8 would be slower than float there
_PROVIDERS = {"int8": (_CPU,), "float32": (_CPU, _CUDA), "float16": (_CUDA,)}
_NAMES = {evaluate.INT8: ("int8", "int8"), STUDENT: ("fp32", "float32"), evaluate.FP16: ("fp16", "float16")}
"""Stage of the metrics -> name and dtype of the variant, in the order of the manifest."""


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write the bundle to `OUT/bundle` and its manifest's hash to `manifest.sha256`; raises GateError."""
    recipe = run.recipe
    metrics = evaluate.read_metrics(run.folder("evaluate"))
    variants = judged(metrics, recipe.gate, run.spec, force=run.force)
    if not any(variant.servable for variant in variants):
        advice = "Train longer, keep more layers, add unlabeled text or augment it, or loosen the gate"
        raise GateError(
            refusal(variants, run.out / BUNDLE, advice), failures_table(all_checks(metrics, recipe.gate, run.spec))
        )
    by_dtype = {
        "int8": run.folder("quantize") / search.MODEL,
        "float32": run.folder("export") / export.STUDENT,
        "float16": run.folder("quantize") / search.HALF_MODEL,
    }
    lineage = Lineage(
        recipe=recipe.model_dump(mode="json", exclude={"tune"}),
        data=run.splits.fingerprints(),
        overlap=run.splits.overlap(),
        teachers=_others_who_taught(run),
        vocabulary=_vocabulary(run),
        models=_models(run),
        files=_files(run),
        seeds={"seed": recipe.seed},
        library_versions=library_versions(),
        machine=describe_machine(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for leftover in run.out.glob(f".{BUNDLE}.*"):  # of a run that was killed while it wrote; we hold the folder
        shutil.rmtree(leftover)
    bundle = assemble(
        run.out / BUNDLE,
        run.spec,
        name=recipe.name,
        version=recipe.version,
        labels=run.splits.labels,
        models={variant.name: by_dtype[variant.dtype] for variant in variants},
        variants=variants,
        fitted=read_fitted(run.folder("calibrate"), "student"),
        tokenizer=run.student / distill.TOKENIZER,
        max_length=recipe.data.max_length,
        golden=drawn(run.splits.test, recipe.evaluate.golden_inputs, recipe.seed),
        reference=drawn(run.splits.test, MOST_TEXTS, recipe.seed),
        metrics=metrics,
        baselines=evaluate.read_baselines(run.folder("evaluate")),
        pruned_to=evaluate.read_target(run.folder("evaluate")),
        lineage=lineage,
        story=story_of(run),
    )
    write_atomic(folder / LAYOUT.manifest_hash, (bundle.folder / LAYOUT.manifest_hash).read_text(encoding="ascii"))
    return {"bundle": str(bundle.folder.name), "gate_passed": [v.name for v in variants if v.gate_passed]}


def _others_who_taught(run: Run) -> dict[str, Any]:
    """Return what is known of teachers beside the first, and of a language model that labeled; never its key."""
    told = {"validation": run.reports["targets"].summary.get("validation")}
    told["llm"] = run.reports["label"].summary if "label" in run.reports else None
    return {name: value for name, value in told.items() if value is not None}


def _files(run: Run) -> dict[str, str]:
    """Return the hashes of what the stages left; what evaluate and baselines leave holds times, which never repeat."""
    stages = {name: done for name, done in run.reports.items() if name not in ("evaluate", "baselines", "package")}
    return {f"{name}/{path}": sha256 for name, done in stages.items() for path, sha256 in done.files.items()}


def _vocabulary(run: Run) -> dict[str, Any] | None:
    """Return what was taken out of the vocabulary, and what it did to the texts and to the quality."""
    if "vocabulary" not in run.reports:
        return None
    summary = run.reports["vocabulary"].summary
    told = ("tokens", "tokens_before", "changed_encodings", "variance_kept", "test_score")
    return {name: summary[name] for name in told if name in summary}


def _models(run: Run) -> dict[str, Any]:
    """Return what tells the models from others that training began from."""
    recipe = run.recipe
    named = {teacher.other(number): other.model for number, other in enumerate(recipe.teacher.others)}
    named = {teacher.FIRST: recipe.teacher.model, **named}
    if recipe.student.init != "teacher":
        named["student"] = recipe.student.init
    return {name: model_identity(reference, run.recipe_folder) for name, reference in named.items()}


def assemble(
    target: Path,
    spec: TaskSpec,
    *,
    name: str,
    version: str,
    labels: Sequence[str],
    models: Mapping[str, Path],
    variants: Sequence[Variant],
    fitted: Fitted,
    tokenizer: Path,
    max_length: int,
    golden: Sequence[Example],
    reference: Sequence[Example],
    metrics: Sequence[StageMetrics],
    baselines: Sequence[BaselineMetrics],
    pruned_to: TargetOutcome | None = None,
    lineage: Lineage,
    story: Story,
) -> Bundle:
    """Write a bundle of these variants, with the golden scores they have here; raises BundleError and OSError.

    What the model does in service is later compared with what its first variant to be served does on `reference`.
    """
    sessions = {variant: Session(path, labels=len(labels)) for variant, path in models.items()}
    first = sessions[variants[0].name]
    thresholds = None if fitted.thresholds is None else dict(zip(labels, fitted.thresholds, strict=True))
    manifest = Manifest(
        name=name,
        version=version,
        task=spec.task,
        labels=tuple(labels),
        activation=spec.activation,
        max_length=max_length,
        input_names=first.input_names,
        output_name=first.output_name,
        temperature=fitted.temperature,
        thresholds=thresholds,
        abstention=None if fitted.abstention is None else vars(fitted.abstention),
        text_pair=spec.task is Task.PAIR,
        tag_scheme=spec.tag_scheme(labels),
        variants=tuple(variants),
        metrics=tuple(metrics),
        baselines=tuple(baselines),
        target=pruned_to,
        lineage=lineage,
        files={},
    )
    reader = Tokenizer(tokenizer, max_length)
    served = next(variant.name for variant in variants if variant.servable)
    statistics = reference_statistics(reference, spec, labels, fitted, sessions[served], reader)
    manifest = manifest.model_copy(update={"reference_statistics": statistics})
    files: dict[str, Path | bytes] = {LAYOUT.model(variant): path for variant, path in models.items()}
    files[LAYOUT.tokenizer] = tokenizer
    files[LAYOUT.golden] = golden_lines(golden, spec, fitted.temperature, sessions, reader)
    files[LAYOUT.report] = report_html(manifest, story).encode()
    files[LAYOUT.card] = model_card(manifest, {file: _size(source) for file, source in files.items()}).encode()
    return write_bundle(target, manifest, files)


def judged(metrics: Sequence[StageMetrics], gate: Gate, spec: TaskSpec, *, force: bool) -> list[Variant]:
    """Return the variants with what the gate says of each."""
    checks = all_checks(metrics, gate, spec)
    rows = {row.stage: row for row in metrics}
    exact = {stage: _exact(row) for stage, row in rows.items()}
    variants = []
    for stage, (name, dtype) in _NAMES.items():
        if stage not in rows:
            continue
        failed = reasons([check for check in checks if check.variant == name])
        variants.append(
            Variant(
                name=name,
                file=LAYOUT.model(name),
                dtype=dtype,
                execution_providers=_PROVIDERS[dtype],
                golden_tolerance=TOLERANCES[dtype],
                batch_invariant=exact[stage],
                gate_passed=not failed,
                gate_reason="; ".join(failed) or None,
                forced=force and bool(failed),
            )
        )
    return variants


def refusal(variants: Sequence[Variant], target: Path, advice: str) -> str:
    """Return why there is no bundle when no variant can be served."""
    found = "\n".join(f"  {variant.name}: {variant.gate_reason}" for variant in variants)
    left = f". {target} is an earlier run's and was left as it is" if target.exists() else ""
    return f"no variant passed the gate:\n{found}\n{advice}; --force writes the bundle all the same, and marks it{left}"


def all_checks(metrics: Sequence[StageMetrics], gate: Gate, spec: TaskSpec) -> list[Check]:
    """Return every limit held against every variant; what could not be measured is not judged."""
    rows = {row.stage: row for row in metrics}
    checks: list[Check] = []
    for stage, (name, dtype) in _NAMES.items():
        if stage in rows:
            checks += check_gate(gate, measured(rows[stage], name, dtype, spec))
    return checks


def measured(row: StageMetrics, name: str, dtype: str, spec: TaskSpec) -> Measured:
    """Return a row of the metrics in the form the gate reads."""
    quality = row.quality
    return Measured(
        variant=name,
        dtype=dtype,
        metric=spec.metric,
        quality_drop=quality.drop if quality else None,
        recall_drops=quality.recall_drops if quality else {},
        slice_drops={
            part: SliceDrop(found.texts, found.drop)
            for part, found in (quality.slices if quality else {}).items()
            if found.drop is not None
        },
        label_flips=row.label_flips,
        batch_invariance=row.batch_invariance,
        calibration_error=quality.calibration.expected_error if quality else None,
        onnx_bytes=row.onnx_bytes,
        latency_ms=row.latency_ms.batch_1.median_ms if row.latency_ms else None,
    )


def drawn(examples: Sequence[Example], number: int, seed: int) -> list[Example]:
    """Return some examples, drawn by seed, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(examples))[:number]
    return [examples[index] for index in sorted(chosen)]


def golden_lines(
    examples: Sequence[Example],
    spec: TaskSpec,
    temperature: float,
    sessions: Mapping[str, Session],
    tokenizer: Tokenizer,
) -> bytes:
    """Return `golden.jsonl`: each text run alone through every variant."""
    lines = []
    for example in examples:
        arrays = pad(tokenizer.encode([example.input]), tokenizer.pad_id)
        scores = {}
        for name, session in sessions.items():
            logits = session.run(arrays)
            rows = activate(logits.reshape(-1, logits.shape[-1]), spec.activation, temperature)
            scores[name] = tuple(float(score) for score in rows.ravel())
        label = None if example.target is None else spec.target_text(example)
        lines.append(
            GoldenInput(text=example.text, text_pair=example.text_pair, label=label, scores=scores).model_dump_json()
        )
    return ("\n".join(lines) + "\n").encode()


def _exact(row: StageMetrics) -> bool:
    return row.batch_invariance is not None and row.batch_invariance.bit_equal


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size
