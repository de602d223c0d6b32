"""A run that ends early, however it does, is gone on with: no row is lost and none is done twice."""

import contextlib
import csv
import gzip
import io
import json
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bulk import Classifier
from bulk.errors import OutputError, ResumeError
from bulk.files import Job
from bulk.output import Output
from bulk.run import classify_file
from bulk.spool import Spool
from bundle import Bundle
from tests.bulk.helpers import job, run_limbeck, sentences, start_limbeck
from tests.service.helpers import changed

ROWS = 1200
TEXTS = sentences(ROWS)
BAD = {100, 101, 777}
GOOD = [index for index in range(ROWS) if index not in BAD]
DEATHS = {"csv": (4, 23, 47, 60), "jsonl.gz": (38, 71), "parquet": (57, 90)}
"""Before which call that changes the disk a run dies, and then the one that goes on, and so on."""

# windows and checkpoints so small that a short file has many
SMALL = """
import bulk.inputs, bulk.output
bulk.inputs._WINDOW_ROWS = 40
bulk.output.CHECKPOINT_SECONDS = 0
"""
# dies inside the nth call that changes the disk, after half of what a write was to write
DIE_AT = """
import os, pathlib, signal
calls = 0
def counted(function, half=None):
    def call(*arguments):
        global calls
        calls += 1
        if calls == {number}:
            if half:
                half(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
write = os.write
os.write = counted(write, lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
os.fsync = counted(os.fsync)
os.ftruncate = counted(os.ftruncate)
pathlib.Path.replace = counted(pathlib.Path.replace)
pathlib.Path.unlink = counted(pathlib.Path.unlink)
"""


def write_rows(file: Path) -> Path:
    """A file of ROWS rows, of which some are bad."""
    texts = ["" if index in BAD else text for index, text in enumerate(TEXTS)]
    kind = file.name.partition(".")[2]
    if kind == "csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([["id", "text"], *enumerate(texts)])
        file.write_bytes(text.getvalue().encode())
    elif kind == "parquet":
        pq.write_table(pa.table({"id": range(ROWS), "text": texts}), file, row_group_size=250)
    else:
        data = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()
        file.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return file


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulk.inputs._WINDOW_ROWS", 40)


@pytest.mark.parametrize("kind", DEATHS)
def test_killed_at_any_point_it_ends_with_the_same_bytes(bundle: Bundle, folder: Path, kind: str) -> None:
    file, whole, out = write_rows(folder / f"in.{kind}"), folder / f"whole.{kind}", folder / f"out.{kind}"
    bad = folder / "bad.jsonl"
    reference = run_limbeck("classify", bundle.folder, file, "--out", whole, "--errors", bad, setup=SMALL)
    assert reference.returncode == 4, reference.stderr
    errors = bad.read_bytes()
    bad.unlink()
    arguments = ["classify", bundle.folder, file, "--out", out, "--errors", bad]
    for number in DEATHS[kind]:
        killed = run_limbeck(*arguments, setup=SMALL + DIE_AT.format(number=number))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
    ended = run_limbeck(*arguments, setup=SMALL)
    assert ended.returncode == 4
    assert b"going on after" in ended.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert bad.read_bytes() == errors
    assert left(folder) == []


def stop_after(windows: int, classifier: Classifier, what: Job, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Run until some windows are written, then let `error` end it."""
    append, calls = Output.append, iter(range(windows))

    def stopping(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise error
        append(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "append", stopping)
        with pytest.raises(error):
            classify_file(classifier, what, Console(quiet=True))


def ids(out: Path) -> list[int]:
    with out.open(newline="", encoding="utf-8") as file:
        return [int(row["id"]) for row in csv.DictReader(file)]


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(bundle: Bundle, folder: Path) -> None:
    file, out = write_rows(folder / "in.csv"), folder / "out.csv"
    slow = """
import time, bulk.output
append = bulk.output.Output.append
bulk.output.Output.append = lambda *arguments: (append(*arguments), time.sleep(0.05))
"""
    arguments = ["classify", bundle.folder, file, "--out", out]
    with start_limbeck(*arguments, setup=SMALL + slow) as process:
        deadline = time.monotonic() + 120
        # several windows: the first may be interrupted before it counts
        while not (folder / ".out.csv.partial").exists() or (folder / ".out.csv.partial").stat().st_size < 6000:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"stopped; give the same command again to go on" in stderr
    assert b"Traceback" not in stderr
    assert not out.exists()
    ended = run_limbeck(*arguments)
    assert ended.returncode == 4
    assert b"going on after" in ended.stderr
    assert ids(out) == GOOD
    assert left(folder) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_was_written_is_not_done_again(bundle: Bundle, folder: Path, error: type[BaseException]) -> None:
    done: list[int] = []
    file, out = write_rows(folder / "in.csv"), folder / "out.csv"
    with Classifier(bundle.folder) as classifier:
        stop_after(10, classifier, job(file, out, "csv"), error)
        score = classifier._score
        classifier._score = lambda inputs: (done.append(len(inputs)), score(inputs))[1]
        progress = classify_file(classifier, job(file, out, "csv"), Console(quiet=True))
    assert sum(done) == len([index for index in GOOD if index >= 400])
    assert (progress.done_rows, progress.bad_rows) == (len(GOOD), 3)
    assert ids(out) == GOOD


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_another_input_is_refused_and_restart_begins_anew(bundle: Bundle, folder: Path, kind: str) -> None:
    file, out = write_rows(folder / f"in.{kind}"), folder / f"out.{kind}"
    with Classifier(bundle.folder) as classifier:
        stop_after(10, classifier, job(file, out, kind))
        if kind == "csv":
            file.write_bytes(file.read_bytes().replace(b"\n5,", b"\n5000,"))
        else:
            pq.write_table(pq.read_table(file).slice(1), file)
        before = (folder / f".out.{kind}.partial").read_bytes()
        with pytest.raises(ResumeError, match="--restart"):
            classify_file(classifier, job(file, out, kind), Console(quiet=True))
        assert (folder / f".out.{kind}.partial").read_bytes() == before
        classify_file(classifier, job(file, out, kind, restart=True), Console(quiet=True))
    found = ids(out) if kind == "csv" else pq.read_table(out)["id"].to_pylist()
    assert found == ([5000 if index == 5 else index for index in GOOD] if kind == "csv" else GOOD[1:])
    assert left(folder) == []


@pytest.mark.usefixtures("small")
def test_rows_that_came_after_the_interruption_are_done_too(bundle: Bundle, folder: Path) -> None:
    file, out = write_rows(folder / "in.csv"), folder / "out.csv"
    with Classifier(bundle.folder) as classifier:
        stop_after(10, classifier, job(file, out, "csv"))
        with file.open("ab") as more:
            more.write(b"9999,a good movie\r\n")
        classify_file(classifier, job(file, out, "csv"), Console(quiet=True))
    assert ids(out) == [*GOOD, 9999]


@pytest.mark.usefixtures("small")
def test_other_options_or_another_bundle_are_refused(bundle: Bundle, tmp_path: Path, folder: Path) -> None:
    file, out = write_rows(folder / "in.csv"), folder / "out.csv"
    other = changed(bundle, tmp_path / "other", version="2")
    with Classifier(bundle.folder) as classifier, Classifier(other.folder) as another:
        stop_after(10, classifier, job(file, out, "csv"))
        for running, options, name in (
            (classifier, {"prefix": "p_"}, "prefix"),
            (classifier, {"all_scores": True}, "all scores"),
            (classifier, {"errors": folder / "bad.jsonl"}, "errors"),
            (another, {}, "bundle"),
        ):
            with pytest.raises(ResumeError, match=f"but with another {name}: found .*--restart"):
                classify_file(running, job(file, out, "csv", **options), Console(quiet=True))
        (folder / ".out.csv.progress").write_text("{}")
        with pytest.raises(ResumeError, match="not the progress of a run"):
            classify_file(classifier, job(file, out, "csv"), Console(quiet=True))
        classify_file(another, job(file, out, "csv", restart=True), Console(quiet=True))
    assert ids(out) == GOOD
    assert left(folder) == []


@pytest.mark.usefixtures("small")
def test_two_runs_do_not_write_one_output(bundle: Bundle, folder: Path) -> None:
    file, out = write_rows(folder / "in.csv"), folder / "out.csv"
    with Classifier(bundle.folder) as classifier:
        with contextlib.closing(Spool(out)), pytest.raises(OutputError, match="another run is writing it"):
            classify_file(classifier, job(file, out, "csv"), Console(quiet=True))
        with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
            classify_file(classifier, job(file, folder / "none/out.csv", "csv"), Console(quiet=True))
    assert left(folder) == []


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(bundle: Bundle, folder: Path, kind: str) -> None:
    file, whole, out = write_rows(folder / f"in.{kind}"), folder / f"whole.{kind}", folder / f"out.{kind}"
    run_limbeck("classify", bundle.folder, file, "--out", whole)
    # no file may grow beyond this: writes fail as they do where a disk is full
    full = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({whole.stat().st_size // 2}, resource.RLIM_INFINITY))
"""
    failed = run_limbeck("classify", bundle.folder, file, "--out", out, setup=SMALL + full)
    assert failed.returncode == 1
    assert f"error: {out}: cannot be written: File too large".encode() in failed.stderr
    assert b"Traceback" not in failed.stderr
    assert not out.exists()
    ended = run_limbeck("classify", bundle.folder, file, "--out", out, setup=SMALL)
    assert b"going on after" in ended.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert left(folder) == []


@pytest.mark.usefixtures("small")
def test_without_a_file_to_read_again_nothing_is_kept(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "out.txt"
    with Classifier(bundle.folder) as classifier, (folder / "in.txt").open("w+b") as given:
        given.write("\n".join(TEXTS).encode())
        given.seek(0)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given))
        stop_after(10, classifier, job(None, out, "txt"))
    assert [path.name for path in folder.iterdir()] == ["in.txt"]
