"""What every container of docker-compose.yml must have, read from the file."""

import re
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((TOP / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
JOBS = {"compress"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["restart"] == ("no" if name in JOBS else "unless-stopped")
    assert service["logging"]["options"]["max-size"]
    assert re.fullmatch(r"\$\{LIMBECK_\w+_?IMAGE:-[\w./:-]+\}|\$\{LIMBECK_IMAGE:-limbeck:cpu\}", service["image"])


@pytest.mark.parametrize("name", sorted(set(SERVICES) - JOBS))
def test_every_service_says_whether_it_is_healthy(name: str) -> None:
    service = SERVICES[name]
    in_image = "build" in service and "HEALTHCHECK" in (TOP / service["build"]["dockerfile"]).read_text(
        encoding="utf-8"
    )
    assert in_image or service["healthcheck"]["test"][0] == "CMD"


def test_whoever_depends_on_another_waits_until_it_is_healthy() -> None:
    conditions = [each["condition"] for service in SERVICES.values() for each in service.get("depends_on", {}).values()]
    assert len(conditions) >= 4
    assert set(conditions) == {"service_healthy"}


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_our_images_run_as_a_number_that_is_not_root(name: str) -> None:
    text = (TOP / SERVICES[name]["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert set(re.findall(r"^USER (.+)$", text, re.MULTILINE)) == {"10001:10001"}


def test_no_secret_stands_in_the_environment() -> None:
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", name) or name.endswith("_FILE"), name
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())


def test_only_the_front_door_listens_to_the_network() -> None:
    published = {name: [str(port) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    assert published["limbeck"] == [], "a fixed port keeps it from being scaled"
    open_to_all = {
        name for name, ports in published.items() if any(not port.startswith("127.0.0.1:") for port in ports)
    }
    assert open_to_all == {"proxy", "limbeck-gpu"}


def test_prometheus_scrapes_the_operators_port() -> None:
    port = SERVICES["limbeck"]["environment"]["LIMBECK_OPERATIONS_PORT"]
    assert port == SERVICES["limbeck-gpu"]["environment"]["LIMBECK_OPERATIONS_PORT"]
    assert port in SERVICES["limbeck"]["expose"]
    scraping = yaml.safe_load((TOP / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = [job for job in scraping["scrape_configs"] if job["job_name"] == "limbeck"]
    assert [str(found["port"]) for found in job["dns_sd_configs"]] == [port]


def test_the_documents_list_every_variable() -> None:
    variables = set(re.findall(r"\$\{(\w+)", (TOP / "docker-compose.yml").read_text(encoding="utf-8"))) - {"NAME"}
    document = (TOP / "docs" / "docker.md").read_text(encoding="utf-8")
    assert {name for name in variables if f"`{name}`" not in document} == set()
