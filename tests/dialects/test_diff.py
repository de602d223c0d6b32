"""`limbeck diff` against the service in every dialect: a bundle agrees with itself."""

from pathlib import Path

import pytest
from rich.console import Console

from bulk.classifier import Classifier
from bulk.dialects import Labels, dialect_of
from bulk.diff import Local, compare_file
from bulk.endpoint import Endpoint
from bulk.files import Job
from bulk.rows import TextColumns
from bulk.tag_dialects import TAG_DIALECTS
from bulk.tags import Tags
from bundle import Task, open_bundle
from tests.dialects.conftest import TEXTS, Served
from tests.support.rows import write_lines

PATHS = {
    "native": "/v1/models/{}",
    "tei": "/models/{}",
    "huggingface": "/models/{}",
    "openinference": "/v2/models/{}",
    "vllm": "/classify",
    "kserve": "/v1/models/{}:predict",
    "detectors": "/api/v1/text/contents",
}


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.PAIR])
def test_a_bundle_agrees_with_the_service_that_serves_it(
    served: Served, task: Task, dialect: str, tmp_path: Path
) -> None:
    """The same variant through HTTP and in the process: the same labels, and the same scores."""
    rows = [{"text": text, "text_pair": TEXTS[0]} for text in TEXTS * 5]
    data = write_lines(tmp_path / "traffic.jsonl", rows)
    with Classifier(served.bundles[task], variant="fp32") as own:
        manifest = own.manifest
        labels = Labels(manifest.labels, manifest.thresholds or {}, task is Task.MULTI_LABEL)
        url, model = served.url + PATHS[dialect].format(task.value), task.value if dialect == "detectors" else None
        assert dialect_of(PATHS[dialect].format(task.value)) == (dialect if dialect != "tei" else "huggingface")
        with Endpoint(url, dialect, labels, key_env=None, timeout_s=30, model=model) as there:
            if task is Task.PAIR and not there.dialect.pairs:
                pytest.skip(f"{dialect} takes single texts")
            if dialect == "vllm" and task is not Task.SINGLE_LABEL:
                pytest.skip("vLLM's request names no model in its path, and the default one is another")
            columns = TextColumns("text", "text_pair" if task is Task.PAIR else None)
            job = Job(data, "jsonl", None, None, columns, "", False, False)
            found = compare_file(there, Local(own), manifest, job, Console(quiet=True), worst=5, limit=None)
    assert found.bad_rows == 0
    assert found.comparison.texts == len(rows)
    assert found.comparison.agreed == len(rows), found.comparison.worst()
    assert found.comparison.largest_difference < 1e-5


@pytest.mark.parametrize("dialect", TAG_DIALECTS)
def test_a_bundle_finds_the_entities_that_the_service_finds(served: Served, dialect: str, tmp_path: Path) -> None:
    """Characters of two and more bytes among them, so that places are counted in characters."""
    task = Task.TOKEN_CLASSIFICATION
    texts = [text for given in TEXTS for text in (given, f"Größe 電影 🎬 {given}")]
    data = write_lines(tmp_path / "traffic.jsonl", [{"text": text} for text in texts])
    with Tags(open_bundle(served.bundles[task]), variant="fp32") as own:
        labels = Labels(own.manifest.labels, {}, multi_label=False)
        url, model = served.url + PATHS[dialect].format(task.value), task.value if dialect == "detectors" else None
        with Endpoint(url, dialect, labels, key_env=None, timeout_s=30, model=model, dialects=TAG_DIALECTS) as there:
            job = Job(data, "jsonl", None, None, TextColumns("text", None), "", False, False)
            found = compare_file(there, own, own.manifest, job, Console(quiet=True), worst=5, limit=None)
    counted = found.comparison
    assert found.bad_rows == 0
    assert sum(counted.given.values()) > len(texts) / 2
    assert counted.agreed == len(texts), counted.worst()
    assert not counted.flips
    assert counted.largest_difference < 1e-5
