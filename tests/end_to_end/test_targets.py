"""Real weights pruned to a target on slices of real data: the target is met, and the model still knows its task."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from bundle import Task, open_bundle
from tests.end_to_end.test_four_tasks import DATA, REAL, recipe_of, write_slice
from tests.end_to_end.test_real_weights import LIMBECK, main_score, needs_weights
from tests.support.reference import Served
from tests.support.rows import read_lines

pytestmark = [pytest.mark.slow, needs_weights]

# The size target needs no clock: it must be met. A busy machine's clock need not agree with itself.
TARGETS = {
    Task.SINGLE_LABEL: ({"speedup": 12}, {"min_count": 1, "epochs": 0}),
    Task.TOKEN_CLASSIFICATION: ({"size_mb": 15}, None),
}


@pytest.mark.parametrize("task", TARGETS)
def test_a_target_is_reached_on_real_data(task: Task, tmp_path: Path) -> None:
    name, train, floor = REAL[task]
    if DATA is None or not (Path(DATA) / name).is_dir():
        pytest.skip(f"needs the data set {name} in the folder that LIMBECK_TEST_DATA names")
    write_slice(Path(DATA) / name, tmp_path / "data", train)
    target, vocabulary = TARGETS[task]
    changed = {
        "student": {"layers": 6},
        "target": target,
        "vocabulary": vocabulary,
        "prune": {"steps": 3, "texts": 128, "final_epochs": 3},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe_of(task) | changed))
    command = [*LIMBECK, "compress", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--force"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == 0, result.stderr + result.stdout

    bundle = open_bundle(tmp_path / "out/bundle")
    teacher, _, int8, _ = bundle.manifest.metrics
    outcome = bundle.manifest.target
    assert outcome is not None
    assert outcome.met or (outcome.reason is not None and "size_mb" not in target)
    assert main_score(teacher) > floor
    assert main_score(int8) > floor - 0.08
    assert int8.onnx_bytes < teacher.onnx_bytes / 5
    assert int8.batch_invariance is not None
    assert int8.batch_invariance.bit_equal

    counted = Served(bundle.folder, "int8").quality(read_lines(tmp_path / "data/test.jsonl"))
    for metric, value in counted.items():
        assert int8.quality.scores[metric].value == pytest.approx(value), metric
    verified = subprocess.run([*LIMBECK, "verify", str(bundle.folder)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
