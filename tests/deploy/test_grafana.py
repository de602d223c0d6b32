"""What Grafana would find when it starts, as far as that can be said without Grafana."""

import json

import yaml

from tests.deploy.queries import DASHBOARD, DEPLOY

PROVISIONING = DEPLOY / "grafana" / "provisioning"
COMPOSE = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text(encoding="utf-8"))


def test_the_dashboard_uses_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    used = {
        part["datasource"]["uid"]
        for panel in dashboard["panels"]
        if panel["type"] != "row"
        for part in (panel, *panel["targets"])
    }
    assert used == {source["uid"]}
    assert source["type"] == "prometheus"


def test_files_lie_where_the_containers_look_for_them() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "limbeck.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert (DEPLOY.parent / mounts[provider["options"]["path"]] / DASHBOARD.name).resolve() == DASHBOARD
    assert (DEPLOY.parent / mounts["/etc/grafana/provisioning"]).resolve() == PROVISIONING
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


def test_panels_have_names_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
