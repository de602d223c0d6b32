"""What a run can tell of how its bundle came about, for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compress import worth
from compress.evidence import Evidence, read_evidence
from compress.stage import Run

_TITLES = {"distill": "student", "vocabulary": "student, fewer tokens", "prune": "student"}


@dataclass(frozen=True)
class Story:
    """What the report tells beside the manifest; what is empty is left out, with a sentence."""

    evidence: Mapping[str, Evidence]
    """Stage of the metrics -> what its answers show."""
    tried: Mapping[str, Any]
    """The INT8 methods, as `search.write_variants` returns them."""
    texts: int
    """Test texts, at most, in each list of mistakes."""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What was trained -> the main metric on validation after each epoch."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage -> how long it took."""


def story_of(run: Run) -> Story:
    """Return what the finished stages of a run tell."""
    return Story(
        evidence=read_evidence(run.folder("evaluate")),
        tried=run.reports["quantize"].summary,
        texts=run.recipe.report.texts,
        curves=curves({name: report.summary for name, report in run.reports.items()}),
        seconds={name: report.seconds for name, report in run.reports.items()},
    )


def curves(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the validation scores of everything that was trained, from the summaries of the stages.

    A cut whose scores were not kept, by an earlier version, is left out.
    """
    found: dict[str, list[float]] = {}
    for stage, summary in summaries.items():
        title = _TITLES.get(stage, stage)
        trained = {title: summary}
        trained |= {f"student, after cut {n}": cut for n, cut in enumerate(summary.get("steps", []), start=1)}
        trained[f"{title}, quantization-aware"] = summary.get("quantization_aware", {})
        trained[worth.UNDISTILLED] = summary.get(worth.UNDISTILLED, {})
        found |= {name: one["history"] for name, one in trained.items() if "history" in one}
    return found
