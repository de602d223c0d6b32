"""The offline half as a job of docker-compose.yml, with a real Docker engine."""

import os
from pathlib import Path

import pytest

from bundle import open_bundle
from tests.docker.engine import TOP, built, project
from tests.support.models import write_tiny_recipe

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.usefixtures("engine")]


def test_compress_is_a_job_whose_bundle_the_service_serves(cpu_image: str, tmp_path: Path):
    if not list((TOP / "docker" / "wheels").glob("torch-*.whl")):
        pytest.skip("no torch wheel in docker/wheels (its README says how): without one the image would bring CUDA")
    tmp_path.chmod(0o755)
    recipe = write_tiny_recipe(tmp_path / "data", "single-label")
    for path in recipe.parent.rglob("*"):  # safetensors writes files that only their owner reads
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    user = {} if os.getuid() == 0 else {"LIMBECK_USER": f"{os.getuid()}:{os.getgid()}"}  # never root
    with built("Dockerfile.compress") as image:
        changes = user | {
            "LIMBECK_IMAGE": cpu_image,
            "LIMBECK_COMPRESS_IMAGE": image,
            "LIMBECK_DATA_FOLDER": str(recipe.parent),
            "LIMBECK_RUN_FOLDER": str(tmp_path / "run"),
            "LIMBECK_COMPRESS_MEMORY_LIMIT": "4g",
        }
        with project("limbeck", changes, tmp_path / "run" / "bundle") as it:
            it.compose("run", "--rm", "-T", "compress", recipe.name)
            assert open_bundle(tmp_path / "run" / "bundle").manifest.name
            it.up()
            with it.client() as client:
                answer = client.post("/v1/classify", json={"inputs": "a good movie"})
            assert answer.status_code == 200, answer.text
