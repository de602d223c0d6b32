import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.metrics import Metrics
from service.settings import Settings, describe_settings_error, usable_cpus

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LIMBECK_"):
            monkeypatch.delenv(name)


def problem(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    return describe_settings_error(caught.value)


@pytest.mark.parametrize("value", ["/a,/b", " /a , /b ,", '["/a", "/b"]'])
def test_bundles_are_a_json_list_or_separated_by_commas(monkeypatch, value):
    monkeypatch.setenv("LIMBECK_BUNDLES", value)
    assert Settings().bundles == (Path("/a"), Path("/b"))


def test_arguments_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("LIMBECK_PORT", "9999")
    monkeypatch.setenv("LIMBECK_BUNDLES", "/a")
    assert Settings().port == 9999
    assert Settings(port=7, bundles=[Path("/b")]).port == 7
    assert Settings(port=7, bundles=[Path("/b")]).bundles == (Path("/b"),)


def test_empty_variables_count_as_unset(monkeypatch):
    monkeypatch.setenv("LIMBECK_DEFAULT_MODEL", "")
    assert Settings(model_folder=Path("/m")).default_model is None


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({}, 8),
    ],
)
def test_usable_cpus_obey_the_containers_limit(tmp_path, monkeypatch, files, cpus):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"port": "abc"}, ["port (LIMBECK_PORT)", "valid integer", "'abc'"]),
        ({"port": 0}, ["port (LIMBECK_PORT)", "greater than or equal to 1", "found 0"]),
        ({"threads": 0}, ["LIMBECK_THREADS"]),
        ({"log_level": "loud"}, ["LIMBECK_LOG_LEVEL", "'debug'", "'loud'"]),
        ({"bundles": "[/a"}, ["LIMBECK_BUNDLES", "JSON list"]),
        ({"bunles": "/a"}, ["bunles: no such setting"]),
        ({"provider": "rocm"}, ["provider (LIMBECK_PROVIDER)", "'tensorrt'", "'rocm'"]),
        ({"provider": "cpu", "cuda_graphs": True}, ["cuda_graphs is on, but provider is cpu; expected cuda or auto"]),
        ({"tensorrt_cache": "/e"}, ["tensorrt_cache is set, but provider is auto; expected tensorrt"]),
        ({"max_inputs": 20, "queue_capacity": 10}, ["max_inputs is 20", "queue_capacity (10)"]),
    ],
)
def test_a_wrong_setting_gives_one_clear_line(values, parts):
    message = problem(**({"model_folder": "/m"} | values))
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_nothing_to_serve_says_what_to_set():
    assert problem() == ("settings: nothing to serve; name a bundle, or set LIMBECK_BUNDLES or LIMBECK_MODEL_FOLDER")


def test_log_levels_may_be_in_capitals():
    assert Settings(model_folder=Path("/m"), log_level="WARNING").log_level == "warning"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table after `heading` in the document."""
    lines = DOCUMENT.read_text(encoding="utf-8").partition(heading)[2].splitlines()
    table = []
    for line in lines:
        if line.startswith("| "):
            table.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif table and not line.startswith("|"):
            break
    return table[1:]


def test_the_document_and_the_settings_agree():
    documented = {row[0].strip("`"): row for row in rows("# Configuring the service")}
    assert list(documented) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        _, variable, default, _, meaning = documented[name]
        assert variable == f"`LIMBECK_{name.upper()}`"
        assert meaning == field.description
        if field.default_factory is None:
            assert default == ("none" if field.default in (None, ()) else f"`{field.default}`")


def test_every_setting_is_read_outside_its_definition():
    service = DOCUMENT.parents[1] / "service"
    source = "".join(path.read_text() for path in service.rglob("*.py") if path.name != "settings.py")
    for name in Settings.model_fields:
        assert re.search(rf"settings\.{name}\b", source), name


def test_the_document_and_the_metrics_agree():
    exposed = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in Metrics().registry.collect()
    }
    documented = {row[0].strip("`"): (row[1], row[3]) for row in rows("## Metrics")}
    assert documented == exposed


def test_the_document_lists_every_error():
    from service import errors

    def leaves(kind):
        return [leaf for child in kind.__subclasses__() for leaf in leaves(child)] or [kind]

    documented = {(row[0], row[1].strip("`")) for row in rows("## Status codes")}
    assert documented == {(str(kind.status), kind.code) for kind in leaves(errors.ServiceError)}
    for kind in leaves(errors.ServiceError):
        assert re.search(rf"{kind.__name__} +{kind.status} ", errors.__doc__)
