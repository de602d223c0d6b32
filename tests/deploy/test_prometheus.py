"""The alert rules by Prometheus' own tool, and what must accompany each alert."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.queries import DEPLOY, RULES, dashboard_queries, rules

TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
ALERTS = sorted({rule["alert"] for rule in rules() if "alert" in rule})
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")


def tool(name: str, *arguments: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(
            f"no `{name}` on this machine; Debian has it in its packages prometheus and prometheus-alertmanager"
        )
    done = subprocess.run([name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    tool("promtool", "test", "rules", str(file))


def test_the_rules_are_valid() -> None:
    tool("promtool", "check", "rules", str(RULES))


def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    """Given to Prometheus' parser as recording rules, with Grafana's variables filled in."""
    filled = [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in dashboard_queries()]
    named = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(filled)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": named}]}))
    tool("promtool", "check", "rules", str(tmp_path / "queries.yml"))


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    (tmp_path / "prometheus.yml").write_text(configuration.replace("/etc/prometheus/rules", str(RULES.parent)))
    tool("promtool", "check", "config", str(tmp_path / "prometheus.yml"))


def test_the_alertmanagers_configuration_is_valid() -> None:
    tool("amtool", "check-config", str(DEPLOY / "alertmanager" / "alertmanager.yml"))


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_firing_and_silent(alert: str) -> None:
    cases = [
        case
        for file in TESTS
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert
    ]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_its_runbook(alert: str) -> None:
    for rule in rules():
        if rule.get("alert") == alert:
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{alert.lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")
    (entry,) = re.findall(rf"^### {alert}\n(.*?)(?=^##|\Z)", OPERATIONS, re.MULTILINE | re.DOTALL)
    for part in ("**Means.**", "**Look at.**", "**Do.**"):
        assert part in entry, part


def test_every_runbook_entry_has_its_alert() -> None:
    assert sorted(re.findall(r"^### (Limbeck\w+)$", OPERATIONS, re.MULTILINE)) == ALERTS
