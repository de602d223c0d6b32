"""Every task on real data: a slice of it from files to a verified bundle, its quality counted again by others."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bundle import Task, open_bundle
from compress.data import load_splits
from compress.recipe import Data
from compress.tasks import SPECS
from tests.end_to_end.test_real_weights import LIMBECK, WEIGHTS, main_score, needs_weights
from tests.support.reference import Served
from tests.support.rows import Row

DATA = os.environ.get("LIMBECK_TEST_DATA")
SEED = 13

# task -> folder of the data, rows of each split, what a sound run is above
REAL = {
    Task.SINGLE_LABEL: ("movie-reviews", 600, 0.65),  # a coin gives 0.50
    Task.MULTI_LABEL: ("entity-types", 2000, 0.70),  # all labels everywhere give about 0.50
    Task.PAIR: ("same-document", 1500, 0.62),  # a coin gives 0.50
    Task.TOKEN_CLASSIFICATION: ("conll2003", 2000, 0.60),  # chance gives about 0.02
}

pytestmark = [pytest.mark.slow, needs_weights]


def recipe_of(task: Task, folder: Path, limit: int) -> dict[str, Any]:
    return {
        "name": folder.name,
        "task": str(task),
        "seed": SEED,
        "data": {"folder": str(folder), "max_length": 64, "limit": limit},
        "teacher": {"model": f"package:{WEIGHTS}", "fine_tune": {"epochs": 2, "learning_rate": 2.0e-4}},
        "student": {"layers": 3},
        "distill": {"epochs": 4, "learning_rate": 3.0e-4},
        "quantize": {"candidates": ["per-token"]},
        "evaluate": {"latency_rounds": 3, "latency_texts": 64, "invariance_texts": 200, "baselines": False},
        "gate": {"max_quality_drop": 0.1},
    }


def as_row(example: Any) -> Row:
    target = example.target
    if example.words is not None:
        return {"tokens": list(example.words), "tags": list(target)}
    pair = {} if example.text_pair is None else {"text_pair": example.text_pair}
    return {
        "text": example.text,
        **pair,
        **({"labels": list(target)} if isinstance(target, tuple) else {"label": target}),
    }


@pytest.mark.parametrize("task", Task)
def test_a_slice_of_real_data_becomes_a_verified_bundle(task: Task, tmp_path: Path) -> None:
    name, limit, floor = REAL[task]
    if DATA is None or not (Path(DATA) / name).is_dir():
        pytest.skip(f"needs the data set {name} in the folder that LIMBECK_TEST_DATA names")
    folder = Path(DATA) / name
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe_of(task, folder, limit)))
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

    test = load_splits(Data(folder=folder, limit=limit), SEED, SPECS[task]).test
    counted = Served(bundle.folder, "int8").quality([as_row(example) for example in test])
    for metric, value in counted.items():
        assert int8.quality.scores[metric].value == pytest.approx(value), metric

    verified = subprocess.run([*LIMBECK, "verify", str(bundle.folder)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    assert "golden, int8: 32 inputs hold" in verified.stdout
