"""The stack of docker-compose.yml under load: replicas behind the proxy, and what Prometheus sees of them."""

import asyncio
import hashlib
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.asking import ask_prometheus, empty_panels, rate_beside_clients
from tests.deploy.queries import rules
from tests.deploy.test_metrics import FROM_OTHERS
from tests.docker.engine import Project, built, docker, project
from tests.service.helpers import changed
from tests.support.bundles import make_bundle
from tests.support.steady_load import CLASSIFY, Load

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]


@pytest.fixture(scope="module")
def proxy_image(engine: None) -> Iterator[str]:
    with built("Dockerfile.proxy") as tag:
        yield tag


@pytest.fixture(scope="module")
def stack(cpu_image: str, proxy_image: str, bundles: Path) -> Iterator[Project]:
    with project("proxy", {"LIMBECK_IMAGE": cpu_image, "LIMBECK_PROXY_IMAGE": proxy_image}, bundles) as it:
        it.up("--scale", "limbeck=3")
        yield it


def answered(container: str) -> float:
    """Return how many classify requests a replica has answered with 200, by its own metrics."""
    code = "import urllib.request as u; print(u.urlopen('http://localhost:9000/metrics').read().decode())"
    text = docker("exec", container, "python", "-c", code).stdout
    lines = [line for line in text.splitlines() if line.startswith("limbeck_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines if '"/v1/classify"' in line and 'status="200"' in line)


def crash(stack: Project, container: str, image: str) -> None:
    """Kill a replica's first process from the engine's side, as the kernel does when memory is out.

    `docker kill` would count as a wish of the operator, and a process cannot kill the first one of its own container.
    """
    pid = stack.inspect("State.Pid", container)
    options = ["--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "python"]
    docker("run", *options, image, "-c", f"import os; os.kill({pid}, 9)")


def test_no_request_is_lost_when_replicas_die_or_leave(stack: Project, cpu_image: str):
    replicas = stack.containers("limbeck")
    assert len(replicas) == 3
    load = Load(stack.url("proxy", 8080), rate_per_s=60)

    async def scenario() -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(load.run(25))
            await asyncio.sleep(5)
            shares = [await asyncio.to_thread(answered, replica) for replica in replicas]
            assert min(shares) > 0.2 * sum(shares), "the proxy does not spread requests"
            await asyncio.to_thread(crash, stack, replicas[0], cpu_image)
            await asyncio.sleep(5)
            await asyncio.to_thread(docker, "stop", "--time", "30", replicas[1])

    asyncio.run(scenario())
    assert len(load.outcomes) == 25 * 60
    assert load.summary() == {200: 25 * 60}, [outcome for outcome in load.outcomes if outcome[1] != 200][:5]
    assert stack.inspect("State.ExitCode", replicas[1]) == 0
    stack.up("--scale", "limbeck=3")  # what died came back by itself, what was stopped is started again
    assert stack.inspect("RestartCount", replicas[0]) == 1
    assert [stack.inspect("State.Health.Status", replica) for replica in replicas] == ["healthy"] * 3


def write_keys(folder: Path, keys: dict[str, str]) -> None:
    """Replace the file of keys as a whole, as an operator's tool does."""
    entries = (
        f'[[keys]]\nid = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
        for name, key in keys.items()
    )
    (folder / ".new").write_text("".join(entries))
    (folder / ".new").chmod(0o644)
    (folder / ".new").replace(folder / "keys.toml")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.1)


def test_no_request_is_lost_when_the_model_and_the_keys_change(cpu_image: str, proxy_image: str, tmp_path: Path):
    """Three replicas under load: a new version is moved into their folder, then one key goes and another comes."""
    first = make_bundle(tmp_path / "models" / "tiny-1")
    second = make_bundle(tmp_path / "made" / "seed-1", seed=1)
    second = changed(second, tmp_path / "made" / "tiny-2", version="2")
    (tmp_path / "keys").mkdir()
    for folder in (tmp_path, tmp_path / "models", tmp_path / "keys", first.folder, second.folder):
        folder.chmod(0o755)
    keys = {name: f"lk_{name}-0123456789" for name in ("stays", "goes")}
    write_keys(tmp_path / "keys", keys)
    settings = {
        "LIMBECK_IMAGE": cpu_image,
        "LIMBECK_PROXY_IMAGE": proxy_image,
        "LIMBECK_KEYS_FILE": "/keys/keys.toml",
        "LIMBECK_KEYS_FOLDER": str(tmp_path / "keys"),
        "LIMBECK_WATCH_MODELS_S": "1",
    }
    with project("proxy", settings, tmp_path / "models") as stack:
        stack.up("--scale", "limbeck=3")
        url = stack.url("proxy", 8080)
        stays, goes, comes = (Load(url, 30, key=f"lk_{name}-0123456789") for name in ("stays", "goes", "comes"))

        async def scenario() -> tuple[int, int]:
            async with asyncio.TaskGroup() as loads:
                for load in (stays, goes, comes):
                    loads.create_task(load.run(300))
                await until(lambda: len(stays.versions) > 100)
                assert set(stays.versions) == {"1"}
                second.folder.rename(tmp_path / "models" / "tiny-2")
                await until(lambda: set(stays.versions[-150:]) == {"2"})
                swapped = len(stays.versions)
                assert set(goes.statuses()) == {200}
                assert set(comes.statuses()) == {401}
                write_keys(tmp_path / "keys", {"stays": keys["stays"], "comes": comes.key})
                await until(lambda: set(goes.statuses()[-60:]) == {401} and set(comes.statuses()[-60:]) == {200})
                revoked = len(goes.outcomes)
                await until(lambda: len(goes.outcomes) > revoked + 60)
                for load in (stays, goes, comes):
                    load.ended = True
            return swapped, revoked

        swapped, revoked = asyncio.run(scenario())
        assert set(stays.statuses()) == {200}, [outcome for outcome in stays.outcomes if outcome[1] != 200][:5]
        assert set(stays.versions[swapped:]) == {"2"}
        assert set(goes.statuses()) == set(comes.statuses()) == {200, 401}
        assert set(goes.statuses(revoked)) == {401}
        assert "lk_" not in stack.logs(), "a key is in the log"


def test_the_proxy_refuses_what_is_too_large_and_what_is_not_for_clients(stack: Project):
    with stack.client("proxy", 8080) as client:
        large = client.post("/v1/classify", content=b" " * 1_048_577, headers={"content-type": "application/json"})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        for path in ("/metrics", "/v1/admin/models", "/v2/repository/models/tiny/unload"):
            hidden = client.get(path)
            assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "not_found")
        wrong = client.post("/v1/classify", json={"inputs": 1})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "invalid_input")
        assert client.get("/health/ready").status_code == 200


def test_the_proxys_container_is_confined_like_the_services(stack: Project):
    status = stack.inside("cat", "/proc/1/status", check=True).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert stack.inside("id", "-u", check=True).stdout.strip() == "10001"
    assert "Read-only file system" in stack.inside("touch", "/etc/haproxy/x").stderr


def test_without_a_replica_the_answer_is_a_503_that_says_when_to_come_again(stack: Project):
    stack.compose("stop", "limbeck")
    with stack.client("proxy", 8080) as client:
        answer = client.post("/v1/classify", json=CLASSIFY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) > 0
    stack.up("--scale", "limbeck=3")
    with stack.client("proxy", 8080) as client:
        assert client.post("/v1/classify", json=CLASSIFY).status_code == 200


def test_speaks_tls_when_a_certificate_is_mounted(cpu_image: str, proxy_image: str, bundles: Path, tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("no `openssl` on this machine to make a certificate with")
    tmp_path.chmod(0o755)
    chain, key = tmp_path / "chain", tmp_path / "key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*make, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    (tmp_path / "tls.pem").write_bytes(chain.read_bytes() + key.read_bytes())
    (tmp_path / "tls.pem").chmod(0o644)  # the proxy's user must read it
    images = {"LIMBECK_IMAGE": cpu_image, "LIMBECK_PROXY_IMAGE": proxy_image}
    with project("proxy", images | {"LIMBECK_CERTIFICATE_FOLDER": str(tmp_path)}, bundles) as secure:
        secure.up()
        url = secure.url("proxy", 8443).replace("http://", "https://")
        trust = ssl.create_default_context(cafile=str(chain))
        with httpx.Client(verify=trust, trust_env=False, timeout=60) as client:
            assert client.post(f"{url}/v1/classify", json=CLASSIFY).status_code == 200


def test_prometheus_sees_the_rate_that_the_client_sent(cpu_image: str, proxy_image: str, bundles: Path):
    rate_per_s, duration_s, window_s = 40, 60, 40
    images = {"LIMBECK_IMAGE": cpu_image, "LIMBECK_PROXY_IMAGE": proxy_image}
    with (
        built("Dockerfile.prometheus", "--target", "prometheus") as prometheus,
        built("Dockerfile.prometheus", "--target", "alertmanager") as alertmanager,
        project(
            "prometheus",
            images | {"LIMBECK_PROMETHEUS_IMAGE": prometheus, "LIMBECK_ALERTMANAGER_IMAGE": alertmanager},
            bundles,
        ) as it,
    ):
        it.compose("--profile", "observability", "up", "-d", "--wait", "--scale", "limbeck=2", "proxy", "prometheus")
        with it.client("prometheus", 9090) as client:
            load = Load(it.url("proxy", 8080), rate_per_s)
            asyncio.run(load.run(duration_s))
            assert load.summary() == {200: rate_per_s * duration_s}
            end_s = load.outcomes[-1][0]
            assert rate_beside_clients(client, load, window_s) == pytest.approx(1, abs=0.01)

            loaded = {r["name"] for g in ask_prometheus(client, "rules")["groups"] for r in g["rules"]}
            assert loaded == {rule.get("alert") or rule["record"] for rule in rules()}
            targets = ask_prometheus(client, "targets", state="active")["activeTargets"]
            healthy = Counter(t["labels"]["job"] for t in targets if t["health"] == "up")
            assert healthy == {"limbeck": 2, "limbeck-proxy": 1, "prometheus": 1}
            known = set(ask_prometheus(client, "label/__name__/values"))
            assert {name for name in FROM_OTHERS if name.startswith("haproxy_")} <= known
            assert ask_prometheus(client, "alertmanagers")["activeAlertmanagers"]

            assert empty_panels(client, end_s) == []
