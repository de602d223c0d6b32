"""A real Docker engine for tests: commands, images, and docker-compose.yml, each under a name of its own."""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

TOP = Path(__file__).parents[2]
COMPOSE_FILE = TOP / "docker-compose.yml"
PORTS_FILE = Path(__file__).with_name("ports.yml")
# No test measures time: this only keeps a hang from lasting for ever.
PATIENCE_S = 1200


def needs_disk(free_gb: int) -> None:
    """Skip where the engine's disk has not so much room: an image with CUDA's or torch's wheels fails half-way then."""
    root = docker("info", "--format", "{{.DockerRootDir}}", check=False).stdout.strip()
    if Path(root).is_dir() and (found_gb := shutil.disk_usage(root).free / 1e9) < free_gb:
        pytest.skip(f"the engine's disk has {found_gb:.0f} GB left, and the image needs {free_gb} GB while it is built")


def docker(*arguments: str, env: Mapping[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, env=env, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        pytest.fail(
            f"docker {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
        )
    return done


def skip_without_engine() -> None:
    """Skip where Docker tests cannot run, and say why."""
    if shutil.which("docker") is None:
        pytest.skip("no `docker` command on this machine")
    info = docker("info", "--format", "{{.ServerVersion}}", check=False)
    if info.returncode or not info.stdout.strip():
        pytest.skip(f"no Docker engine answers `docker info`: {info.stderr.strip()[-200:]}")
    if docker("compose", "version", check=False).returncode:
        pytest.skip("this Docker has no `docker compose`")


class Project:
    """docker-compose.yml under a name, ports and image names of its own; replicas get ports, too.

    `images` are values of the variables that name images, `LIMBECK_IMAGE` and so on.
    """

    def __init__(self, service: str, images: Mapping[str, str], bundles: Path, *overrides: Path) -> None:
        self.name = f"limbeck-test-{uuid.uuid4().hex[:12]}"
        self.service = service
        files = (COMPOSE_FILE, PORTS_FILE, *overrides)
        self._files = [argument for file in files for argument in ("-f", str(file))]
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("LIMBECK_", "COMPOSE_"))}
        # Port 0 lets Docker choose a free one.
        ports = dict.fromkeys(("", "TLS_", "GPU_", "PROMETHEUS_", "ALERTMANAGER_", "GRAFANA_"), "0")
        self._env = (
            ours
            | {f"LIMBECK_{whose}PORT": number for whose, number in ports.items()}
            | {"LIMBECK_BUNDLE_FOLDER": str(bundles), "LIMBECK_CPU_LIMIT": "1"}
            | images
        )

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        # An empty env file: a developer's own `.env` must not change what is tested.
        options = ["compose", "--env-file", os.devnull, "-p", self.name, *self._files]
        return docker(*options, *arguments, env=self._env, check=check)

    def up(self, *options: str) -> None:
        done = self.compose("up", "-d", "--wait", *options, self.service, check=False)
        if done.returncode:
            logs = self.compose("logs", "--no-color", check=False).stdout
            pytest.fail(f"the service did not become healthy:\n{done.stderr[-4000:]}\n{logs[-8000:]}")

    def logs(self) -> str:
        done = self.compose("logs", "--no-color", self.service, check=False)
        return done.stdout + done.stderr

    def inside(self, *command: str, check: bool = False) -> subprocess.CompletedProcess:
        return self.compose("exec", "-T", self.service, *command, check=check)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-aq", service).stdout.split()

    def inspect(self, field: str, container: str | None = None) -> object:
        container = container or self.containers(self.service)[0]
        return json.loads(docker("inspect", "--format", f"{{{{json .{field}}}}}", container).stdout)

    def url(self, service: str, port: int) -> str:
        published = self.compose("port", service, str(port)).stdout.rsplit(":", 1)[1].strip()
        return f"http://127.0.0.1:{published}"

    def client(self, service: str = "", port: int = 8000) -> httpx.Client:
        return httpx.Client(base_url=self.url(service or self.service, port), timeout=60, trust_env=False)

    def leftovers(self) -> str:
        label = f"label=com.docker.compose.project={self.name}"
        return "".join(
            docker(*listing, "-q", "--filter", label).stdout
            for listing in (("ps", "-a"), ("network", "ls"), ("volume", "ls"))
        )


@contextmanager
def project(service: str, images: Mapping[str, str], bundles: Path, *overrides: Path) -> Iterator[Project]:
    it = Project(service, images, bundles, *overrides)
    try:
        yield it
    finally:
        it.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
        left = it.leftovers()
    assert left == "", "`docker compose down` left something behind"


@contextmanager
def built(dockerfile: str, *options: str) -> Iterator[str]:
    """Build an image under a name of its own and remove it afterwards; the engine keeps its layer cache."""
    tag = f"limbeck-test:{uuid.uuid4().hex[:12]}"
    try:
        docker("build", "-f", str(TOP / "docker" / dockerfile), *options, "-t", tag, str(TOP))
        yield tag
    finally:
        docker("image", "rm", "--force", tag, check=False)
