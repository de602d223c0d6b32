"""Each format comes out as other programs read it: the input's columns as they were, and the model's answers."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console

from bulk import Classifier
from bulk.errors import BulkError, FormatError
from bulk.run import classify_file
from bundle import Bundle
from service.engine.tokenization import Encoding
from tests.bulk.helpers import exact_bundle, job, multi_label_bundle, pair_bundle, sentences
from tests.service.helpers import changed
from tests.support.bundles import make_bundle

TEXTS = sentences(120)
AWKWARD = ['say "no", twice', "two\nlines of a dull plot", "tab\tand, comma", " spaces ", "Größe 電影", '"quoted"']


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    folder = tmp_path_factory.mktemp("bundles")
    with Classifier(exact_bundle(make_bundle(folder / "tiny"), folder / "exact").folder) as classifier:
        yield classifier


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulk.inputs._WINDOW_ROWS", 16)


class Told(Console):
    """What a run says."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=500)

    def text(self) -> str:
        return self.file.getvalue()


def answers(classifier: Classifier, texts: list[object]) -> list[tuple[str, float]]:
    return [result.labels[0] for result in classifier.classify(texts)]


def csv_bytes(rows: list[list[str]], **options: object) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **options).writerows(rows)
    return text.getvalue().encode()


def read_csv(data: bytes, **options: object) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline=""), **options))


@pytest.mark.parametrize(("kind", "delimiter", "end"), [("csv", ",", "\r\n"), ("csv", ",", "\n"), ("tsv", "\t", "\n")])
def test_csv_and_tsv(classifier: Classifier, tmp_path: Path, kind: str, delimiter: str, end: str) -> None:
    texts = [*AWKWARD, *TEXTS]
    rows = [["id", "text", "more"], *([str(i), text, "x" * (i % 3)] for i, text in enumerate(texts))]
    file, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    file.write_bytes(csv_bytes(rows, delimiter=delimiter, lineterminator=end))
    progress = classify_file(classifier, job(file, out, kind), Told())
    assert (progress.done_rows, progress.bad_rows) == (len(texts), 0)
    header, *found = read_csv(out.read_bytes(), delimiter=delimiter)
    assert header == ["id", "text", "more", "label", "score"]
    assert [row[:3] for row in found] == rows[1:]
    assert [(row[3], float(row[4])) for row in found] == answers(classifier, texts)
    assert out.read_bytes().endswith(end.encode())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_csv_with_a_byte_order_mark_and_no_last_line_end(classifier: Classifier, tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(b"\xef\xbb\xbftext,id\r\n\r\ngood movie,1")
    classify_file(classifier, job(file, out, "csv"), Told())
    (label, score), *_ = answers(classifier, ["good movie"])
    assert out.read_bytes() == f"\ufefftext,id,label,score\r\ngood movie,1,{label},{score!r}\r\n".encode()


# surrogates are no text; csv.writer quotes every other character that needs it
CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROW = st.tuples(CELL, CELL.filter(lambda text: text and not text.isspace()), CELL).map(list)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=40), end=st.sampled_from(["\n", "\r\n"]), quoting=st.sampled_from([0, 1]))
def test_any_csv_that_the_standard_library_writes(
    classifier: Classifier, tmp_path: Path, rows: list[list[str]], end: str, quoting: int
) -> None:
    if end == "\n" and not quoting:  # it leaves a lone carriage return unquoted then, which it cannot read itself
        rows = [[cell.replace("\r", "~") for cell in row] for row in rows]
    file, out = tmp_path / "any.csv", tmp_path / "any-out.csv"
    file.write_bytes(csv_bytes([["a", "text", "b"], *rows], lineterminator=end, quoting=quoting))
    told = Told()
    classify_file(classifier, job(file, out, "csv", all_scores=True), told)
    assert told.text() == ""
    _, *found = read_csv(out.read_bytes())
    assert [row[:3] for row in found] == rows
    scores = np.array([[float(score) for score in row[5:]] for row in found], dtype=np.float32).reshape(-1, 2)
    assert scores.tobytes() == classifier.scores([row[1] for row in rows]).tobytes()


def test_jsonl_keeps_every_byte_of_an_object(classifier: Classifier, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"text": text, "id": i, "f": 0.1}, ensure_ascii=i % 2 == 0) for i, text in enumerate(TEXTS)]
    lines[3] = '{ "n": 12345678901234567890.50, "text" : "good\\u2028movie" , "x": {"y": []} }  '
    texts = [json.loads(line)["text"] for line in lines]
    file.write_bytes("\r\n".join(lines).encode() + b"\n\n")
    assert classify_file(classifier, job(file, out, "jsonl"), Told()).done_rows == len(lines)
    found = out.read_text(encoding="utf-8").split("\n")[:-1]
    assert [line.rstrip()[:-1].rstrip() for line in lines] == [line[: line.rindex(', "label"')] for line in found]
    assert [(row["label"], row["score"]) for row in map(json.loads, found)] == answers(classifier, texts)


def test_plain_text(classifier: Classifier, tmp_path: Path) -> None:
    file, out = tmp_path / "in.txt", tmp_path / "out.txt"
    texts = ["tab\tin it", "line\u2028separator", *TEXTS]
    file.write_bytes("\n".join(texts).encode())
    classify_file(classifier, job(file, out, "txt"), Told())
    found = [line.split("\t", 2) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [text for _, _, text in found] == texts
    assert [(label, float(score)) for label, score, _ in found] == answers(classifier, texts)


@pytest.mark.parametrize("row_group", [7, 1000])
def test_parquet(classifier: Classifier, tmp_path: Path, row_group: int) -> None:
    file, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    texts = [*TEXTS[:5], None, " ", *TEXTS[5:]]
    table = pa.table(
        {
            "id": pa.array(range(len(texts)), pa.int16()),
            "text": texts,
            "kind": pa.array(["x", "y"] * 61).dictionary_encode(),
            "nested": [[{"a": i}] for i in range(len(texts))],
        }
    )
    table = table.replace_schema_metadata({"made by": "a test"})
    pq.write_table(table, file, row_group_size=row_group)
    told = Told()
    progress = classify_file(classifier, job(file, out, "parquet", all_scores=True), told)
    assert (progress.done_rows, progress.bad_rows) == (120, 2)
    assert f"{file}:6: column 'text': found null" in told.text()
    assert f"{file}:7: column 'text': found an empty text" in told.text()
    found = pq.read_table(out)
    kept = [i for i in range(len(texts)) if i not in (5, 6)]
    assert found.select(table.column_names).to_pylist() == table.take(kept).to_pylist()
    assert found.schema.metadata[b"made by"] == b"a test"
    assert found.schema.field("kind").type == table.schema.field("kind").type
    scores = np.stack([found["score_negative"].to_numpy(), found["score_positive"].to_numpy()], axis=1)
    assert scores.tobytes() == classifier.scores(TEXTS).tobytes()
    assert found["label"].to_pylist() == [label for label, _ in answers(classifier, TEXTS)]
    assert found["score"].type == pa.float32()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_parquet_reads_other_kinds_of_strings_and_names_bytes_that_are_none(
    classifier: Classifier, tmp_path: Path
) -> None:
    file, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    broken = pa.array([b"good", b"\xff", b"bad"], pa.binary()).view(pa.string())
    for column in (broken, broken.cast(pa.large_binary()).view(pa.large_string())):
        pq.write_table(pa.table({"text": column}), file)
        told = Told()
        assert classify_file(classifier, job(file, out, "parquet"), told).done_rows == 2
        assert f"{file}:2: column 'text': found bytes that are not UTF-8" in told.text()
        assert pq.read_table(out)["text"].to_pylist() == ["good", "bad"]
    pq.write_table(pa.table({"text": pa.array(["good", "bad"]).dictionary_encode()}), file)
    assert classify_file(classifier, job(file, out, "parquet"), Told()).done_rows == 2
    assert pq.read_table(out)["text"].to_pylist() == ["good", "bad"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_gzip_in_and_out(classifier: Classifier, tmp_path: Path, kind: str) -> None:
    rows = {
        "csv": csv_bytes([["text"], *([text] for text in TEXTS)]),
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode(),
        "txt": "\n".join(TEXTS).encode(),
    }[kind]
    plain, packed = tmp_path / f"in.{kind}", tmp_path / f"in.{kind}.gz"
    plain.write_bytes(rows)
    packed.write_bytes(gzip.compress(rows))
    classify_file(classifier, job(plain, tmp_path / f"a.{kind}", kind), Told())
    classify_file(classifier, job(packed, tmp_path / f"b.{kind}.gz", kind), Told())
    classify_file(classifier, job(packed, tmp_path / f"c.{kind}", kind), Told())
    expected = (tmp_path / f"a.{kind}").read_bytes()
    assert expected
    assert gzip.decompress((tmp_path / f"b.{kind}.gz").read_bytes()) == expected
    assert (tmp_path / f"c.{kind}").read_bytes() == expected


def test_progress_is_told_in_bytes_read_and_rows_done(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulk.progress._LOG_EVERY_SECONDS", 0)
    file, told = tmp_path / "in.txt", Told()
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    classify_file(classifier, job(file, tmp_path / "out.txt", "txt"), told)
    lines = [re.fullmatch(r"(\d+) %, (\d+) rows, [\d,]+ a second", line) for line in told.text().splitlines()]
    assert [int(line[2]) for line in lines] == [16, 32, 48, 64, 80, 96, 112, 120]
    shares = [int(line[1]) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_damaged_gzip_is_named_and_leaves_no_output(classifier: Classifier, tmp_path: Path) -> None:
    packed, out = tmp_path / "in.txt.gz", tmp_path / "out.txt"
    packed.write_bytes(gzip.compress("\n".join(sentences(5000)).encode())[:-100])
    with pytest.raises(FormatError, match=r"in\.txt\.gz: cannot be read on after line \d+"):
        classify_file(classifier, job(packed, out, "txt"), Told())
    assert not out.exists()


def test_pairs(bundle: Bundle, tmp_path: Path) -> None:
    pairs = list(zip(TEXTS[:50], TEXTS[50:100], strict=True))
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(csv_bytes([["a", "b"], *map(list, pairs), ["good", ""]]))
    told = Told()
    with Classifier(pair_bundle(bundle, tmp_path / "pairs").folder) as classifier:
        classify_file(classifier, job(file, out, "csv", text="a", text_pair="b"), told)
        _, *found = read_csv(out.read_bytes())
        assert [(row[2], float(row[3])) for row in found] == answers(classifier, pairs)
        with pytest.raises(FormatError, match="one text a line, but the model compares two"):
            classify_file(classifier, job(file, None, "txt", text="a", text_pair="b"), told)
    assert f"{file}:52: column 'b': found an empty text" in told.text()


def test_multi_label(bundle: Bundle, tmp_path: Path) -> None:
    several = multi_label_bundle(bundle, tmp_path / "several", labels=("story", "a|b, c"))
    file = tmp_path / "in.csv"
    file.write_bytes(csv_bytes([["text"], *([text] for text in TEXTS)]))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    with Classifier(several.folder) as classifier:
        expected = [result.predicted for result in classifier.classify(TEXTS)]
        for kind in ("csv", "jsonl", "parquet"):
            classify_file(classifier, job(tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", kind), Told())
    assert {len(labels) for labels in expected} == {0, 1, 2}
    table = pq.read_table(tmp_path / "out.parquet")
    assert [tuple(labels) for labels in table["labels"].to_pylist()] == expected
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [tuple(row["labels"]) for row in rows] == expected
    assert [row["scores"] for row in rows] == table["scores"].to_pylist()
    _, *found = read_csv((tmp_path / "out.csv").read_bytes())
    # where a label has the separator in it, the list is JSON
    read = [tuple(json.loads(row[1]) if row[1].startswith("[") else filter(None, row[1].split("|"))) for row in found]
    assert read == expected


def test_an_abstention_threshold_adds_a_column(bundle: Bundle, tmp_path: Path) -> None:
    stated = {"threshold": 0.7, "precision": 0.95, "coverage": 0.5}
    (tmp_path / "in.csv").write_bytes(csv_bytes([["text"], *([text] for text in TEXTS)]))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    with Classifier(changed(bundle, tmp_path / "unsure", abstention=stated).folder) as classifier:
        expected = [score >= 0.7 for _, score in answers(classifier, TEXTS)]
        for kind in ("csv", "parquet"):
            classify_file(classifier, job(tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", kind), Told())
    header, *found = read_csv((tmp_path / "out.csv").read_bytes())
    assert header == ["text", "label", "score", "confident"]
    assert [row[3] for row in found] == ["true" if sure else "false" for sure in expected]
    assert pq.read_table(tmp_path / "out.parquet")["confident"].to_pylist() == expected


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_scores_that_are_no_numbers_make_a_bad_row(
    classifier: Classifier, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out, told = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", Told()
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    if kind == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), file)
    run = classifier._run

    def broken(encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        scores = run(encodings)
        scores[[encoding.tokens == 7 for encoding in encodings]] = np.inf
        return scores

    monkeypatch.setattr(classifier, "_run", broken)
    of_seven = [i for i, text in enumerate(TEXTS) if len(text.split()) == 5]
    progress = classify_file(classifier, job(file, out, kind), told)
    assert progress.bad_rows == len(of_seven) > 0
    lines = [line for line in told.text().splitlines() if line.endswith("the model's scores are not finite numbers")]
    assert [int(line.removeprefix(f"{file}:").partition(":")[0]) - 1 for line in lines] == of_seven
    with pytest.raises(BulkError, match=rf"inputs\[{of_seven[0]}\]: the model's scores are not finite numbers"):
        classifier.scores(TEXTS)


BAD_LINES: dict[str, tuple[bytes, list[tuple[int, str]]]] = {
    "jsonl": (
        b'{"text": "good"}\n{"text": "bad"\n[1]\n{"other": "x"}\n{"text": ""}\n{"text": 5}\n{"text": "\xff"}\n'
        b'{"text": "\\ud800"}\n\n{"text": "a", "label": "b"}\n{"text": "bad"}',
        [
            (2, "not JSON"),
            (3, "found a JSON list, expected an object"),
            (4, "no column 'text'; found other"),
            (5, "found an empty text"),
            (6, "found int, expected a text"),
            (7, "not UTF-8 (byte 0xff at 10)"),
            (8, "half of a surrogate pair"),
            (10, "there is a column 'label' already; give --prefix"),
        ],
    ),
    "csv": (
        b'id,text\n1,good\n2\n3,a,b\n4,\n5,"x"y\n6,\xff\n7,"two\nlines, \xff"\n8,"good\nfilm"\n9,bad\n',
        [
            (3, "found 1 fields, expected 2"),
            (4, "found 3 fields, expected 2"),
            (5, "found an empty text"),
            (6, "not CSV: ',' expected after '\"'"),
            (7, "not UTF-8"),
            (8, "not UTF-8"),
        ],
    ),
    "txt": (b"good\n \nbad\xff\nbad\n", [(2, "found an empty text"), (3, "not UTF-8")]),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_rows_are_told_with_their_lines_and_the_rest_is_done(
    classifier: Classifier, tmp_path: Path, kind: str
) -> None:
    data, expected = BAD_LINES[kind]
    file, out, errors, told = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", tmp_path / "bad.jsonl", Told()
    file.write_bytes(data)
    progress = classify_file(classifier, job(file, out, kind, errors=errors), told)
    assert progress.bad_rows == len(expected)
    listed = [json.loads(line) for line in errors.read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in listed] == [line for line, _ in expected]
    for row, line, (_, problem) in zip(listed, told.text().splitlines(), expected, strict=True):
        assert problem in row["problem"]
        assert line == f"{file}:{row['line']}: {row['problem']}"
    assert progress.done_rows == {"jsonl": 2, "csv": 3, "txt": 2}[kind]
    assert out.read_bytes().count(b"0.") == progress.done_rows


def test_a_quote_that_is_never_closed_costs_one_row(classifier: Classifier, tmp_path: Path) -> None:
    lines = ["text,id", *(f"{text},{i}" for i, text in enumerate(TEXTS))]
    lines[50] = f'"{lines[50]}'
    file, out, told = tmp_path / "in.csv", tmp_path / "out.csv", Told()
    file.write_text("\n".join(lines), encoding="utf-8")
    progress = classify_file(classifier, job(file, out, "csv"), told)
    assert (progress.done_rows, progress.bad_rows) == (119, 1)
    assert f"{file}:51: not CSV: a quoted field begins that is never closed" in told.text()
    assert [row[1] for row in read_csv(out.read_bytes())[1:]] == [str(i) for i in range(120) if i != 49]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_a_line_that_is_too_long_costs_one_row(
    classifier: Classifier, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulk.lines.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("bulk.lines._PIECE_BYTES", 64)
    row: Callable[[str], str] = {
        "csv": lambda text: f"{text},1",
        "jsonl": lambda text: json.dumps({"text": text}),
        "txt": lambda text: text,
    }[kind]
    lines = [row("good"), row("long " * 1000), row("bad"), row("longer " * 150), row("dull " * 1000)]
    file, out, told = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", Told()
    file.write_text("\n".join(["text,id", *lines] if kind == "csv" else lines))
    progress = classify_file(classifier, job(file, out, kind), told)
    assert (progress.done_rows, progress.bad_rows) == (2, 3)
    first = 2 if kind == "csv" else 1
    for line in (1, 3, 4):
        assert f"{file}:{first + line}: found a" in told.text()
    assert told.text().count("of more than 1000 bytes") == 3


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        ("csv", b"", "the file is empty; expected a header row"),
        ("csv", b"review,id\ngood,1\n", "no column 'text'; found review, id; name the columns with --text-column"),
        ("csv", b"text,text\ngood,1\n", "names a column twice"),
        ("csv", b"text,score\ngood,1\n", "there is a column 'score' already; give --prefix"),
        ("csv", b'"text\ngood', "a quoted field begins that is never closed"),
        ("csv", b"text,\xff\ngood,1\n", "header row: not UTF-8"),
        ("jsonl", b'{"text": "good", "label": "x"}\n', "1: there is a column 'label' already; give --prefix"),
        ("parquet", b"text", "not a Parquet file"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(
    classifier: Classifier, tmp_path: Path, kind: str, data: bytes, problem: str
) -> None:
    file, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    file.write_bytes(data)
    with pytest.raises(FormatError) as raised:
        classify_file(classifier, job(file, out, kind), Told())
    assert str(file) in str(raised.value)
    assert problem in str(raised.value)
    assert not out.exists()


def test_parquet_without_the_column_or_with_another_type_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    file, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    for table, problem in (
        ({"review": ["a"]}, "no column 'text'; found review"),
        ({"text": [1]}, "column 'text' holds int64; expected string"),
        ({"text": ["a"], "label": ["b"]}, "there is a column 'label' already"),
    ):
        pq.write_table(pa.table(table), file)
        with pytest.raises(FormatError, match=problem):
            classify_file(classifier, job(file, out, "parquet"), Told())


@pytest.mark.parametrize(("kind", "data"), [("csv", b"text\n"), ("jsonl", b""), ("txt", b""), ("parquet", None)])
def test_no_rows_give_an_output_without_rows(
    classifier: Classifier, tmp_path: Path, kind: str, data: bytes | None
) -> None:
    file, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    if data is None:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), file)
    else:
        file.write_bytes(data)
    progress = classify_file(classifier, job(file, out, kind), Told())
    assert (progress.done_rows, progress.bad_rows) == (0, 0)
    if kind == "parquet":
        assert pq.read_table(out).column_names == ["text", "label", "score"]
    else:
        assert out.read_bytes() == (b"text,label,score\n" if kind == "csv" else b"")


def test_files_that_do_not_go_together_are_refused(classifier: Classifier, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(b"text\ngood\n")
    for wrong, problem in (
        (job(tmp_path / "none.csv", None, "csv"), "no such file; to classify a text that stands in the command"),
        (job(tmp_path, None, "csv"), "a folder"),
        (job(file, tmp_path / "out.jsonl", "csv"), r"the output is csv, as the input; expected a name ending \.csv"),
        (job(file, file, "csv"), "is the input"),
        (job(file, None, "parquet"), "not written to standard output"),
        (job(None, tmp_path / "a.parquet", "parquet"), "standard input cannot be Parquet"),
        (job(file, tmp_path / "a.parquet.gz", "parquet"), "compressed inside"),
        (job(file, tmp_path / "a.csv", "csv", errors=tmp_path / "a.csv"), "name two files"),
    ):
        with pytest.raises(BulkError, match=problem):
            classify_file(classifier, wrong, Told())
    assert file.read_bytes() == b"text\ngood\n"


def test_a_prefix_leaves_a_column_of_the_same_name(classifier: Classifier, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"text": "good", "label": "true one"}\n')
    classify_file(classifier, job(file, out, "jsonl", prefix="p_", all_scores=True), Told())
    assert list(json.loads(out.read_text())) == [
        "text",
        "label",
        "p_label",
        "p_score",
        "p_score_negative",
        "p_score_positive",
    ]
