"""The demo as a user runs it, whole: its figures, its server, and what a second run does."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from bundle import Bundle, open_bundle
from tests.end_to_end.test_real_weights import (
    ROOT,
    check_agreement,
    free_port,
    main_score,
    needs_weights,
    reviews,
    served,
)

pytestmark = [pytest.mark.slow, needs_weights]


def demo(folder: Path, port: int) -> str:
    result = subprocess.run(
        ["examples/movie-reviews/demo.sh"],
        cwd=folder,
        env={**os.environ, "LIMBECK_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) == "Z"


def check_explanations(bundle: Bundle, texts: list[str], count: int) -> None:
    """Without the words that an explanation puts first the score falls by far more than without as many others."""
    source = random.Random(13)
    falls = {"first": 0.0, "random": 0.0}
    with served(bundle.folder) as client:
        for text in texts:
            explained = client.post("/v1/explain", json={"inputs": text})
            assert explained.status_code == 200, explained.text
            found = explained.json()
            words = sorted(found["words"], key=lambda word: -word["effect"])
            assert "".join(word["text"] for word in found["words"]) == "".join(text.split())
            chosen = {"first": words[:count], "random": source.sample(words, count)}
            shorter = []
            for out in chosen.values():
                assert all(text[word["start"] : word["end"]] == word["text"] for word in out)
                blank = {place for word in out for place in range(word["start"], word["end"])}
                shorter.append("".join(" " if i in blank else character for i, character in enumerate(text)))
            results = client.post("/v1/classify", json={"inputs": shorter}).json()["results"]
            for name, result in zip(chosen, results, strict=True):
                scores = {one["label"]: one["score"] for one in result["labels"]}
                falls[name] += (found["score"] - scores[found["label"]]) / len(texts)
    assert falls["first"] > falls["random"] + 0.1


def test_the_demo_keeps_what_the_readme_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    port = free_port()
    pid_file = tmp_path / "runs/movie-reviews/server.pid"
    try:
        printed = demo(tmp_path, port)
        first = int(pid_file.read_text())
        assert '"label": "positive"' in printed
        assert "student" in printed

        bundle = open_bundle(tmp_path / "runs/movie-reviews/bundle")
        teacher, _, int8, _ = bundle.manifest.metrics
        assert main_score(teacher) >= 0.82
        assert main_score(int8) >= main_score(teacher) - 0.03
        assert int8.label_flips.value <= 0.02
        assert int8.onnx_bytes <= teacher.onnx_bytes / 4
        assert int8.batch_invariance is not None
        assert int8.batch_invariance.bit_equal
        assert all(variant.gate_passed for variant in bundle.manifest.variants)
        check_agreement(bundle, tmp_path / "runs/movie-reviews/work/distill/model", reviews())

        long = [row["text"] for row in reviews() if len(row["text"].split()) >= 8]
        check_explanations(bundle, long[:200], 3)

        again = demo(tmp_path, port)
        assert again.count("done earlier") == 9
        assert f"Stopping the demo's earlier server (process {first})" in again
        assert ended(first)
        assert int(pid_file.read_text()) != first
        assert httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
    finally:
        if pid_file.exists():
            last = int(pid_file.read_text())
            os.kill(last, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while not ended(last) and time.monotonic() < deadline:
                time.sleep(0.1)
