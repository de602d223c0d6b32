"""Build the images and run them as docker-compose.yml says, with a real Docker engine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import LAYOUT, write_bundle
from tests.docker.engine import Project, built, docker, needs_disk, project
from tests.support.bundles import LABELS, make_bundle

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

UNWANTED = ("torch", "transformers", "optimum", "onnx", "pip", "sklearn", "pytest", "compress")


@pytest.fixture(scope="module")
def serving(cpu_image: str, bundles: Path) -> Iterator[Project]:
    with project("limbeck", {"LIMBECK_IMAGE": cpu_image}, bundles) as it:
        it.up()
        yield it


def assert_answers_as_recorded(serving: Project, bundle_folder: Path) -> None:
    """Every golden text gets its recorded scores over HTTP."""
    lines = (bundle_folder / LAYOUT.golden).read_text(encoding="utf-8").splitlines()
    golden = [json.loads(line) for line in lines]
    with serving.client() as client:
        assert client.get("/health/ready").status_code == 200
        answer = client.post("/v1/classify", json={"inputs": [line["text"] for line in golden]})
    assert answer.status_code == 200, answer.text
    for line, result in zip(golden, answer.json()["results"], strict=True):
        scores = {entry["label"]: entry["score"] for entry in result["labels"]}
        recorded = dict(zip(LABELS, line["scores"]["fp32"], strict=True))
        assert scores == pytest.approx(recorded, abs=1e-4)


def test_serves_a_bundle(serving: Project, bundles: Path):
    assert_answers_as_recorded(serving, bundles / "tiny")
    with serving.client() as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/metrics").status_code == 404
        pages = [client.get(path).status_code for path in ("/playground", "/playground/static/playground.js")]
    with serving.client(port=9000) as client:
        metrics = client.get("/metrics")
    assert pages == [200, 200]
    assert metrics.status_code == 200
    assert "limbeck_" in metrics.text


def test_a_bundle_can_be_mounted_by_itself(cpu_image: str, bundles: Path):
    with project("limbeck", {"LIMBECK_IMAGE": cpu_image}, bundles / "tiny") as serving:
        serving.up()
        assert_answers_as_recorded(serving, bundles / "tiny")


def test_the_image_has_at_most_600_mb(cpu_image: str):
    size_mb = int(docker("image", "inspect", "--format", "{{.Size}}", cpu_image).stdout) / 1e6
    print(f"\nthe image has {size_mb:.0f} MB")  # noqa: T201
    assert size_mb <= 600


def test_is_healthy_by_its_own_health_check(serving: Project):
    assert serving.inspect("State.Health.Status") == "healthy"
    assert "limbeck-healthcheck.py" in str(serving.inspect("Config.Healthcheck.Test"))


def test_the_health_check_fails_where_nothing_listens(serving: Project):
    elsewhere = serving.compose(
        "exec", "-T", "-e", "LIMBECK_PORT=9", "limbeck", "python", "/usr/local/bin/limbeck-healthcheck.py", check=False
    )
    assert elsewhere.returncode == 1
    assert len(elsewhere.stdout.splitlines()) == 1
    assert "Traceback" not in elsewhere.stderr


def test_runs_as_a_fixed_user_other_than_root(serving: Project):
    assert serving.inside("id", "-u", check=True).stdout.strip() == "10001"
    assert serving.inspect("Config.User") == "10001:10001"


def test_the_root_file_system_is_read_only_and_the_bundle_too(serving: Project):
    for path in ("/x", "/opt/limbeck/x", "/models/x", "/models/tiny/x"):
        attempt = serving.inside("python", "-c", f"open({path!r}, 'a')")
        assert attempt.returncode != 0, path
        assert "Read-only file system" in attempt.stderr, path
    serving.inside("python", "-c", "import tempfile; tempfile.TemporaryFile(dir='/tmp').write(b'x')", check=True)


def test_keeps_no_notes_and_reports_to_nobody(serving: Project):
    # ONNX Runtime's telemetry would leave an identifier and a database in $XDG_CACHE_HOME, $HOME/.cache or /tmp.
    (own,) = serving.inside("ls", "-A", "/tmp", check=True).stdout.split()
    assert own.startswith("limbeck-"), "where workers leave each other word of models to load"
    assert serving.inside("ls", "-A", f"/tmp/{own}", check=True).stdout.split() == []
    assert serving.inside("printenv", "ORT_DISABLE_TELEMETRY", check=True).stdout.strip() == "1"
    logs = serving.logs()
    assert "loaded tiny" in logs
    assert "telemetry" not in logs


def test_has_no_privileges_to_gain(serving: Project):
    status = serving.inside("cat", "/proc/1/status", check=True).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_holds_nothing_of_the_offline_half(serving: Project):
    found = f"import importlib.util as u; print([n for n in {UNWANTED!r} if u.find_spec(n)])"
    assert serving.inside("python", "-c", found, check=True).stdout.strip() == "[]"
    for module in ("torch", "transformers"):
        attempt = serving.inside("python", "-c", f"import {module}")
        assert "ModuleNotFoundError" in attempt.stderr


def test_sigterm_ends_it_cleanly(cpu_image: str, bundles: Path):
    with project("limbeck", {"LIMBECK_IMAGE": cpu_image}, bundles) as serving:
        serving.up()
        serving.compose("stop")
        assert serving.inspect("State.Status") == "exited"
        assert serving.inspect("State.ExitCode") == 0  # 137 would mean SIGKILL after the grace period
        logs = serving.logs()
        assert "loaded tiny" in logs
        assert "Traceback" not in logs


def test_a_corrupted_bundle_is_refused_in_one_line(cpu_image: str, tmp_path: Path):
    make_bundle(tmp_path / "tiny")
    model = tmp_path / "tiny" / LAYOUT.model("fp32")
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with project("limbeck", {"LIMBECK_IMAGE": cpu_image}, tmp_path / "tiny") as serving:
        # `run` starts what `up` would, but once: it does not restart what has failed.
        refused = serving.compose("run", "--rm", "-T", "limbeck", check=False)
        output = refused.stdout + refused.stderr
        assert refused.returncode not in (0, 137), output
        assert "Traceback" not in output
        assert len([line for line in output.splitlines() if "SHA-256" in line and LAYOUT.model("fp32") in line]) == 1


def test_a_missing_bundle_folder_is_an_error_and_is_not_made(cpu_image: str, tmp_path: Path):
    missing = tmp_path / "missing"
    with project("limbeck", {"LIMBECK_IMAGE": cpu_image}, missing) as serving:
        refused = serving.compose("up", "-d", "limbeck", check=False)
        assert refused.returncode != 0
        assert f"bind source path does not exist: {missing}" in refused.stderr
    assert not missing.exists()


def test_only_the_cpu_service_and_its_proxy_start_unasked(bundles: Path):
    it = Project("limbeck", {}, bundles)
    assert sorted(it.compose("config", "--services").stdout.split()) == ["limbeck", "proxy"]
    assert "limbeck-gpu" in it.compose("--profile", "gpu", "config", "--services").stdout.split()


def make_bundle_for_cuda(folder: Path) -> Path:
    """The tiny bundle with a variant that CUDA would be given first."""
    plain = make_bundle(folder.parent / "plain")
    variant = plain.manifest.variants[0].model_copy(
        update={"execution_providers": ("CUDAExecutionProvider", "CPUExecutionProvider")}
    )
    manifest = plain.manifest.model_copy(update={"variants": (variant,)})
    write_bundle(folder, manifest, {name: plain.path(name) for name in plain.manifest.files})
    return folder


@pytest.mark.slow
def test_the_gpu_image_serves_on_cpu_where_there_is_no_gpu(tmp_path: Path):
    bundle = make_bundle_for_cuda(tmp_path / "bundle")
    no_device = tmp_path / "no-device.yml"
    no_device.write_text("services:\n  limbeck-gpu:\n    deploy: !reset {}\n")
    needs_disk(25)
    with (
        built("Dockerfile.gpu") as image,
        project("limbeck-gpu", {"LIMBECK_GPU_IMAGE": image}, bundle, no_device) as serving,
    ):
        serving.up()
        assert_answers_as_recorded(serving, bundle)
        assert "variant fp32 on CPUExecutionProvider" in serving.logs()
        assert serving.inside("id", "-u", check=True).stdout.strip() == "10001"
        assert serving.inside("python", "-c", "import torch").returncode != 0
        provider = "/opt/limbeck/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
        linked = serving.inside("ldd", provider, check=True).stdout.splitlines()
        # All but the driver's own library, which comes from the host with the GPU.
        assert {line.split()[0] for line in linked if "not found" in line} <= {"libcuda.so.1"}
        for library in ("libcudnn.so.9", "libcufft.so.12", "libnvrtc.so.13"):  # opened by name while running
            serving.inside("python", "-c", f"import ctypes; ctypes.CDLL({library!r})", check=True)
