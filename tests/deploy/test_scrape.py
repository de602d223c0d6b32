"""Debian's Prometheus scrapes a real service: what it says is what the client sent, and the dashboard has its data."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.asking import ask_prometheus, empty_panels, rate_beside_clients
from tests.deploy.queries import RULES, dashboard_queries, rules, selectors
from tests.deploy.test_metrics import FROM_OTHERS
from tests.service.test_server import free_port, process, wait_until_ready
from tests.support.steady_load import Load

RATE_PER_S, DURATION_S, WINDOW_S = 40, 60, 40


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes the service on port `target`, with our rules."""
    if shutil.which("prometheus") is None:
        pytest.skip("no `prometheus` on this machine; Debian has it in the package of that name")
    port = free_port()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "limbeck", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--log.level=error"]
    with (
        subprocess.Popen(["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]) as running,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        try:
            deadline_s = time.monotonic() + 60
            while not ready(client):
                assert running.poll() is None, "Prometheus ended"
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            yield client
        finally:
            running.terminate()


def ready(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/-/ready").status_code == 200
    return False


@pytest.mark.slow
def test_prometheus_sees_the_rate_that_the_client_sent(tiny_bundle, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(port, bundles=tiny_bundle.folder, workers=2) as service, prometheus(tmp_path, port) as client:
        wait_until_ready(service, url)
        load = Load(url, RATE_PER_S)
        asyncio.run(load.run(DURATION_S))
        assert load.summary() == {200: RATE_PER_S * DURATION_S}, [one for one in load.outcomes if one[1] != 200]
        end_s = load.outcomes[-1][0]
        assert rate_beside_clients(client, load, WINDOW_S) == pytest.approx(1, abs=0.01)

        loaded = {rule["name"] for group in ask_prometheus(client, "rules")["groups"] for rule in group["rules"]}
        assert loaded == {rule.get("alert") or rule["record"] for rule in rules()}
        known = set(ask_prometheus(client, "label/__name__/values")) | set(ask_prometheus(client, "metadata"))
        queries = dashboard_queries() + [rule["expr"] for rule in rules()]
        asked = {name for query in queries for name, _ in selectors(query) if name not in FROM_OTHERS}
        recorded = {rule["record"] for rule in rules() if "record" in rule}  # some of them only with enough data
        assert {name for name in asked - recorded if not {name, family(name)} & known} == set()
        assert empty_panels(client, end_s, "haproxy_") == []


def family(sample: str) -> str:
    return re.sub("_(bucket|sum|count)$", "", sample)
