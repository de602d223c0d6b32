"""Every task on real data: a slice of it from files to a verified bundle, its quality counted again by others.

Two of the students keep three layers, the other two are pruned to a target.
"""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bundle import Task, open_bundle
from tests.end_to_end.test_real_weights import LIMBECK, WEIGHTS, main_score, needs_weights
from tests.support.reference import Served
from tests.support.rows import read_lines, write_lines

DATA = os.environ.get("LIMBECK_TEST_DATA")

# task -> folder of the data, training rows, what a sound run is above
REAL = {
    Task.SINGLE_LABEL: ("movie-reviews", 800, 0.65),  # a coin gives 0.50
    Task.MULTI_LABEL: ("entity-types", 1600, 0.70),  # all labels everywhere give about 0.50
    Task.PAIR: ("same-document", 1600, 0.60),  # a coin gives 0.50
    Task.TOKEN_CLASSIFICATION: ("conll2003", 1600, 0.60),  # chance gives about 0.02
}
OTHERS = {"validation": 300, "test": 400}

# The size target needs no clock: it must be met. A busy machine's clock need not agree with itself, within reason.
TARGETS: dict[Task, dict[str, Any]] = {
    Task.SINGLE_LABEL: {"target": {"speedup": 12}, "vocabulary": {"min_count": 1, "epochs": 0}},
    Task.TOKEN_CLASSIFICATION: {"target": {"size_mb": 15}},
}
PRUNED = {
    "student": {"layers": 6},
    "prune": {"steps": 3, "texts": 128, "final_epochs": 3},
    "gate": {"max_quality_drop": 0.2},
}

pytestmark = [pytest.mark.slow, needs_weights]


def write_slice(source: Path, target: Path, train: int) -> None:
    target.mkdir()
    for split, count in ({"train": train} | OTHERS).items():
        rows = read_lines(source / f"{split}.jsonl")
        write_lines(target / f"{split}.jsonl", random.Random(13).sample(rows, min(count, len(rows))))


def recipe_of(task: Task) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "name": "slice",
        "task": str(task),
        "data": {"folder": "data", "max_length": 64},
        "teacher": {"model": f"package:{WEIGHTS}", "fine_tune": {"epochs": 2, "learning_rate": 2.0e-4}},
        "student": {"layers": 3},
        "distill": {"epochs": 3, "learning_rate": 3.0e-4},
        "quantize": {"candidates": ["per-token"]},
        "evaluate": {"latency_rounds": 3, "latency_texts": 32, "invariance_texts": 200, "baselines": False},
        "gate": {"max_quality_drop": 0.15},
    }
    return recipe | PRUNED | TARGETS[task] if task in TARGETS else recipe


@pytest.mark.parametrize("task", Task)
def test_a_slice_of_real_data_becomes_a_verified_bundle(task: Task, tmp_path: Path) -> None:
    name, train, floor = REAL[task]
    if DATA is None or not (Path(DATA) / name).is_dir():
        pytest.skip(f"needs the data set {name} in the folder that LIMBECK_TEST_DATA names")
    write_slice(Path(DATA) / name, tmp_path / "data", train)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe_of(task)))
    command = [*LIMBECK, "compress", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout

    bundle = open_bundle(tmp_path / "out/bundle")
    teacher, student, int8, _ = bundle.manifest.metrics
    assert main_score(teacher) > floor
    assert main_score(int8) > floor - 0.05
    assert int8.label_flips.value <= 0.02
    assert int8.batch_invariance is not None
    assert int8.batch_invariance.bit_equal
    assert int8.onnx_bytes < student.onnx_bytes / 3
    if task in TARGETS:
        outcome = bundle.manifest.target
        assert outcome is not None
        assert outcome.met or (outcome.kind == "speedup" and outcome.wanted / 2 < outcome.reached < outcome.wanted * 2)
        assert int8.onnx_bytes < teacher.onnx_bytes / 5

    counted = Served(bundle.folder, "int8").quality(read_lines(tmp_path / "data/test.jsonl"))
    for metric, value in counted.items():
        assert int8.quality.scores[metric].value == pytest.approx(value), metric

    verified = subprocess.run([*LIMBECK, "verify", str(bundle.folder)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    assert "golden, int8: 32 inputs hold" in verified.stdout
