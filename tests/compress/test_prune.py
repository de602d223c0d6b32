"""Pruning as a stage: a target that is met or said to be missed, whole runs, and what is left of stopped ones."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from torch import nn

from bundle import open_bundle
from bundle.manifest import LatencyByBatch, SpeedupByBatch, TargetOutcome
from compress import pareto, prune
from compress.anatomy import anatomy_of
from compress.cost import COSTS, Meter, hidden_widths, shape_key
from compress.errors import ModelError, RecipeError
from compress.models import load_classifier
from compress.pipeline import introduce
from compress.report import target_line
from compress.stage import StageReport
from compress.student import check_quantizable, load_student
from service.engine.tokenization import Tokenizer
from tests.compress.test_faults import assert_one_message, run
from tests.support.command import limbeck, started
from tests.support.models import tiny_classifier, write_tiny_recipe
from tests.support.pruned import STAGES, finish_pruned, summary
from tests.support.runs import Finished, reopened, stage_folder
from tests.support.small_disk import can_mount, on_small_disk

SAME = ["model.int8.onnx", "model.fp32.onnx", "model.fp16.onnx", "tokenizer.json", "golden.jsonl"]
OFTEN = [f"--set={part}.checkpoint_seconds=0" for part in ("teacher.fine_tune", "distill")]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Of a vocabulary that was pruned, too; nobody may change it."""
    return finish_pruned(tmp_path_factory.mktemp("pruned"))


def hashes(out: Path) -> dict[str, str]:
    bundle = open_bundle(out / "bundle")
    return {name: hashlib.sha256(bundle.path(name).read_bytes()).hexdigest() for name in SAME}


def test_the_target_is_met_and_the_bundle_says_so(pruned: Finished) -> None:
    manifest = pruned.bundle.manifest
    outcome = manifest.target
    assert outcome is not None
    assert (outcome.kind, outcome.wanted, outcome.met) == ("size_mb", 0.14, True)
    assert outcome.reached == pytest.approx(pruned.bundle.path("model.int8.onnx").stat().st_size / 1e6)
    assert abs(outcome.reached / 0.14 - 1) <= 0.1
    assert target_line(outcome) in pruned.printed
    assert target_line(outcome) in (pruned.out / "bundle/README.md").read_text()
    assert limbeck("verify", pruned.out / "bundle").returncode == 0
    assert manifest.lineage.recipe["target"]["size_mb"] == 0.14
    assert manifest.metrics[2].batch_invariance is not None
    assert manifest.metrics[2].batch_invariance.bit_equal


def test_what_goes_is_gone_and_the_student_still_knows_its_task(pruned: Finished) -> None:
    run = reopened(pruned, pruned.out.parent / "look", STAGES[:5])
    before, after = (
        load_classifier(str(run.folder(s) / "model"), run.splits.labels, 0, run.spec, keep_head=True)
        for s in ("vocabulary", "prune")
    )
    assert sum(p.numel() for p in after.parameters()) < sum(p.numel() for p in before.parameters())
    found = summary(pruned.out, "prune")
    assert found["measured"] == pytest.approx(0.14, rel=0.1)
    assert found["before"] > found["steps"][0]["cost"] > found["steps"][1]["cost"]
    assert shape_key(after) in json.loads((pruned.out / "work/prune" / COSTS).read_text())["measured"]
    quality = pruned.bundle.manifest.metrics[2].quality
    assert quality is not None
    assert quality.scores["accuracy"].value > 0.8
    shutil.rmtree(pruned.out.parent / "look")


def test_a_student_that_is_its_teacher_is_not_taught_before_it_is_cut(pruned: Finished) -> None:
    assert summary(pruned.out, "distill")["epochs"] == 0
    assert "the student still is the teacher" in pruned.printed


@pytest.mark.slow
def test_kill_9_in_the_new_stages_changes_nothing(pruned: Finished, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    shutil.copytree(pruned.out / "work", out / "work")
    for stage in STAGES[3:]:
        shutil.rmtree(out / "work" / stage)
    marks = [
        "vocabulary/checkpoints/float/checkpoint.pt",
        "prune/checkpoints/step-1/plan.json",
        "prune/checkpoints/step-1/training/checkpoint.pt",
        "prune/checkpoints/step-2/plan.json",
        "prune/checkpoints/step-2/training/checkpoint.pt",
    ]
    for mark in marks:
        with started("compress", pruned.recipe, "--out", out, *OFTEN) as running:
            running.wait_until((out / "work" / mark).exists)
            running.send(signal.SIGKILL)
            assert running.result().returncode == -signal.SIGKILL
    last = limbeck("compress", pruned.recipe, "--out", out, *OFTEN)
    assert last.returncode == 0, last.stderr
    assert "distilling after cut 2: resuming at step" in last.stdout
    assert "cut 1 of 2" not in last.stdout
    assert hashes(out) == hashes(pruned.out)
    assert not (out / "work/prune/checkpoints").exists()
    assert list(out.rglob("*.tmp")) == []


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_run_goes_on(pruned: Finished, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(pruned.out / "work", out / "work")
    for stage in STAGES[3:]:
        shutil.rmtree(out / "work" / stage)
    for mark in ("vocabulary/started.json", "prune/checkpoints/step-2/training/checkpoint.pt"):
        with started("compress", pruned.recipe, "--out", out, *OFTEN) as running:
            running.wait_until((out / "work" / mark).exists)
            running.send(signal.SIGINT)
            stopped = running.result()
        assert stopped.returncode == 130, stopped.stderr
        assert stopped.stderr.strip() == "stopped; give the same command again to go on from the last checkpoint"
    last = limbeck("compress", pruned.recipe, "--out", out, *OFTEN)
    assert last.returncode == 0, last.stderr
    assert hashes(out) == hashes(pruned.out)


@pytest.mark.slow
def test_another_target_prunes_anew_and_trains_no_teacher(pruned: Finished, tmp_path: Path) -> None:
    shutil.copytree(pruned.out, tmp_path / "out")
    result = limbeck("compress", pruned.recipe, "--out", tmp_path / "out", "--set", "target={size_mb: 0.145}")
    assert result.returncode == 0, result.stderr
    earlier = [stage for stage in STAGES if f"{stage}: done earlier" in result.stdout]
    assert earlier == [*STAGES[:4], "baselines"]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "size_mb"), [("pair", 0.145), ("token-classification", 0.125)])
def test_other_tasks(task: str, size_mb: float, tmp_path: Path) -> None:
    done = finish_pruned(tmp_path, task, target={"size_mb": size_mb})
    target = done.bundle.manifest.target
    assert target is not None
    assert target.met
    assert limbeck("verify", done.out / "bundle").returncode == 0


def pretended(seed: int) -> Callable[[Meter, nn.Module], float]:
    """Costs of shapes without a clock: not those that the search expects, and with noise."""
    random = np.random.default_rng(seed)

    def measure(meter: Meter, model: nn.Module) -> float:
        meter.known.setdefault("teacher_ms", 10.0)
        layers = anatomy_of(model).layers
        work = sum(layer.heads / 4 + layer.neurons / 128 for layer in layers) * anatomy_of(model).hidden / 64
        return float((0.5 + work) * random.uniform(0.97, 1.03))

    return measure


def pretend_curves(widths: list[int], heads: int, _: int, neurons: int, *__: Any, **___: Any) -> Any:
    return (
        {h: np.arange(heads + 1) * 0.1 * h / 64 for h in widths},
        {h: np.arange(neurons + 1) * 0.004 * h / 64 for h in widths},
    )


TIMED = ["target={speedup: 4}", "prune={steps: 2, texts: 32, block: 8}"]


def test_a_speedup_is_searched_until_its_measurement_is_near(
    pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "_measure", pretended(0))
    monkeypatch.setattr("compress.cost.measure_curves", pretend_curves)
    first = reopened(pruned, tmp_path / "first", STAGES[:4], TIMED)
    found = prune.run(first, stage_folder(first, "prune"))
    assert found["measured"] == pytest.approx(4, rel=0.1)
    assert found["before"] == pytest.approx(10 / 4.5, rel=0.1)

    # measurements of an earlier run in the place of the clock: the same student
    recorded = first.folder("prune") / COSTS
    monkeypatch.setattr(Meter, "_measure", lambda *_: pytest.fail("it was measured"))
    again = reopened(pruned, tmp_path / "again", STAGES[:4], [*TIMED, f"prune.measurements={recorded}"])
    prune.run(again, stage_folder(again, "prune"))
    for name in ("model/model.safetensors", "model/widths.json"):
        assert (again.folder("prune") / name).read_bytes() == (first.folder("prune") / name).read_bytes()


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_taylor_cuts_too(pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    monkeypatch.setattr(Meter, "_measure", pretended(0))
    monkeypatch.setattr("compress.cost.measure_curves", pretend_curves)
    options = [
        "target={speedup: 4}",
        "prune={steps: 2, texts: 32, block: 8, importance: taylor}",
        f"distill.loss={loss}",
    ]
    run = reopened(pruned, tmp_path, STAGES[:4], options)
    found = prune.run(run, stage_folder(run, "prune"))
    # so small a student has few shapes
    assert found["measured"] == pytest.approx(4, rel=0.2)
    assert all(step["lost"] > 0 for step in found["steps"])


def test_measurements_of_something_else_are_refused(
    pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = pruned.out / "work/prune" / COSTS
    run = reopened(pruned, tmp_path / "a", STAGES[:4], [*TIMED, f"prune.measurements={recorded}"])
    with pytest.raises(RecipeError, match=r"prune.measurements: they are of .*size_mb.*; expected .*speedup"):
        prune.run(run, stage_folder(run, "prune"))
    run = reopened(pruned, tmp_path / "b", STAGES[:4], [*TIMED, "prune.measurements=nowhere.json"])
    with pytest.raises(RecipeError, match=r"nowhere.json is not the costs.json of a finished run"):
        introduce(run)  # before anything is trained


def test_measurements_of_other_students_are_refused(
    pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrower than the recipe allows, of another vocabulary, or without the student's own width."""
    recorded = tmp_path / "costs.json"
    again = ["target={size_mb: 0.14}", f"prune.measurements={recorded}"]
    found = json.loads((pruned.out / "work/prune" / COSTS).read_text())
    for changed, options, message in (
        ({}, ["prune.hidden=true"], r"they are of {'prune': .*'hidden': False}}; expected {.*'hidden': True}}"),
        ({"about": found["about"] | {"tokens_known": 9}}, [], r"they are of {'tokens_known': 9}; expected"),
        (
            {"about": found["about"] | {"student": "mpnet"}},
            [],
            r"they are of {'student': 'mpnet'}; expected {'student'",
        ),
        ({"about": found["about"] | {"teacher": "bert, 12"}}, [], r"they are of {'teacher': 'bert, 12'}; expected"),
        ({"widths": [32, 40]}, [], "they are of students 40 wide; expected 64"),
    ):
        recorded.write_text(json.dumps(found | changed))
        run = reopened(pruned, tmp_path / message[:20], STAGES[:4], [*again, *options])
        with pytest.raises(RecipeError, match=f"prune.measurements: {message}"):
            prune.run(run, stage_folder(run, "prune"))


@pytest.mark.parametrize(("target", "counts"), [("{speedup: 4}", True), ("{size_mb: 0.14}", False)])
def test_measurements_of_another_machine_are_told(
    pruned: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, counts: bool
) -> None:
    """Milliseconds are a machine's own, megabytes are not."""
    opened = reopened(pruned, tmp_path, STAGES[:4], [f"target={target}"])
    run = replace(opened, console=Console())
    assert run.recipe.target is not None
    student = load_student(run, run.before("prune") / "model")
    tokenizer = Tokenizer(run.before("prune") / "tokenizer.json", 32)
    own = Meter.open(run, run.recipe.target, student, tokenizer, tmp_path / "own", None).known
    for number, machine in enumerate((own["machine"], "a Z80, 1 core")):
        recorded = own | {"machine": machine}
        Meter.open(run, run.recipe.target, student, tokenizer, tmp_path / str(number), recorded)
        told = "prune.measurements: they are of another machine (a Z80, 1 core)" in capsys.readouterr().out
        assert told == (counts and machine != own["machine"])


def test_what_a_set_measured_is_of_its_own_student(
    pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured again for another student or kind of target in the same folder, and not again for the same."""
    asked: list[str] = []

    def measured(meter: Meter, model: nn.Module) -> float:
        asked.append(meter.target.kind)
        return float(anatomy_of(model).hidden * len(anatomy_of(model).layers)) / 1000

    monkeypatch.setattr(Meter, "_measure", measured)
    monkeypatch.setattr("compress.cost.measure_curves", pretend_curves)

    def targets(wanted: list[float] | int, *overrides: str) -> list[float]:
        run = reopened(pruned, tmp_path / str(len(asked)) / str(wanted), STAGES[:4], overrides)
        run.out = tmp_path / "set"
        assert run.recipe.target is not None
        return pareto._targets(run, run.recipe.target, wanted)

    shutil.copytree(pruned.out / "work", tmp_path / "set/work")
    small = "target={size_mb: 0.07}"
    layers = "prune={layers: true, hidden: false}"
    assert targets(2, small, layers) == [pytest.approx((0.128 * 0.07) ** 0.5, rel=0.01), 0.07]
    known = len(asked)
    assert targets(3, small, layers)[-1] == 0.07
    assert targets([0.1, 0.08], small, layers) == [0.1, 0.08]
    assert len(asked) == known
    with pytest.raises(ModelError, match=r"target\.size_mb: found 0\.01; .*a larger file, allow prune.hidden, prune "):
        targets([0.1, 0.01], small, layers)  # before any point is cut
    with pytest.raises(
        RecipeError, match=r"size_mb: found 0\.2, which the student meets as it is \(0\.128\); --pareto 2"
    ):
        targets(2, "target={size_mb: 0.2}", layers)
    known = len(asked)
    targets(2, "target={latency_ms: 0.07}", layers)
    assert asked[known:] == ["latency_ms"] * 2


def test_stages_before_the_student_are_shared_by_all_points(pruned: Finished, tmp_path: Path) -> None:
    """What a language model said is paid for once, and other teachers are taught once."""
    run = replace(reopened(pruned, tmp_path, ()), out=tmp_path / "pareto/1", shared=tmp_path)
    for stage in ("label", "teacher", "teacher-2", "targets", "distill", "vocabulary", "baselines"):
        assert run.folder(stage) == tmp_path / "work" / stage
    assert run.folder("prune") == tmp_path / "pareto/1/work/prune"


def test_a_student_that_meets_its_target_is_not_cut(
    pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "_measure", pretended(0))
    monkeypatch.setattr("compress.cost.measure_curves", pretend_curves)
    run = reopened(pruned, tmp_path, STAGES[:4], ["target={speedup: 1.5}", "prune={}"])
    found = prune.run(run, stage_folder(run, "prune"))
    assert found["steps"] == []
    weights = ("vocabulary", "prune")
    one, other = ((run.folder(stage) / "model/model.safetensors").read_bytes() for stage in weights)
    assert one == other


def test_a_target_out_of_reach_says_how_near_it_came(
    pruned: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "_measure", pretended(0))
    monkeypatch.setattr("compress.cost.measure_curves", pretend_curves)
    run = reopened(pruned, tmp_path, STAGES[:4], ["target={speedup: 500}", "prune={}"])
    with pytest.raises(ModelError, match=r"found 500; the smallest .*1 layers of 1 head.* comes to 8\."):
        prune.run(run, stage_folder(run, "prune"))


@pytest.mark.slow
def test_a_size_out_of_reach_is_one_message(pruned: Finished, tmp_path: Path) -> None:
    shutil.copytree(pruned.out / "work", tmp_path / "out/work")
    result = run(pruned.recipe, tmp_path / "out", "target.size_mb=0.01")
    assert_one_message(
        result,
        "target.size_mb: found 0.01; the smallest student",
        "MB; allow a larger file, allow prune.layers, ",
    )


@pytest.mark.slow
def test_a_real_clock_gives_a_student_and_a_verdict(pruned: Finished, tmp_path: Path) -> None:
    """Whatever this machine is busy with: what is stated holds together."""
    shutil.copytree(pruned.out / "work", tmp_path / "out/work")
    options = ["--set", "target={latency_ms: 5, tokens: 12, threads: 1}"]
    result = limbeck("compress", pruned.recipe, "--out", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    outcome = open_bundle(tmp_path / "out/bundle").manifest.target
    assert outcome is not None
    assert (outcome.kind, outcome.tokens, outcome.threads) == ("latency_ms", 12, 1)
    assert outcome.reached > 0
    assert outcome.met == (abs(outcome.reached / 5 - 1) <= 0.1)
    assert (outcome.reason is None) == outcome.met
    assert target_line(outcome) in result.stdout.replace("\n", " ")


@pytest.mark.slow
def test_a_family_that_cannot_be_pruned_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, target={"speedup": 2})
    config = transformers.AlbertConfig(
        vocab_size=18,
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=2,
    )
    torch.manual_seed(0)
    transformers.AlbertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    result = run(recipe, tmp_path / "out", "student.layers=2")
    assert result.returncode == 1
    assert "BERT" in result.stderr
    assert "fine-tuning" not in result.stdout


def test_a_student_with_nothing_for_int8_is_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=18, hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=1
    )
    with pytest.raises(ModelError, match=r"student: its largest matrix has 2048 numbers, and INT8 is for .* 4096"):
        check_quantizable(transformers.BertForSequenceClassification(config))
    config.intermediate_size = 128
    check_quantizable(transformers.BertForSequenceClassification(config))


def test_hidden_widths_are_shares_in_steps_of_32() -> None:
    assert hidden_widths(768, 32) == [192, 256, 384, 512, 640, 768]
    assert hidden_widths(384, 32) == [128, 192, 256, 320, 384]  # 96 x 32 is too small for INT8
    assert hidden_widths(64, 128) == [32, 40, 56, 64]
    assert hidden_widths(64, 8) == [64]


def test_why_a_target_was_missed(pruned: Finished, tmp_path: Path) -> None:
    from compress.outcome import target_outcome

    run = reopened(pruned, tmp_path, STAGES, ["target={speedup: 5}"])
    int8 = run_metrics(run)
    for changed, part in (
        ({"prune": {"measured": 4.0}}, "the search found no shape nearer than 4"),
        ({"prune": {"measured": 5.0}}, "it was 5 when it was cut"),
        ({"prune": {"steps": [], "before": 9.0}}, "before any cut it was 9"),
        ({"quantize": {"method": "static"}}, "the search measured per-token, the gate's choice was static"),
        ({"quantize": {"kept_float": ["a", "b"]}}, "2 matrices went back to float"),
    ):
        for stage, values in changed.items():
            old = run.reports[stage]
            run.reports[stage] = StageReport(
                old.stage, old.seconds, old.files, old.summary | {"measured": 5.0} | values
            )
        outcome = target_outcome(run, int8, None)  # type: ignore[arg-type]
        assert outcome is not None
        assert not outcome.met
        assert outcome.reason is not None
        assert part in outcome.reason
        assert "off by -40 %" in target_line(outcome)
        run.reports |= reopened(pruned, tmp_path / part[:12], ("prune", "quantize")).reports


def run_metrics(run: Any) -> Any:
    rows = open_bundle(run.recipe_folder / "out/bundle").manifest.metrics
    row = next(row for row in rows if row.stage == "int8")
    assert isinstance(row.latency_ms, LatencyByBatch)
    return row.model_copy(update={"speedup": SpeedupByBatch(batch_1=3.0, batch_8=3.0, batch_32=3.0)})


def test_a_line_for_every_kind_of_target() -> None:
    met = TargetOutcome(kind="latency_ms", wanted=2, reached=1.95, tokens=32, threads=1, met=True)
    assert target_line(met) == "Target 2 ms: 1.95 ms, within 10 %"
    missed = TargetOutcome(kind="speedup", wanted=20, reached=14.2, met=False, reason="of something")
    assert target_line(missed) == "Target 20×: 14.2×, off by -29 % (of something)"


def test_shapes_that_cost_the_same_are_measured_once() -> None:
    assert shape_key(tiny_classifier(layers=2)) == "64: 4x128 4x128"
    assert shape_key(tiny_classifier("mpnet", layers=2)) == shape_key(tiny_classifier("distilbert", layers=2))


@pytest.mark.parametrize(
    ("stage", "free_pages"), [pytest.param("vocabulary", 30, marks=pytest.mark.slow), ("prune", 50)]
)
def test_a_full_disk_is_one_message(pruned: Finished, tmp_path: Path, stage: str, free_pages: int) -> None:
    if not can_mount():
        pytest.skip("needs mounts in a user namespace: unshare -rm")
    out, kept = tmp_path / "out", tmp_path / "kept.txt"
    out.mkdir()
    earlier = STAGES[: STAGES.index(stage)]
    setup = partial(on_small_disk, out, pruned.out / "work", earlier, free_pages, kept)
    result = run(pruned.recipe, out, setup=setup)
    assert f"{stage}\n" in result.stdout, result.stderr  # it began
    assert_one_message(result)
    assert "No space left on device" in result.stderr or "is the disk full?" in result.stderr
    assert f"work/{stage}/stage.json" not in kept.read_text().splitlines()
