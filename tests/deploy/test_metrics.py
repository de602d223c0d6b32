"""Every metric that an alert or the dashboard asks for is one that the service, its rules or the proxy has."""

import asyncio
import re

import pytest

from tests.deploy.queries import dashboard_queries, grouped_by, rules, selectors
from tests.service.helpers import running, settings_for
from tests.support.bundles import make_bundle

# Given by others: Prometheus itself, and HAProxy, whose own are checked by tests/docker/test_stack.py.
FROM_OTHERS = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate"},
    "haproxy_backend_active_servers": {"proxy"},
    "haproxy_backend_retry_warnings_total": {"proxy"},
    "haproxy_backend_redispatch_warnings_total": {"proxy"},
}
FROM_SCRAPING = {"job", "instance"}


async def given_by_the_service(tmp_path) -> dict[str, set[str]]:
    """Names of samples with their labels, from /metrics after a few requests of every kind."""
    async with running(settings_for(make_bundle(tmp_path / "tiny"))) as client:
        assert (await client.post("/v1/classify", json={"inputs": "a good movie"})).status_code == 200
        assert (await client.post("/v1/classify", json={"inputs": 1})).status_code == 422
        text = (await client.get("/metrics")).text
    names: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            names[name + suffix] = set()
    for name, labels in re.findall(r"^([a-z]\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        names[name] |= set(re.findall(r'(\w+)="', labels))
    return names


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    given = asyncio.run(given_by_the_service(tmp_path_factory.mktemp("metrics")))
    recorded = {rule["record"]: grouped_by(rule["expr"]) for rule in rules() if "record" in rule}
    return given | FROM_OTHERS | recorded


QUERIES = [rule["expr"] for rule in rules()] + dashboard_queries()


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_every_query_names_metrics_and_labels_that_exist(query: str, known: dict[str, set[str]]) -> None:
    asked = list(selectors(query))
    assert asked
    for name, labels in asked:
        assert name in known, query
        # a metric that has no samples yet shows no labels
        assert labels <= known[name] | FROM_SCRAPING or not known[name], query
    if all(known[name] for name, _ in asked):
        assert grouped_by(query) <= set().union(FROM_SCRAPING, *(known[name] for name, _ in asked)), query


def test_the_scanner_sees_what_is_asked_for() -> None:
    query = (
        'sum by (a, b) (rate(x_total{c="1",d!~"e"}[5m])) / on (a) group_left () y:z offset 5m > 0.5 and absent(up == 1)'
    )
    assert list(selectors(query)) == [("x_total", {"c", "d"}), ("y:z", set()), ("up", set())]
    assert grouped_by(query) == {"a", "b"}
