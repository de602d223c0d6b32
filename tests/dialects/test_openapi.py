"""The OpenAPI document tells the truth: schemathesis sends what it allows, and what it does not, to every route."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.dialects.conftest import Served

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# a deadline of a millisecond may well pass: 504, as documented
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
KNOWN = """
[parameters]
"path.model" = "{model}"
"path.version" = "1"
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", [None, "single-label", "token-classification"])
def test_no_route_does_what_it_does_not_say(served: Served, tmp_path: Path, model: str | None) -> None:
    """With invented models, and with ones that are there."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG + (KNOWN.format(model=model) if model else ""))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"{served.url}/openapi.json", "--checks", CHECKS, "--max-examples", "40", "--seed", "1", "--no-color"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_every_route_has_examples_that_work(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    components = document["components"]["schemas"]
    tried = 0
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if body is None:
            continue
        schema = components[body["schema"]["$ref"].rpartition("/")[2]] if "$ref" in body["schema"] else {}
        for example in schema.get("examples", [body.get("example")]):
            task = "token-classification" if "/tag" in path else "single-label"
            if "text_pair" in str(example):
                task = "pair"
            where = path.format(model=task, version="1") if "{model}" in path else path
            if where == path and task != "single-label":
                continue  # the default model is of another task
            example = {**example, **({"model": "single-label"} if example.get("model") else {})}
            response = client.post(where, json=example)
            assert response.status_code == 200, (where, example, response.text)
            tried += 1
    assert tried > 15
