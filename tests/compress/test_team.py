"""Two processes train as one does; and what is left when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bundle import open_bundle
from compress import launch
from tests.compress.test_pipeline import hashes
from tests.support.command import limbeck, started
from tests.support.pruned import write_pruned_recipe
from tests.support.runs import Finished
from tests.support.team_worker import run, together

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'limbeck[train]'")
OPTIONS = {
    "plain": {},
    "accumulated": {"micro_batch_size": 3},
    "adversarial": {"fgm_epsilon": 0.5},
    "beside": {"beside": True, "gradient_checkpointing": True},
}


def curve(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    """What TensorBoard itself reads: steps and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "events" / "training"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def result(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize(
    "options",
    [pytest.param(one, id=name, marks=[pytest.mark.slow] * (name != "accumulated")) for name, one in OPTIONS.items()],
)
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    """Without dropout, which each draws for itself; the steps add up in another order, so the last bits differ."""
    run(tmp_path / "one", dict(options), dropout=False)
    assert together(tmp_path / "two", 2, options, dropout=False) == [0, 0]
    alone, shared = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [step for step, _ in alone] == [step for step, _ in shared] == list(range(16))
    assert [value for _, value in shared] == pytest.approx([value for _, value in alone], rel=1e-3)
    weights, _ = result(tmp_path / "one")
    others, summary = result(tmp_path / "two")
    for name, tensor in weights.items():
        # the gradient of a key's bias is zero but for rounding, which Adam blows up to whole steps
        assert name.endswith("key.bias") or torch.allclose(tensor, others[name], atol=2e-4), name
    assert summary["epochs"] == 2
    # both processes end with the same weights, to the last bit
    second = torch.load(tmp_path / "two/result-1.pt", weights_only=True)
    assert all(torch.equal(others[name], second[name]) for name in others)
    assert not (tmp_path / "two/of-1").exists()


def test_what_tensorboard_reads(tmp_path: Path) -> None:
    run(tmp_path, {}, dropout=True)
    assert [step for step, _ in curve(tmp_path, "accuracy")] == [7, 15]
    rates = [value for _, value in curve(tmp_path, "learning_rate")]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 15, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 12])
def test_a_run_whose_second_process_dies_goes_on_to_the_same_weights(tmp_path: Path, steps: int) -> None:
    """Dropout is on, so both processes' random states are needed; the first one says what happened."""
    assert together(tmp_path / "whole", 2, {}, dropout=True) == [0, 0]
    codes = together(tmp_path / "killed", 2, {}, dropout=True, dies_at=steps)
    assert codes == [1, 9]
    told = (tmp_path / "killed/lost-0.txt").read_text()
    assert told == "another training process has ended; what was trained is kept: give the same command again to go on"
    assert not (tmp_path / "killed/result.pt").exists()
    assert together(tmp_path / "killed", 2, {}, dropout=True) == [0, 0]
    weights, _ = result(tmp_path / "whole")
    others, _ = result(tmp_path / "killed")
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    steps_told = [step for step, _ in curve(tmp_path / "killed")]
    assert steps_told == list(range(16))


def test_a_process_whose_first_share_is_empty_scales_as_the_others(tmp_path: Path) -> None:
    """A single text a step, and FP16's gradients are scaled."""
    options = {"precision": "fp16", "batch_size": 1, "epochs": 1, "checkpoint_seconds": 60}
    assert together(tmp_path, 2, options, dropout=False) == [0, 0]
    weights, _ = result(tmp_path)
    second = torch.load(tmp_path / "result-1.pt", weights_only=True)
    assert all(torch.equal(weights[name], second[name]) for name in weights)


def test_another_number_of_processes_goes_on_too(tmp_path: Path) -> None:
    assert together(tmp_path, 2, {}, dropout=True, dies_at=5) == [1, 9]
    run(tmp_path, {}, dropout=True)
    assert result(tmp_path)[1]["epochs"] == 2


def processes_of(running: Any) -> dict[str, psutil.Process]:
    """The training processes by their rank."""
    found = {}
    for child in psutil.Process(running.process.pid).children():
        try:
            found[child.environ().get("RANK", "")] = child
        except psutil.Error:
            continue
    return found


def often(recipe: Path, out: Path) -> tuple[object, ...]:
    options = [word for part in ("teacher.fine_tune", "distill") for word in ("--set", f"{part}.checkpoint_seconds=0")]
    return "compress", recipe, "--out", out, "--num-processes", 2, "--set", "evaluate.baselines=false", *options


@pytest.mark.slow
def test_a_whole_run_in_two_processes_and_one_that_loses_them(
    finished: Callable[[str], Finished], tmp_path: Path
) -> None:
    """Killed in each training: one message, no bundle, no process left; then the same files as an untouched run's."""
    recipe = finished("single-label").recipe
    whole = limbeck(*often(recipe, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("\nteacher\n") == 1  # one process talks
    out = tmp_path / "killed"
    for stage, rank in (("teacher/checkpoints", "1"), ("distill/checkpoints/float", "1"), ("distill", "0")):
        with started(*often(recipe, out)) as running:
            running.wait_until(lambda stage=stage: (out / "work" / stage).exists() and len(processes_of(running)) == 2)
            processes = processes_of(running)
            processes[rank].send_signal(signal.SIGKILL)
            killed = running.result()
        assert killed.returncode == (1 if rank == "1" else 137), killed.stderr
        assert killed.stderr.count("give the same command again") == 1, killed.stderr
        assert "Traceback" not in killed.stderr
        assert not any(process.is_running() for process in processes.values())
        assert not (out / "bundle").exists()
    done = limbeck(*often(recipe, out))
    assert done.returncode == 0, done.stderr
    assert "done earlier" in done.stdout
    assert hashes(open_bundle(out / "bundle")) == hashes(open_bundle(tmp_path / "whole/bundle"))
    assert not list((out / "work").glob(".process-*"))


@pytest.mark.slow
def test_a_student_is_pruned_by_two_processes_and_again_after_they_were_killed(tmp_path: Path) -> None:
    """In the training of fewer tokens, after the second cut, and in the last one, which feels the rounding."""
    recipe = write_pruned_recipe(tmp_path)
    options = [f"--set={part}" for part in ("distill.quantization_aware_epochs=1", "vocabulary.embedding_rank=16")]
    whole = limbeck(*often(recipe, tmp_path / "whole"), *options)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    for place in ("vocabulary/checkpoints/float", "prune/checkpoints/step-2/training", "prune/checkpoints/quantized"):
        with started(*often(recipe, out), *options) as running:
            running.wait_until(lambda place=place: (out / "work" / place / "checkpoint.pt").is_file())
            processes_of(running)["1"].send_signal(signal.SIGKILL)
            killed = running.result()
        assert killed.returncode == 1, killed.stdout + killed.stderr
        assert killed.stderr.count("give the same command again") == 1, killed.stderr
    done = limbeck(*often(recipe, out), *options)
    assert done.returncode == 0, done.stderr
    assert hashes(open_bundle(out / "bundle")) == hashes(open_bundle(tmp_path / "whole/bundle"))


SLEEPS, FAILS, DONE = "time.sleep(60)", "sys.exit(3)", "pass"


def killed_by(number: signal.Signals, after_s: float = 0.0) -> str:
    return f"time.sleep({after_s}); os.kill(os.getpid(), {number.value})"


@pytest.mark.parametrize(
    ("first", "second", "code", "told"),
    [
        (killed_by(signal.SIGKILL), SLEEPS, 137, "training process 0 ended with signal 9; the others were stopped"),
        (killed_by(signal.SIGABRT), SLEEPS, 134, "training process 0 ended with signal 6; the others were stopped"),
        # a library ends what has lost another
        (killed_by(signal.SIGABRT, 0.5), killed_by(signal.SIGKILL), 134, "training process 1 ended with signal 9; the"),
        (killed_by(signal.SIGKILL, 0.5), FAILS, 137, "training process 0 ended with signal 9; the others were stopped"),
        (killed_by(signal.SIGINT), SLEEPS, 130, ""),
        (FAILS, SLEEPS, 3, ""),  # which has said so itself
        (DONE, DONE, 0, ""),
    ],
)
def test_the_end_of_the_first_process_is_one_message(
    capsys: pytest.CaptureFixture[str], first: str, second: str, code: int, told: str
) -> None:
    prelude = "import os, signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    processes = [subprocess.Popen([sys.executable, "-S", "-c", prelude + body]) for body in (first, second)]
    try:
        with tempfile.TemporaryFile() as said:
            assert launch._wait(processes, said) == code
    finally:
        for process in processes:
            process.kill()
            process.wait()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(told)
    assert told in "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_one_that_started_them(
    finished: Callable[[str], Finished], tmp_path: Path, number: signal.Signals
) -> None:
    recipe, out = finished("single-label").recipe, tmp_path / "out"
    with started(*often(recipe, out)) as running:
        running.wait_until(lambda: (out / "work/teacher/checkpoints/checkpoint.pt").exists())
        processes = list(processes_of(running).values())
        assert len(processes) == 2
        running.send(number)
        result = running.result()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    if number is signal.SIGINT:
        assert result.returncode == 130
        assert result.stderr.strip() == "stopped; give the same command again to go on from the last checkpoint"


@pytest.mark.slow
def test_a_users_mistake_is_one_message_of_the_first(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    recipe = finished("single-label").recipe
    result = limbeck(*often(recipe, tmp_path / "out"), "--set", "student.layers=9")
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "student.layers: found 9, but the model has 2 layers" in lines[0]


@pytest.mark.slow
def test_accelerate_launch_does_the_same(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    recipe = finished("single-label").recipe
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "limbeck"]
    command += [str(word) for word in often(recipe, tmp_path / "out") if word not in ("--num-processes", 2)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    record = json.loads((tmp_path / "out/work/distill/stage.json").read_text())["report"]["summary"]
    assert record["validation_score"] > 0.8
