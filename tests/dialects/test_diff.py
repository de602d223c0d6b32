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
from bundle import Task
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
            found = compare_file(there, Local(own), own, job, Console(quiet=True), worst=5, limit=None)
    assert found.bad_rows == 0
    assert found.comparison.texts == len(rows)
    assert found.comparison.agreed == len(rows), found.comparison.worst()
    assert found.comparison.largest_difference < 1e-5
