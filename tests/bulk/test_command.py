"""`limbeck classify` as a user meets it: what is printed where, and the exit codes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import limbeck as front_door
from bulk import Classifier
from bundle import Bundle, Task
from tests.bulk.helpers import ROOT, command, multi_label_bundle, pair_bundle, run_limbeck, sentences
from tests.service.helpers import changed


def invoke(*arguments: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(front_door.app, ["classify", *map(str, arguments)], input=given)


def test_a_text_in_the_command(bundle: Bundle, tmp_path: Path) -> None:
    several, pairs = multi_label_bundle(bundle, tmp_path / "several"), pair_bundle(bundle, tmp_path / "pairs")
    with Classifier(bundle.folder) as classifier:
        (result,) = classifier.classify("a good movie")
    lines = [f"{label}\t{score!r}\n" for label, score in result.labels]
    assert invoke(bundle.folder, "--text", "a good movie").stdout == lines[0]
    assert invoke(bundle.folder, "--text", "a good movie", "--all-scores").stdout == "".join(lines)
    with Classifier(several.folder) as classifier:
        (result,) = classifier.classify("a good movie")
    found = invoke(several.folder, "--text", "a good movie").stdout.splitlines()
    assert tuple(line.split("\t")[0] for line in found) == result.predicted
    assert invoke(pairs.folder, "--text", "good", "--text-pair", "bad").exit_code == 0
    refused = invoke(pairs.folder, "--text", "good")
    assert refused.exit_code == 1
    assert "expected a pair" in refused.stderr


def test_standard_input_to_standard_output(bundle: Bundle) -> None:
    texts = sentences(50)
    with Classifier(bundle.folder) as classifier:
        expected = [result.labels[0] for result in classifier.classify(texts)]
    plain = invoke(bundle.folder, given="".join(f"{text}\n" for text in texts).encode())
    assert plain.exit_code == 0
    assert plain.stderr == ""
    assert plain.stdout_bytes.decode() == "".join(
        f"{label}\t{score!r}\t{text}\n" for (label, score), text in zip(expected, texts, strict=True)
    )
    rows = b'{"review": "a good movie"}\n{"text": "bad"}\n'
    found = invoke(bundle.folder, "-", "--format", "jsonl", "--text-column", "review", given=rows)
    assert found.exit_code == 4
    assert [*json.loads(found.stdout)] == ["review", "label", "score"]
    assert "standard input:2: no column 'review'; found text" in found.stderr
    assert "1 rows classified, 1 bad and left out" in found.stderr


def test_a_file_says_how_many_rows_and_where_they_are(bundle: Bundle, tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_text("text\ngood\nbad\n")
    result = invoke(bundle.folder, file, "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"2 rows classified → {out}\n"
    assert len(out.read_text().splitlines()) == 3


def test_the_document_names_every_option() -> None:
    document = (ROOT / "docs/bulk.md").read_text(encoding="utf-8")
    (classify,) = [c for c in typer.main.get_command(front_door.app).commands.values() if c.name == "classify"]
    options = [name for parameter in classify.params for name in parameter.opts if name.startswith("--")]
    assert len(options) >= 12
    for name in options:
        assert f"`{name}" in document, name


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["{file}", "--text", "good"], 2, "--text prints its answer"),
        (["--text-pair", "good"], 2, "--text-pair goes with --text"),
        (["{file}", "--format", "xml"], 2, "found 'xml', expected one of csv, tsv, jsonl, parquet, txt"),
        (["{folder}/in.doc"], 1, "found the ending '.doc'; expected one of csv, tsv, jsonl, parquet, txt"),
        (["a good movie"], 1, "a good movie: no such file; to classify a text that stands in the command, use --text"),
        (["--text", " "], 1, "found an empty text"),
        (["{file}", "--variant", "int4"], 1, "no variant 'int4'"),
    ],
)
def test_what_cannot_be_done_is_said(
    bundle: Bundle, tmp_path: Path, arguments: list[str], code: int, problem: str
) -> None:
    file = tmp_path / "in.csv"
    file.write_text("text\ngood\n")
    (tmp_path / "in.doc").write_text("good")
    result = invoke(bundle.folder, *(argument.format(file=file, folder=tmp_path) for argument in arguments))
    assert result.exit_code == code
    assert problem in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_a_folder_that_is_no_bundle_and_a_task_without_labels_of_texts(bundle: Bundle, tmp_path: Path) -> None:
    result = invoke(tmp_path, "--text", "good")
    assert result.exit_code == 1
    assert "no bundle, because there is no manifest.json in it" in result.stderr
    tags = changed(bundle, tmp_path / "tags", task=Task.TOKEN_CLASSIFICATION)
    result = invoke(tags.folder, "--text", "good")
    assert result.exit_code == 1
    assert "found task token-classification" in result.stderr


def test_nobody_reading_ends_it_quietly(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_text("\n".join(sentences(20000)), encoding="utf-8")
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        command(["classify", bundle.folder, file], ""), stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


def test_somebody_who_types_is_answered_line_by_line(bundle: Bundle) -> None:
    keyboard, terminal = os.openpty()
    typing = subprocess.Popen(
        command(["classify", bundle.folder], ""),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(terminal)
    with typing, os.fdopen(keyboard, "wb", buffering=0) as keys:
        for text in (b"a good movie", b"bad"):
            keys.write(text + b"\n")
            assert typing.stdout.readline().rstrip(b"\n").split(b"\t")[2] == text
        keys.write(b"\x04")  # Ctrl-D
        assert typing.wait(60) == 0
        assert typing.stderr.read() == b""


# of the process: what it has taken from the system at its most, in KiB
PEAK = """
import atexit, os, resource, sys
import bulk.run
classify_file = bulk.run.classify_file
def measured(*arguments):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return classify_file(*arguments)
    finally:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
bulk.run.classify_file = measured
"""


def test_memory_does_not_grow_with_the_file(bundle: Bundle, tmp_path: Path) -> None:
    """100 MB of rows, most of it in a column that is not classified, through less than half of that."""
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = sentences(100)
    with file.open("w", encoding="utf-8") as rows:
        for index in range(10_000):
            rows.write(json.dumps({"text": texts[index % 100], "more": "x" * 10_000}) + "\n")
    result = run_limbeck("classify", bundle.folder, file, "--out", out, setup=PEAK)
    assert result.returncode == 0, result.stderr
    (grown_kib,) = [line for line in result.stderr.splitlines() if line.isdigit()]
    grown_bytes = 1024 * int(grown_kib)
    assert grown_bytes < 0.45 * file.stat().st_size
    assert out.stat().st_size > file.stat().st_size
