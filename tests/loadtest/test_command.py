"""`limbeck loadtest` as a user meets it: what is printed where, the exit codes, and the files."""

import html.parser
import json
import math
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result as Invoked
from hdrh.histogram import HdrHistogram
from typer.testing import CliRunner

import limbeck as front_door
from loadtest.fleet import Step
from loadtest.outcome import Collector, Outcome
from loadtest.result import read_result
from tests.loadtest import slow_server as server
from tests.loadtest.slow_server import Behavior, slow_server
from tests.loadtest.test_generator import connections
from tests.loadtest.test_search import tick_of
from tests.support.command import started

ROOT = Path(__file__).parents[2]


class FormulaFleet:
    """In the place of the processes: a server with room for `room` requests a second, that answers after `base_s`."""

    room, base_s, most_sent, busy = 100.0, 0.02, 1e9, 0.9

    def __init__(self, settings: object, processes: int) -> None:
        self.size, self.began_s = processes, 0.0

    def __enter__(self) -> "FormulaFleet":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def grow(self, processes: int) -> None:
        self.size = processes

    def measure(self, step: Step, on_tick: object) -> Outcome:
        count = int(step.rate * step.seconds)
        late_s = 0.0 if step.rate <= self.room else 1.0
        lag_s = 0.0 if step.rate <= self.most_sent else 2.0
        draw = np.random.default_rng(step.seed)
        collector = Collector(step.seconds)
        for second in range(step.seconds):
            latencies = late_s + lag_s + self.base_s * draw.uniform(0.9, 1.1, count // step.seconds)
            tick = tick_of(latencies, lag_s=lag_s, second=second)
            tick.busy_s = self.busy
            collector.add(0, tick)
        return collector.outcome(step.rate, None, self.size)


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> type[FormulaFleet]:
    class Mine(FormulaFleet):
        pass

    monkeypatch.setattr("loadtest.run.Fleet", Mine)
    return Mine


@pytest.fixture
def port() -> Iterator[int]:
    with slow_server(Behavior()) as port:
        yield port


QUICK = ("--warm-up", "0", "--duration", "1")


def invoke(*arguments: object) -> Invoked:
    return CliRunner().invoke(front_door.app, ["loadtest", *map(str, arguments)])


def told(invoked: Invoked) -> str:
    return " ".join(invoked.stderr.replace("│", " ").split())


class Page(html.parser.HTMLParser):
    """What a browser would load; fails where something is closed that was not the last opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self.loads += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "data", "action")
        ]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def drawings(text: str) -> list[ET.Element]:
    return [ET.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>") for part in text.split("<svg")[1:]]


def test_a_run_with_its_files(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one <b>text</b>\nand another one\n", encoding="utf-8")
    with slow_server(Behavior([0.02], answers=[server.GOOD] * 9 + [server.BUSY])) as port:
        url = f"http://127.0.0.1:{port}"
        found = invoke(
            *(
                "run",
                url,
                "--rate",
                50,
                "--arrivals",
                "constant",
                "--duration",
                2,
                "--warm-up",
                "0.5",
                "--texts",
                texts,
            ),
            *("--json", tmp_path / "a.json", "--html", tmp_path / "a.html"),
        )
    assert found.exit_code == 0, found.stderr
    result = read_result(tmp_path / "a.json")
    (step,) = result.steps
    outcome = step.outcome
    assert (outcome.requests, outcome.errors, outcome.rate_asked) == (100, {"status 429": 10}, 50)
    assert HdrHistogram.decode(outcome.histogram).get_total_count() == outcome.samples == 90
    for part in (
        "asked /s",
        "achieved /s",
        "p99 [95 %]",
        "p99.9",
        "errors: 10 × status 429",
        "2 texts of 15 characters",
    ):
        assert part in found.stdout, part
    assert f"{tmp_path / 'a.html'}" in found.stderr
    assert "no metrics of Limbeck's there" in found.stderr
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    seen = Page(page)
    assert seen.loads == []
    assert "script" not in seen.tags
    assert "url(" not in page
    assert "@import" not in page
    assert len(drawings(page)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.html", "texts.txt"}


def test_a_search_with_capacity(formula: type[FormulaFleet], port: int, tmp_path: Path) -> None:
    found = invoke(
        *("run", f"http://127.0.0.1:{port}", "--find-max", "--slo", "p99<60ms", "--want-rate", 1000, "--batch", 2),
        *("--price-per-hour", 0.36, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html"),
    )
    assert found.exit_code == 0, found.stderr
    result = read_result(tmp_path / "a.json")
    assert 95 <= result.maximum.rate <= 100 < result.maximum.failed_rate <= 105
    assert result.capacity.replicas == math.ceil(1000 / result.maximum.rate)
    reasons = [str(step.verdict.reason) for step in result.steps]
    assert set(reasons) == {"held", "latency"}
    assert reasons[-1] == "held"
    assert all(step.outcome.samples >= 1000 for step in result.steps)  # ten beyond the 99th percentile
    assert result.steps[-1].outcome.seconds == 30
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert Page(page).loads == []
    for part in ("highest rate that held p99<60ms, twice", "replicas for 1000 requests/s", "price of a million texts"):
        assert part in found.stdout, part
        assert part.replace("<", "&lt;") in page, part
    assert len(drawings(page)) == 4
    assert found.stderr.count(" samples: ") == len(result.steps)
    assert "failed by latency: p99 1,0" in found.stderr


def test_a_search_that_ends_at_the_generator(formula: type[FormulaFleet], port: int, tmp_path: Path) -> None:
    formula.most_sent, formula.room = 70.0, 1e9
    run = ("run", f"http://127.0.0.1:{port}", "--find-max", "--slo", "p99<60ms", "--json", tmp_path / "a.json")
    found = invoke(*run, "--processes", 1)
    assert found.exit_code == 0, found.stderr
    assert "the load generator was the limit, so the server may hold more" in found.stdout
    assert "failed by generator: the load generator was the limit: 1 % of the requests left 2,0" in found.stderr
    assert "one more try" not in found.stderr
    result = read_result(tmp_path / "a.json")
    assert 66 < result.maximum.rate <= 70
    assert result.maximum.failed_rate is None


def test_more_processes_are_tried(
    formula: type[FormulaFleet], port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.run._cpus", lambda: 3)
    monkeypatch.setattr(formula, "most_sent", property(lambda self: 70.0 * self.size))
    run = ("run", f"http://127.0.0.1:{port}", "--find-max", "--slo", "p99<60ms", "--json", tmp_path / "a.json")
    found = invoke(*run)
    assert found.stderr.count("one more try with 2 processes") == 1
    result = read_result(tmp_path / "a.json")
    assert 95 <= result.maximum.rate <= 100
    assert not result.maximum.generator_limited
    # a process that had little to do was late for another reason
    formula.busy = 0.1
    assert "other programs have this machine's processors" in (idle := invoke(*run).stderr)
    assert "one more try" not in idle


def test_an_objective_that_is_missed_is_exit_code_3(formula: type[FormulaFleet], port: int) -> None:
    run = ("run", f"http://127.0.0.1:{port}", "--rate", 20, "--duration", 5)
    assert invoke(*run, "--slo", "p50<30ms").exit_code == 0
    missed = invoke(*run, "--slo", "p50<15ms")
    assert missed.exit_code == 3
    assert "failed by latency: p50 2" in missed.stdout
    formula.room = 0
    nothing = invoke("run", f"http://127.0.0.1:{port}", "--find-max", "--slo", "p99<60ms")
    assert nothing.exit_code == 3
    assert "no rate held p99<60ms" in nothing.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "both.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*make.split(), "-keyout", file, "-out", tmp_path / "a.pem"], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "a.pem").read_text())
    with slow_server(Behavior(certificate=file)) as port:
        run = ("run", f"https://localhost:{port}", "--rate", 50, *QUICK, "--arrivals", "constant")
        refused = invoke(*run)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "a.pem"))
        found = invoke(*run, "--json", tmp_path / "a.json")
    assert refused.exit_code == 1
    assert "certificate verify failed" in told(refused)
    assert found.exit_code == 0, found.stderr
    outcome = read_result(tmp_path / "a.json").steps[0].outcome
    assert (outcome.requests, outcome.errors) == (50, {})


def test_a_closed_loop_says_what_it_hides() -> None:
    with slow_server(Behavior([0.02])) as port:
        found = invoke("run", f"http://127.0.0.1:{port}", "--clients", 3, *QUICK)
    assert found.exit_code == 0, found.stderr
    assert "3 clients" in found.stdout
    assert "hide the stall" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["http://127.0.0.1:{port}"], 2, "give one of --rate"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--clients", "5"], 2, "give one of --rate"),
        (["http://127.0.0.1:{port}", "--rate", "0"], 2, "--rate: found 0, expected a number above 0"),
        (["http://127.0.0.1:{port}", "--rate", "nan"], 2, "--rate: found nan, expected a number above 0"),
        (["http://127.0.0.1:{port}", "--find-max"], 2, "--find-max needs an objective"),
        (["http://127.0.0.1:{port}", "--find-max", "--slo", "p99<1ms", "--clients", "2"], 2, "goes with no --clients"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--want-rate", "50"], 2, "go with --find-max"),
        (
            ["http://127.0.0.1:{port}", "--rate", "5", "--dialect", "soap"],
            2,
            "found 'soap', expected one of native, tei",
        ),
        (["http://127.0.0.1:{port}", "--rate", "5", "--arrivals", "bursty"], 2, "expected one of poisson, constant"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--json", "{folder}/no/a.json"], 2, "there is no folder"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--html", "{folder}"], 2, "is a folder"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--slo", "p99=50"], 1, "--slo: found 'p99=50', expected terms"),
        (["localhost:8000", "--rate", "5"], 1, "expected a URL such as http://localhost:8000"),
        (["http://127.0.0.1:99999", "--rate", "5"], 1, "expected a URL such as"),
        (["http://nobody.invalid", "--rate", "5"], 1, "the host nobody.invalid is not known"),
        (["http://127.0.0.1:1", "--rate", "5"], 1, "nobody answers there"),
        (["http://127.0.0.1:{port}", "--rate", "5"], 1, "answered with status 429: {{}}"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--dialect", "kserve"], 1, "say which with --model"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--texts", "{folder}/none.txt"], 1, "none.txt: No such file"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--texts", "{folder}/empty.txt"], 1, "found no texts"),
        (["http://127.0.0.1:{port}", "--rate", "5", "--api-key-file", "{folder}/empty.txt"], 1, "found no API key"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], code: int, problem: str) -> None:
    (tmp_path / "empty.txt").touch()
    with slow_server(Behavior(answers=[server.BUSY])) as port:
        found = invoke("run", *(argument.format(port=port, folder=tmp_path) for argument in arguments))
    assert found.exit_code == code, found.stderr
    assert problem.replace("{{}}", "{}") in told(found)
    assert found.stdout == ""
    if code == 1:
        assert len(found.stderr.strip().splitlines()) == 1


def test_a_server_that_speaks_something_else() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    with slow_server(Behavior(answers=[page])) as port:
        found = invoke("run", f"http://127.0.0.1:{port}", "--rate", 5)
    assert found.exit_code == 1
    assert "answered with no JSON: <html>; is it the right --dialect?" in told(found)


def test_the_document_names_every_option() -> None:
    document = (ROOT / "docs/load-testing.md").read_text(encoding="utf-8")
    group = typer.main.get_command(front_door.app).commands["loadtest"]
    options = [
        name
        for command in group.commands.values()
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    ]
    assert len(options) >= 20
    for name in options:
        assert f"`{name}" in document, name


def test_comparing(formula: type[FormulaFleet], port: int, tmp_path: Path) -> None:
    def result(name: str, base_s: float, rate: int = 80, seed: int = 0) -> Path:
        formula.base_s = base_s
        options = ("--rate", rate, "--duration", 20, "--seed", seed, "--json", tmp_path / name)
        assert invoke("run", f"http://127.0.0.1:{port}", *options).exit_code == 0
        return tmp_path / name

    def row(first: Path, second: Path, name: str) -> str:
        found = invoke("compare", first, second)
        assert found.exit_code == 0, found.stderr
        return next(line for line in found.stdout.splitlines() if line.startswith(name))

    first, again, slower = result("a", 0.03), result("b", 0.03, seed=1), result("c", 0.06)
    for name in ("answers", "p50", "p90", "p99", "errors"):
        assert "within noise" in row(first, again, name), name
    assert "+30" in row(first, slower, "p50")
    assert "higher" in row(first, slower, "p50")
    assert "lower" in row(slower, first, "p50")
    # a sample of 1,600 has no upper bound for the 99.9th percentile, so nothing is lower than it
    assert "within noise" in row(slower, first, "p99.9")
    other = invoke("compare", first, result("d", 0.03, rate=50))
    assert "the loads differ: 80 requests/s and 50 requests/s" in other.stdout


def test_comparing_maxima(formula: type[FormulaFleet], port: int, tmp_path: Path) -> None:
    def result(name: str, room: float) -> Path:
        formula.room = room
        run = ("run", f"http://127.0.0.1:{port}", "--find-max", "--slo", "p99<60ms", "--json", tmp_path / name)
        assert invoke(*run).exit_code == 0
        return tmp_path / name

    first, same, more = result("a", 100), result("b", 101), result("c", 300)
    assert "highest rate that held, /s" in invoke("compare", first, more).stdout
    (line,) = [one for one in invoke("compare", first, more).stdout.splitlines() if one.startswith("highest")]
    assert line.rstrip().endswith("higher")
    (line,) = [one for one in invoke("compare", first, same).stdout.splitlines() if one.startswith("highest")]
    assert line.rstrip().endswith("within noise")
    assert "100 requests/s" in invoke("compare", first, more).stdout  # the highest that both were asked and held


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "found no result of `limbeck loadtest run --json`"),
        ("no JSON", "found no result of"),
        ('{"format": 2}', "found no result of"),
    ],
)
def test_what_is_no_result(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(content)
    found = invoke("compare", tmp_path / "a.json", tmp_path / "a.json")
    assert found.exit_code == 1
    assert problem in told(found)
    absent = invoke("compare", tmp_path / "none.json", tmp_path / "a.json")
    assert (absent.exit_code, "No such file" in absent.stderr) == (1, True)


def test_a_result_of_another_format_is_refused(tmp_path: Path) -> None:
    with slow_server(Behavior()) as port:
        options = ("--rate", 20, *QUICK, "--json", tmp_path / "a.json")
        assert invoke("run", f"http://127.0.0.1:{port}", *options).exit_code == 0
    changed = json.loads((tmp_path / "a.json").read_text()) | {"format": 9}
    (tmp_path / "b.json").write_text(json.dumps(changed))
    found = invoke("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert found.exit_code == 1
    assert "b.json: found format 9, expected 1" in told(found)


def test_ctrl_c_ends_it_and_its_processes() -> None:
    with slow_server(Behavior()) as port:
        url = f"http://127.0.0.1:{port}"
        with started("loadtest", "run", url, "--rate", 50, "--duration", 600, "--warm-up", 0) as running:
            running.wait_until(lambda: connections(port) > 10)  # one each time it is looked at
            running.wait_until(lambda: children(running.process.pid) != set())
            workers = children(running.process.pid)
            running.send(signal.SIGINT)
            result = running.result()
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "stopped\n")
    # multiprocessing's own tracker is among them, which ends once it sees that all others have
    deadline = time.monotonic() + 60
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def children(pid: int) -> set[int]:
    return {int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()}
