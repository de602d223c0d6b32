"""A whole run on a tiny model, through the command; and what `kill -9` leaves of it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bundle import Bundle, open_bundle
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad
from tests.support.models import write_tiny_recipe

LIMBECK = [sys.executable, "-m", "limbeck"]
STAGES = ["teacher", "distill", "export", "quantize", "evaluate", "package"]
# what a finished run must reproduce: everything that decides an answer
REPRODUCED = ["model.int8.onnx", "model.fp32.onnx", "tokenizer.json", "golden.jsonl"]
QUALITY = ("stage", "accuracy", "macro_f1", "per_class", "onnx_bytes", "agreement", "batch_invariance")


def limbeck(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LIMBECK, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240)


def quality(bundle: Bundle) -> list[dict]:
    return [{key: row.model_dump()[key] for key in QUALITY} for row in bundle.manifest.metrics]


def hashes(bundle: Bundle) -> dict[str, str]:
    return {name: hashlib.sha256(bundle.path(name).read_bytes()).hexdigest() for name in REPRODUCED}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A recipe, the folder of an uninterrupted run of it, and what that run printed."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_tiny_recipe(folder)
    result = limbeck("compress", recipe, "--out", folder / "out")
    assert result.returncode == 0, result.stderr + result.stdout
    return recipe, folder / "out", result.stdout


def test_the_run_makes_a_bundle_that_verifies(finished: tuple[Path, Path, str]) -> None:
    _, out, printed = finished
    bundle = open_bundle(out / "bundle")
    assert {variant.name for variant in bundle.manifest.variants} == {"int8", "fp32"}
    assert all(variant.batch_invariant for variant in bundle.manifest.variants)
    assert [row.stage for row in bundle.manifest.metrics] == ["teacher", "student", "int8"]
    assert bundle.manifest.lineage.data["test"].rows == 80
    assert "student" in printed
    assert "accuracy" in printed
    verified = limbeck("verify", out / "bundle")
    assert verified.returncode == 0, verified.stderr
    assert "golden, int8: 32 inputs hold" in verified.stdout


def test_the_recorded_accuracy_is_that_of_the_served_files(finished: tuple[Path, Path, str]) -> None:
    recipe, out, _ = finished
    bundle = open_bundle(out / "bundle")
    rows = [json.loads(line) for line in (recipe.parent / "data" / "test.jsonl").read_text().splitlines()]
    tokenizer = Tokenizer(bundle.path("tokenizer.json"), bundle.manifest.max_length)
    for variant, row in (("fp32", 1), ("int8", 2)):
        session = Session(bundle.path(f"model.{variant}.onnx"), labels=2)
        batch = pad(tokenizer.encode([r["text"] for r in rows]), tokenizer.pad_id)
        scores = activate(session.run(batch), bundle.manifest.activation)
        found = [bundle.manifest.labels[i] for i in scores.argmax(axis=1)]
        accuracy = np.mean([label == r["label"] for label, r in zip(found, rows, strict=True)])
        assert bundle.manifest.metrics[row].accuracy.value == pytest.approx(accuracy)


def test_the_card_and_inspect_show_what_the_manifest_says(finished: tuple[Path, Path, str]) -> None:
    _, out, _ = finished
    card = (out / "bundle" / "README.md").read_text()
    shown = limbeck("inspect", out / "bundle").stdout
    manifest = json.loads(limbeck("inspect", out / "bundle", "--json").stdout)
    assert manifest == json.loads((out / "bundle" / "manifest.json").read_text())
    for text in (card, shown):
        assert "negative" in text
        assert f"{100 * manifest['metrics'][2]['accuracy']['value']:.1f}" in text
    assert "bit by bit" in card
    assert manifest["lineage"]["library_versions"]["torch"] in shown


def test_nothing_runs_again_without_a_reason(finished: tuple[Path, Path, str]) -> None:
    recipe, out, _ = finished
    before = (out / "bundle" / "manifest.json").stat().st_mtime_ns
    again = limbeck("compress", recipe, "--out", out)
    assert again.returncode == 0, again.stderr
    assert [again.stdout.count(f"{stage}: done earlier") for stage in STAGES] == [1] * 6
    assert (out / "bundle" / "manifest.json").stat().st_mtime_ns == before


def test_a_lost_bundle_is_packed_again_with_the_same_files(finished: tuple[Path, Path, str]) -> None:
    recipe, out, _ = finished
    expected = hashes(open_bundle(out / "bundle"))
    (out / "bundle" / "model.int8.onnx").write_bytes(b"damaged")
    again = limbeck("compress", recipe, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "evaluate: done earlier" in again.stdout
    assert "package: done earlier" not in again.stdout
    assert hashes(open_bundle(out / "bundle")) == expected


def kill_in(stage: str, recipe: Path, out: Path) -> None:
    """Start a run and send SIGKILL as soon as `stage` has begun (and, in training, has a checkpoint)."""
    folder = out / "work" / stage
    begun = folder / "checkpoints" / "checkpoint.pt" if stage in ("teacher", "distill") else folder / "started.json"
    with subprocess.Popen([*LIMBECK, "compress", recipe, "--out", out], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not begun.exists():
            assert process.poll() is None, f"the run ended before {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "stage.json").exists(), f"{stage} was over before the kill"


def test_kill_9_in_every_stage_changes_nothing(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    recipe, reference, _ = finished
    out = tmp_path / "killed"
    for stage in STAGES:
        kill_in(stage, recipe, out)
    last = limbeck("compress", recipe, "--out", out)
    assert last.returncode == 0, last.stderr
    assert [last.stdout.count(f"{stage}: done earlier") for stage in STAGES] == [1, 1, 1, 1, 1, 0]
    expected, found = open_bundle(reference / "bundle"), open_bundle(out / "bundle")
    assert hashes(found) == hashes(expected)
    assert quality(found) == quality(expected)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("lost", ["checkpoint.pt", "best"])
def test_a_kill_while_checkpoints_are_cleared_away_changes_nothing(
    finished: tuple[Path, Path, str], tmp_path: Path, lost: str
) -> None:
    """The stage is recorded before its checkpoints go, so whatever is left of them is ignored."""
    recipe, reference, _ = finished
    shutil.copytree(reference, tmp_path / "out")
    left = tmp_path / "out/work/teacher/checkpoints"
    left.mkdir()
    (left / ("best-1.pt" if lost == "checkpoint.pt" else "checkpoint.pt")).write_bytes(b"half")
    result = limbeck("compress", recipe, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done earlier") == 6
    assert not left.exists()


def test_a_folder_that_is_no_bundle_stops_the_run_before_it_trains(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    recipe, _, _ = finished
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "source.py").write_text("1")
    result = limbeck("compress", recipe, "--out", tmp_path)
    assert result.returncode == 1
    assert "holds files but no manifest.json" in result.stderr
    assert not (tmp_path / "work").exists()
    assert (tmp_path / "bundle" / "source.py").exists()


def test_pairs_are_compressed_too(tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, task="pair")
    for path in (tmp_path / "data").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps(row | {"text": "the movie is", "text_pair": row["text"]}) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    result = limbeck("compress", recipe, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    bundle = open_bundle(tmp_path / "out/bundle")
    assert bundle.manifest.text_pair
    assert bundle.manifest.task == "pair"
    assert all(golden.text_pair for golden in bundle.golden())
    assert bundle.manifest.metrics[0].accuracy.value > 0.7  # the label is in the second text only
    assert limbeck("verify", bundle.folder).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distil.epochs=1"], "distil: unknown key; did you mean 'distill'?"),
        (["data.folder=nowhere"], "nowhere: no such folder"),
        (["teacher.model=package:not_there_at_all"], "is not installed"),
        (["data.max_length=200"], "takes at most 40 tokens"),
    ],
)
def test_what_a_user_can_mend_is_one_message_without_a_trace(
    finished: tuple[Path, Path, str], tmp_path: Path, overrides: list[str], message: str
) -> None:
    recipe, _, _ = finished
    options = [part for override in overrides for part in ("--set", override)]
    result = limbeck("compress", recipe, "--out", tmp_path / "out", *options)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_student_that_lost_too_much_is_not_shipped(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    """The student is not trained at all: the gate must hold it back and leave no bundle."""
    recipe, _, _ = finished
    options = [
        "--set",
        "gate.max_accuracy_drop=0.0",
        "--set",
        "distill.epochs=1",
        "--set",
        "distill.learning_rate=1e-9",
    ]
    result = limbeck("compress", recipe, "--out", tmp_path / "out", *options)
    assert result.returncode == 1
    assert "no variant passed the gate" in result.stderr
    assert "int8: accuracy 0." in result.stderr
    assert not (tmp_path / "out" / "bundle").exists()


def test_two_runs_do_not_share_an_output_folder(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    import fcntl

    recipe, out, _ = finished
    with (out / "work" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = limbeck("compress", recipe, "--out", out)
    assert result.returncode == 1
    assert "another run is writing there" in result.stderr
