"""The last gate: what is not good enough is not shipped, unless somebody says so; then the bundle says it, too."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bundle import LAYOUT, Task, open_bundle
from bundle.manifest import BatchInvariance, Interval, StageMetrics
from compress import evaluate, package
from compress.recipe import Gate
from compress.tasks import SPECS
from service.errors import StartupError
from service.variants import CPU, CUDA, choose_variant
from tests.service.helpers import running, settings_for
from tests.support.command import limbeck
from tests.support.runs import STAGES, Finished, reopened

TOO_STRICT = ["--set", "gate.max_size_mb=0.01"]


@pytest.fixture
def single(finished: Callable[[str], Finished]) -> Finished:
    return finished("single-label")


@pytest.fixture
def out(single: Finished, tmp_path: Path) -> Path:
    """A finished run whose bundle is not made yet."""
    shutil.copytree(single.out / "work", tmp_path / "out/work")
    return tmp_path / "out"


def test_a_run_whose_gate_fails_writes_no_bundle_and_says_what_was_found(single: Finished, out: Path) -> None:
    result = limbeck("compress", single.recipe, "--out", out, *TOO_STRICT)
    assert result.returncode == 3
    assert "What did not pass the gate" in result.stderr
    for variant in ("int8", "fp32", "fp16"):
        size = json.loads((out / "work/evaluate/metrics.json").read_text())
        stage = {"fp32": "student"}.get(variant, variant)
        found = next(row["onnx_bytes"] for row in size if row["stage"] == stage) / 1e6
        assert f"{variant}: file size is {found:.4g} MB and gate.max_size_mb allows 0.01 MB" in result.stderr
    assert "no variant passed the gate" in result.stderr
    assert "--force writes the bundle all the same, and marks it" in result.stderr
    assert "Traceback" not in result.stderr
    table = result.stderr.split("error:")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert not (out / "bundle").exists()
    assert [path.name for path in out.iterdir()] == ["work"]


def test_force_ships_it_and_everything_says_so(single: Finished, out: Path) -> None:
    forced = limbeck("compress", single.recipe, "--out", out, *TOO_STRICT, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "Variant int8 did not pass the gate and is marked as forced: file size" in forced.stdout
    bundle = open_bundle(out / "bundle")
    for variant in bundle.manifest.variants:
        assert (variant.gate_passed, variant.forced, variant.servable) == (False, True, True)
        assert "gate.max_size_mb allows 0.01 MB" in variant.gate_reason
    card = (out / "bundle" / LAYOUT.card).read_text()
    assert "**Variant int8 did not pass the gate and was shipped by order (--force)**: file size" in card
    shown = limbeck("inspect", out / "bundle").stdout
    assert "failed, forced" in shown
    assert "int8 was shipped by order: file size" in shown
    assert "is not served" not in shown
    assert limbeck("verify", out / "bundle").returncode == 0

    async def served() -> None:
        async with running(settings_for(bundle)) as client:
            answer = await client.post("/v1/classify", json={"inputs": ["a good movie"]})
            assert answer.status_code == 200
            assert (await client.get("/v1/models/tiny")).json()["variant"] == "int8"

    asyncio.run(served())

    again = limbeck("compress", single.recipe, "--out", out, *TOO_STRICT)  # without --force it is refused again
    assert again.returncode == 3
    assert "is an earlier run's and was left as it is" in again.stderr
    assert open_bundle(out / "bundle").manifest == bundle.manifest


def test_what_passed_is_not_marked_by_force(single: Finished, out: Path) -> None:
    result = limbeck("compress", single.recipe, "--out", out, "--force")
    assert result.returncode == 0, result.stderr
    assert not any(variant.forced for variant in open_bundle(out / "bundle").manifest.variants)


def test_a_variant_that_fails_is_left_out_of_service(single: Finished, out: Path) -> None:
    """Half-way between INT8 and FP32 lies a size that one of them passes."""
    sizes = [row.onnx_bytes / 1e6 for row in evaluate.read_metrics(out / "work/evaluate")]
    limit = (sizes[1] + max(sizes[2:])) / 2
    result = limbeck("compress", single.recipe, "--out", out, "--set", f"gate.max_size_mb={limit}")
    assert result.returncode == 0, result.stderr
    assert "Variant fp32 did not pass the gate and will not be served" in result.stdout
    manifest = open_bundle(out / "bundle").manifest
    assert [v.gate_passed for v in manifest.variants] == [True, False, True]
    assert choose_variant(manifest, "auto", [CPU]).variant.name == "int8"
    assert choose_variant(manifest, "auto", [CUDA, CPU]).variant.name == "fp16"
    with pytest.raises(StartupError, match="'fp32' did not pass its quality gate"):
        choose_variant(manifest, "fp32", [CPU])
    assert "fp32 is not served: file size" in limbeck("inspect", out / "bundle").stdout


def test_a_gate_that_fails_keeps_the_stages_before_it(single: Finished, out: Path) -> None:
    """Loosening the limit of the test split does not train anything again."""
    assert limbeck("compress", single.recipe, "--out", out, *TOO_STRICT).returncode == 3
    loose = limbeck("compress", single.recipe, "--out", out)
    assert loose.returncode == 0, loose.stderr
    for stage in STAGES[:5]:
        assert f"{stage}: done earlier" in loose.stdout


@pytest.fixture
def metrics(single: Finished) -> dict[str, StageMetrics]:
    return {row.stage: row for row in evaluate.read_metrics(single.out / "work/evaluate")}


def judged(metrics: dict[str, StageMetrics], gate: Gate, *, force: bool = False) -> dict[str, object]:
    found = package.judged(list(metrics.values()), gate, SPECS[Task.SINGLE_LABEL], force=force)
    return {variant.name: variant for variant in found}


def test_int8_that_depends_on_batch_mates_never_passes(metrics: dict[str, StageMetrics]) -> None:
    moved = BatchInvariance(texts=80, batchings=4, max_difference=0.25, bit_equal=False)
    metrics["int8"] = metrics["int8"].model_copy(update={"batch_invariance": moved})
    found = judged(metrics, Gate(max_quality_drop=1.0, max_label_flips=None))
    assert not found["int8"].gate_passed
    assert not found["int8"].batch_invariant
    assert found["int8"].gate_reason == (
        "change of logits among batch mates is 0.25; gate.batch_invariance allows no change"
    )
    assert found["fp32"].gate_passed
    allowed = judged(metrics, Gate(max_quality_drop=1.0, max_label_flips=None, batch_invariance=False))
    assert allowed["int8"].gate_passed


@pytest.mark.parametrize(("decide_by", "passes"), [("value", True), ("bound", False)])
def test_the_value_or_the_bad_end_of_its_interval_decides(
    metrics: dict[str, StageMetrics], decide_by: str, passes: bool
) -> None:
    quality = metrics["int8"].quality.model_copy(update={"drop": Interval(value=0.02, low=-0.01, high=0.05)})
    metrics["int8"] = metrics["int8"].model_copy(update={"quality": quality})
    found = judged(metrics, Gate(max_quality_drop=0.03, max_label_flips=None, decide_by=decide_by))
    assert found["int8"].gate_passed == passes
    if not passes:
        assert "accuracy drop is 0.02 [-0.01, 0.05], whose upper end counts" in found["int8"].gate_reason


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ({"max_recall_drop": 0.0}, "recall drop of negative"),
        ({"max_slice_drop": 0.0, "min_slice_texts": 1}, "accuracy drop on "),
        ({"max_calibration_error": 0.0}, "calibration error"),
        ({"max_latency_ms": 1e-6}, "latency of one text"),
    ],
)
def test_every_limit_is_held_against_what_was_measured(
    metrics: dict[str, StageMetrics], limit: dict[str, float], name: str
) -> None:
    worse = Interval(value=0.1, low=0.05, high=0.2)
    quality = metrics["int8"].quality
    slices = {part: found.model_copy(update={"drop": worse}) for part, found in quality.slices.items()}
    quality = quality.model_copy(update={"recall_drops": {"negative": worse}, "slices": slices})
    metrics["int8"] = metrics["int8"].model_copy(update={"quality": quality})
    found = judged(metrics, Gate(max_quality_drop=1.0, max_label_flips=None, **limit))
    assert name in found["int8"].gate_reason
    assert judged(metrics, Gate(max_quality_drop=1.0, max_label_flips=None))["int8"].gate_passed


def test_golden_inputs_are_drawn_by_seed(single: Finished) -> None:
    run = reopened(single, single.out / "unused", ())
    test = run.splits.test
    drawn = package.drawn(test, 10, seed=1)
    assert len(drawn) == 10
    assert drawn == package.drawn(test, 10, seed=1) != package.drawn(test, 10, seed=2)
    assert [e for e in test if e in drawn] == drawn
    assert package.drawn(test, 10_000, seed=1) == test


@pytest.mark.parametrize("task", ["single-label", "multi-label", "pair"])
def test_what_drift_is_compared_with_is_what_the_service_gives(finished: Callable[[str], Finished], task: str) -> None:
    """The bundle's own test texts, sent to the service, give the mix of labels that the manifest holds."""
    run = finished(task)
    bundle = run.bundle
    reference = bundle.manifest.reference_statistics
    assert reference is not None
    rows = run.rows("test")
    texts = [{name: row[name] for name in ("text", "text_pair")} if "text_pair" in row else row["text"] for row in rows]

    async def ask() -> str:
        async with running(settings_for(bundle)) as client:
            for text in texts:
                assert (await client.post("/v1/classify", json={"inputs": [text]})).status_code == 200
            return str((await client.get("/metrics")).text)

    samples = {
        (sample.name, sample.labels.get("label")): sample.value
        for family in text_string_to_metric_families(asyncio.run(ask()))
        for sample in family.samples
    }
    assert reference["texts"] == len(texts)
    for label, share in reference["label_share"].items():
        assert samples["limbeck_predictions_total", label] == pytest.approx(share * len(texts))
        assert samples["limbeck_reference_label_share", label] == pytest.approx(share)
    tokens = samples["limbeck_tokens_total", None]
    assert samples["limbeck_unknown_tokens_total", None] / tokens == pytest.approx(reference["unknown_token_share"])
