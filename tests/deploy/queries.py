"""What PromQL expressions ask for: names of metrics and labels, by a scanner that knows as much of it as ours use."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "limbeck.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "limbeck.json"

_KEYWORDS = {"and", "or", "unless", "offset", "bool"}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*+)\s*+(?:\{([^}]*)\})?+(?!\s*\()")


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each metric with the labels that it is filtered by."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    plain = re.sub(r"\[[^\]]*\]", " ", _GROUPING.sub(" ", plain))
    for name, matchers in _SELECTOR.findall(plain):
        if name not in _KEYWORDS:
            yield name, set(re.findall(r"(\w+)\s*[=!]", matchers))


def grouped_by(expression: str) -> set[str]:
    """Return the labels that the expression groups or matches by."""
    return {label for names in _GROUPING.findall(expression) for label in re.findall(r"\w+", names)}


def rules() -> list[dict]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        found.append(re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])[1])
    return found
