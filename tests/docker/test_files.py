"""What can be said of the Docker files without an engine."""

import difflib
from pathlib import Path

TOP = Path(__file__).parents[2]


def instructions(name: str) -> list[str]:
    """The lines of a Dockerfile that do something."""
    lines = (TOP / "docker" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_two_dockerfiles_differ_only_where_the_runtimes_do():
    difference = difflib.ndiff(instructions("Dockerfile"), instructions("Dockerfile.gpu"))
    changed = [line for line in difference if line[0] in "+-"]
    assert [(line[0], line[2:].split("=")[0].split()[-1]) for line in changed] == [
        ("-", "EXTRA"),
        ("+", "EXTRA"),
        ("-", "org.opencontainers.image.description"),
        ("+", "org.opencontainers.image.description"),
        ("+", "LD_LIBRARY_PATH"),
    ]


def test_no_dockerfile_needs_a_registry_beyond_its_base():
    files = sorted((TOP / "docker").glob("Dockerfile*[a-z]"))
    assert len(files) >= 6
    for file in files:
        if file.suffix == ".dockerignore":
            continue
        assert "# syntax=" not in file.read_text(encoding="utf-8")
        stages = [line.split() for line in instructions(file.name) if line.startswith("FROM ")]
        own = {stage[3] for stage in stages if len(stage) > 3}
        assert {stage[1] for stage in stages} - own <= {"python:3.11-slim-bookworm", "debian:bookworm-slim"}
