"""A whole run on a tiny model, through the command; and what is left of it when it is stopped."""

import fcntl
import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle import Bundle, open_bundle
from compress import stage_inputs
from compress.stage import fingerprint
from tests.support.command import Result, limbeck, started
from tests.support.runs import STAGES, Finished, reopened

# what a finished run must reproduce: everything that decides an answer
REPRODUCED = ["model.int8.onnx", "model.fp32.onnx", "model.fp16.onnx", "tokenizer.json", "golden.jsonl"]
MEASURED_IN_TIME = {"latency_ms", "speedup"}
# a checkpoint after every step, so that a kill has something to go on from
OFTEN = ["--set", "teacher.fine_tune.checkpoint_seconds=0", "--set", "distill.checkpoint_seconds=0"]
CHECKPOINTS = {"teacher": "checkpoints", "distill": "checkpoints/float", "baselines": "checkpoints"}


@pytest.fixture
def single(finished: Callable[[str], Finished]) -> Finished:
    return finished("single-label")


def quality(bundle: Bundle) -> list[dict[str, Any]]:
    manifest = bundle.manifest
    rows = [row.model_dump(exclude=MEASURED_IN_TIME) for row in manifest.metrics]
    return rows + [row.model_dump(exclude={"milliseconds_per_text"}) for row in manifest.baselines]


def hashes(bundle: Bundle) -> dict[str, str]:
    return {name: hashlib.sha256(bundle.path(name).read_bytes()).hexdigest() for name in REPRODUCED}


def done_earlier(printed: str) -> list[str]:
    return [stage for stage in STAGES if f"{stage}: done earlier" in printed]


def test_the_run_makes_a_bundle_that_verifies(single: Finished) -> None:
    manifest = single.bundle.manifest
    assert [variant.name for variant in manifest.variants] == ["int8", "fp32", "fp16"]
    assert all(variant.batch_invariant for variant in manifest.variants if variant.name != "fp16")
    assert [row.stage for row in manifest.metrics] == ["teacher", "student", "int8", "fp16"]
    assert manifest.lineage.data["test"].rows == 80
    teacher = (single.recipe.parent / "teacher/model.safetensors").read_bytes()
    assert manifest.lineage.models["teacher"]["model.safetensors"] == hashlib.sha256(teacher).hexdigest()
    for name in ("teacher/model/model.safetensors", "targets/logits.npy", "distill/model/model.safetensors"):
        found = hashlib.sha256((single.out / "work" / name).read_bytes()).hexdigest()
        assert manifest.lineage.files[name] == found
    assert "student" in single.printed
    assert "accuracy" in single.printed
    verified = limbeck("verify", single.out / "bundle")
    assert verified.returncode == 0, verified.stderr
    assert "golden, int8: 32 inputs hold" in verified.stdout


def test_the_card_and_inspect_show_what_the_manifest_says(single: Finished) -> None:
    card = (single.out / "bundle" / "README.md").read_text()
    shown = limbeck("inspect", single.out / "bundle").stdout
    assert f"report: {single.out / 'bundle' / 'report.html'}" in shown
    manifest = json.loads(limbeck("inspect", single.out / "bundle", "--json").stdout)
    assert manifest == json.loads((single.out / "bundle" / "manifest.json").read_text())
    for text in (card, shown):
        assert "negative" in text
        assert f"{100 * manifest['metrics'][2]['quality']['scores']['accuracy']['value']:.1f}" in text
    assert "bit by bit" in card
    assert "TF-IDF + logistic regression" in card
    assert manifest["lineage"]["library_versions"]["torch"] in shown


def test_nothing_runs_again_without_a_reason(single: Finished) -> None:
    before = (single.out / "bundle" / "manifest.json").stat().st_mtime_ns
    again = limbeck("compress", single.recipe, "--out", single.out)
    assert again.returncode == 0, again.stderr
    assert done_earlier(again.stdout) == list(STAGES)
    assert (single.out / "bundle" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "earlier"),
    [
        pytest.param("gate.min_slice_texts=3", STAGES[:5], marks=pytest.mark.slow),
        ("calibrate.temperature=false", STAGES[:4]),
        pytest.param("evaluate.golden_inputs=3", STAGES[:5], marks=pytest.mark.slow),
        ("version=2", STAGES[:8]),
        pytest.param("distill.checkpoint_seconds=3", STAGES[:8], marks=pytest.mark.slow),
    ],
)
def test_a_change_runs_what_reads_it_and_nothing_before(
    single: Finished, tmp_path: Path, override: str, earlier: tuple[str, ...]
) -> None:
    shutil.copytree(single.out, tmp_path / "out")
    again = limbeck("compress", single.recipe, "--out", tmp_path / "out", "--set", override)
    assert again.returncode == 0, again.stderr
    found = done_earlier(again.stdout)
    assert found[: len(earlier)] == list(earlier)
    assert "package" not in found
    if len(earlier) < 8:
        assert STAGES[len(earlier)] not in found


def test_a_lost_bundle_is_packed_again_with_the_same_files(single: Finished, tmp_path: Path) -> None:
    shutil.copytree(single.out, tmp_path / "out")
    (tmp_path / "out/bundle/model.int8.onnx").write_bytes(b"damaged")
    again = limbeck("compress", single.recipe, "--out", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert done_earlier(again.stdout) == list(STAGES[:8])
    assert hashes(open_bundle(tmp_path / "out/bundle")) == hashes(single.bundle)


def begun(out: Path, stage: str) -> bool:
    """Whether `stage` has begun and, in training, has a checkpoint."""
    folder = out / "work" / stage
    mark = folder / CHECKPOINTS[stage] / "checkpoint.pt" if stage in CHECKPOINTS else folder / "started.json"
    return mark.exists()


def stop_in(stage: str, number: signal.Signals, recipe: Path, out: Path) -> Result:
    """Start a run and send a signal as soon as `stage` has begun; again, should the stage have been quicker."""
    for _ in range(5):
        with started("compress", recipe, "--out", out, *OFTEN) as running:
            running.wait_until(lambda: begun(out, stage))
            running.send(number)
            result = running.result()
        if not (out / "work" / stage / "stage.json").exists():
            return result
        shutil.rmtree(out / "work" / stage)
    raise AssertionError(f"{stage} was always over before the signal")


def test_kill_9_in_every_stage_changes_nothing(single: Finished, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    stopped = [stop_in(stage, signal.SIGKILL, single.recipe, out) for stage in STAGES]
    assert {result.returncode for result in stopped} == {-signal.SIGKILL}
    assert "fine-tuning: resuming at step" in stopped[1].stdout
    last = limbeck("compress", single.recipe, "--out", out, *OFTEN)
    assert last.returncode == 0, last.stderr
    assert done_earlier(last.stdout) == list(STAGES[:8])
    found = open_bundle(out / "bundle")
    assert hashes(found) == hashes(single.bundle)
    assert quality(found) == quality(single.bundle)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert list(out.rglob("*.tmp")) == []


def test_ctrl_c_stops_cleanly_and_the_run_goes_on_from_there(single: Finished, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    for stage in ("teacher", "distill", "baselines", "evaluate"):
        stopped = stop_in(stage, signal.SIGINT, single.recipe, out)
        assert stopped.returncode == 130, stopped.stderr
        told = stopped.stderr.strip()
        assert told == "stopped; give the same command again to go on from the last checkpoint"
    last = limbeck("compress", single.recipe, "--out", out, *OFTEN)
    assert last.returncode == 0, last.stderr
    assert hashes(open_bundle(out / "bundle")) == hashes(single.bundle)


@pytest.mark.parametrize("lost", ["checkpoint.pt", "best"])
def test_a_kill_while_checkpoints_are_cleared_away_changes_nothing(single: Finished, tmp_path: Path, lost: str) -> None:
    """The stage is recorded before its checkpoints go, so whatever is left of them is ignored."""
    shutil.copytree(single.out, tmp_path / "out")
    left = tmp_path / "out/work/teacher/checkpoints"
    left.mkdir()
    (left / ("best-1.pt" if lost == "checkpoint.pt" else "checkpoint.pt")).write_bytes(b"half")
    result = limbeck("compress", single.recipe, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert done_earlier(result.stdout) == list(STAGES)
    assert not left.exists()


def test_a_folder_that_is_no_bundle_stops_the_run_before_it_trains(single: Finished, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "source.py").write_text("1")
    result = limbeck("compress", single.recipe, "--out", tmp_path)
    assert result.returncode == 1
    assert "holds files but no manifest.json" in result.stderr
    assert not (tmp_path / "work").exists()
    assert (tmp_path / "bundle" / "source.py").exists()


def test_two_runs_do_not_share_an_output_folder(single: Finished, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = limbeck("compress", single.recipe, "--out", tmp_path)
    assert result.returncode == 1
    assert "another run is writing there" in result.stderr


def test_a_run_without_baselines(single: Finished, tmp_path: Path) -> None:
    shutil.copytree(single.out / "work", tmp_path / "work")
    result = limbeck("compress", single.recipe, "--out", tmp_path, "--set", "evaluate.baselines=false")
    assert result.returncode == 0, result.stderr
    assert open_bundle(tmp_path / "bundle").manifest.baselines == ()
    assert "baselines" not in done_earlier(result.stdout)
    assert "worth" not in result.stdout


def marks_of_distill(single: Finished, folder: Path, *overrides: str) -> str:
    run = reopened(single, folder, ("teacher", "targets"), overrides)
    return fingerprint(stage_inputs.read_by_distill(run))


def test_the_rounding_is_read_by_training_only_where_it_is_aware_of_it(single: Finished, tmp_path: Path) -> None:
    aware, tables = "distill.quantization_aware_epochs=1", "quantize.embeddings=false"
    assert marks_of_distill(single, tmp_path / "1") == marks_of_distill(single, tmp_path / "2", tables)
    assert marks_of_distill(single, tmp_path / "3", aware) != marks_of_distill(single, tmp_path / "4", aware, tables)


def test_other_values_of_the_slices_are_measured_again(single: Finished, tmp_path: Path) -> None:
    marks = []
    for value in ("a", "b"):
        run = reopened(single, tmp_path / value, overrides=["data.columns.slice=label"])
        for example in run.splits.test:
            object.__setattr__(example, "slice", value)
        marks.append(fingerprint(stage_inputs.read_by_evaluate(run)))
    assert marks[0] != marks[1]
