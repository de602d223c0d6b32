"""How near the INT8 student came to the target of its recipe, measured on the test split, and why it did not."""

from rich.console import Console

from bundle.manifest import StageMetrics, TargetOutcome
from compress.cost import same_length
from compress.latency import Timed, measure_latency
from compress.measure import Subject
from compress.prune import NEAR
from compress.recipe_target import Target
from compress.stage import Run


def target_outcome(run: Run, int8: StageMetrics, subject: Subject) -> TargetOutcome | None:
    """Return what was reached, or None when the recipe has no target; `subject` is the INT8 student of `int8`."""
    target = run.recipe.target
    if target is None:
        return None
    reached = _reached(run, target, int8, subject)
    met = abs(reached / target.value - 1) <= NEAR
    at_length = target.kind == "latency_ms"
    return TargetOutcome(
        kind=target.kind,
        wanted=target.value,
        reached=round(reached, 6),
        tokens=target.tokens if at_length else None,
        threads=target.threads if at_length else None,
        met=met,
        reason=None if met else _reason(run, target),
    )


def _reached(run: Run, target: Target, int8: StageMetrics, subject: Subject) -> float:
    if target.kind == "size_mb":
        return int8.onnx_bytes / 1e6
    if target.kind == "speedup":
        if int8.speedup is None:
            raise ValueError("the INT8 student was not timed")
        return int8.speedup.batch_1
    timed = Timed(subject.path, same_length(subject.tokenizer, target.tokens), subject.tokenizer.pad_id)
    rounds = run.recipe.evaluate.latency_rounds
    found = measure_latency({"int8": timed}, rounds, Console(quiet=True), sizes=(1,), threads=target.threads)
    return found["int8"][1].median_ms


def _reason(run: Run, target: Target) -> str:
    pruned, quantized = run.reports["prune"].summary, run.reports["quantize"].summary
    searched, reasons = run.recipe.quantize.candidates[0], list[str]()
    if not pruned["steps"]:
        reasons.append(f"before any cut it was {pruned['before']:.3g}")
    if quantized["method"] != searched:
        reasons.append(f"the search measured {searched}, the gate's choice was {quantized['method']}")
    if quantized["kept_float"]:
        reasons.append(f"{len(quantized['kept_float'])} matrices went back to float")
    if pruned["steps"] and abs(pruned["measured"] / target.value - 1) > NEAR:
        reasons.append(f"the search found no shape nearer than {pruned['measured']:.3g}")
    if not reasons:
        why = {
            "speedup": ", on validation texts: test texts have other lengths, or the machine was busier",
            "latency_ms": ": the machine was busier, or less busy, then",
        }
        reasons.append(f"it was {pruned['measured']:.3g} when it was cut{why.get(target.kind, '')}")
    return "; ".join(reasons)
