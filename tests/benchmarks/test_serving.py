import re
from pathlib import Path

import onnxruntime

from benchmarks.serving.catalog import LIMBECK, LIMBECK_WIRE, PEER_LIST
from benchmarks.serving.closed_loop import Measured
from benchmarks.serving.report import Outcome, Sample, Try, ratios, render, spread
from benchmarks.serving.server import explain
from benchmarks.serving.usage import Memory
from benchmarks.serving.venvs import PEERS


def sample(per_second: float, errors: int = 0) -> Sample:
    measured = Measured(per_second, 1.0, 2.0, int(per_second), errors)
    return Sample(measured, 0.5, Memory(100_000_000, 150_000_000))


def test_the_table_quotes_the_lowest_ratio_and_the_median() -> None:
    ours = Outcome(LIMBECK, "defaults", [], {32: [sample(900), sample(1000), sample(1100)]}, {0.5: [sample(500)]})
    theirs = Outcome("other", "2 workers", [], {32: [sample(500), sample(400), sample(200)]}, {0.5: [sample(300, 200)]})
    absent = Outcome("absent", None, [Try("2 workers", None, "no wheel")], {}, {})
    page = render([ours, theirs, absent], (0.5,), 32)
    line = next(line for line in page.splitlines() if line.startswith("| other | 2 workers |"))
    assert "400 [200–500]" in line
    assert "1.80× (2.50×)" in line
    assert "100 (150)" in line
    assert "200 (40.0%)" in page
    assert page.count("no wheel") == 2


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([sample(10), sample(30)], [sample(5), sample(0)]) == [2, float("inf")]
    assert spread([3.14159], 2) == "3.14"


def test_every_peer_pins_every_package() -> None:
    for peer in PEER_LIST:
        lines = (PEERS / peer.folder / "requirements.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+", line) for line in pins), peer.folder
        assert f"onnxruntime=={onnxruntime.__version__}" in pins, peer.folder
        assert len({setting.name for setting in peer.settings}) == len(peer.settings)


def test_readme_names_every_peer() -> None:
    readme = (Path(PEERS).parent / "README.md").read_text()
    assert all(f"`{peer.folder}`" in readme for peer in PEER_LIST)


def test_limbecks_answer_becomes_scores_by_label() -> None:
    answer = {"results": [{"labels": [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]}]}
    assert LIMBECK_WIRE.scores(answer, []) == [{"b": 0.75, "a": 0.25}]
    assert LIMBECK_WIRE.body(["t"]) == {"inputs": ["t"]}


def test_the_reason_is_the_last_exception_of_a_log() -> None:
    log = (
        "INFO: up\nTraceback (most recent call):\n  File x\nonnxruntime.capi.Fail: [ONNX] a | b\n\nERROR: Exiting.\n;\n"
    )
    assert explain(log) == "onnxruntime.capi.Fail: [ONNX] a / b"
    assert explain("starting\nport is taken\n\n") == "port is taken"
    assert explain("") == "its log is empty"
