"""Every kind of file gives the same examples; every bad row is named with its file and line."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compress.data import Example, load_splits, read_examples, stratified_split
from compress.errors import DataError
from compress.recipe import Columns, Data

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'comma, "quote"\nand a line', "label": "b"},
    {"text": "snow ☃ and\u2028separator", "label": "a"},
]


def write_all_kinds(folder: Path, rows: list[dict[str, str]]) -> list[Path]:
    jsonl, comma, parquet = folder / "x.jsonl", folder / "x.csv", folder / "x.parquet"
    jsonl.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with comma.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    return [jsonl, comma, parquet]


def content(examples: list[Example]) -> list[tuple[str, str | None]]:
    return [(example.text, example.label) for example in examples]


def test_jsonl_csv_and_parquet_agree(tmp_path: Path) -> None:
    expected = [(row["text"], row["label"]) for row in ROWS]
    for path in write_all_kinds(tmp_path, ROWS):
        assert content(read_examples(path, Columns(), labeled=True)) == expected, path.suffix


def test_columns_can_be_renamed_and_labels_can_be_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"sentence": "t", "class": 3}\n')
    assert content(read_examples(path, Columns(text="sentence", label="class"), labeled=True)) == [("t", "3")]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.jsonl", b'{"text": "a", "label": "b"}\nnonsense\n', "x.jsonl:2: not JSON"),
        ("x.jsonl", b'{"text": "a", "label": "b"}\n[1]\n', "x.jsonl:2: expected a JSON object, found list"),
        ("x.jsonl", b'{"text": "a"}\n', "x.jsonl:1: no column 'label'; found text"),
        ("x.jsonl", b'\n\n{"text": "  ", "label": "b"}\n', "x.jsonl:3: column 'text' is empty"),
        ("x.jsonl", b'{"text": null, "label": "b"}\n', "x.jsonl:1: column 'text' holds None"),
        ("x.jsonl", b'{"text": "a", "label": ""}\n', "x.jsonl:1: column 'label' is empty"),
        ("x.jsonl", b'{"text": "a", "label": 1.5}\n', "x.jsonl:1: column 'label' holds 1.5"),
        ("x.jsonl", b'{"text": "a", "label": "b"}\n{"text": "caf\xe9"}\n', "x.jsonl:2: not UTF-8 (byte 0xe9)"),
        ("x.jsonl", b"", "x.jsonl: no rows"),
        ("x.jsonl", b'{"text": "a", "label": true}\n', "x.jsonl:1: column 'label' holds True"),
        ("x.jsonl", b'{"text": "\\ud83d", "label": "b"}\n', "x.jsonl:1: column 'text' holds half a character"),
        ("x.jsonl", b"[" * 100_000 + b"\n", "x.jsonl:1: not JSON"),
        ("x.csv", b"text,label\na,b\nc\n", "x.csv:3: found 1 fields, expected 2"),
        ("x.csv", b"text,label\na,b,c\n", "x.csv:2: found 3 fields, expected 2"),
        ("x.csv", b"text,label\n\n\na,b\n\nc\n", "x.csv:6: found 1 fields"),
        ("x.csv", b'text,label\n"a\nb",c\n ,d\n', "x.csv:4: column 'text' is empty"),
        ("x.csv", b'"text,label\na,b\n', "x.csv:1: not CSV"),
        ("x.csv", b"text,text\na,b\n", "x.csv:1: the header row names a column twice"),
        ("x.csv", b'text,label\n"a"x,b\n', "x.csv:2: not CSV"),
        ("x.csv", b"text\na\n", "x.csv:2: no column 'label'; found text"),
        ("x.csv", b"text,label\n\xff,b\n", "x.csv:2: not UTF-8"),
        ("x.parquet", b"not parquet", "x.parquet: not a Parquet file"),
        ("x.txt", b"a", "unknown kind of file '.txt'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_examples(path, Columns(), labeled=True)
    assert message in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert content(read_examples(path, Columns(), labeled=True)) == [("a", "b")]


def rows(label: str, count: int) -> list[Example]:
    return [Example(f"{label}{i}", label, f"f:{i}") for i in range(count)]


def test_a_split_is_stratified_complete_and_decided_by_the_seed() -> None:
    everything = rows("a", 90) + rows("b", 10)
    train, validation, test = stratified_split(everything, 0.1, 0.2, seed=5)
    assert Counter(e.label for e in validation) == {"a": 9, "b": 1}
    assert Counter(e.label for e in test) == {"a": 18, "b": 2}
    assert sorted(e.text for e in train + validation + test) == sorted(e.text for e in everything)
    assert stratified_split(everything, 0.1, 0.2, seed=5) == (train, validation, test)
    assert stratified_split(everything, 0.1, 0.2, seed=6) != (train, validation, test)


def test_a_label_too_rare_to_split() -> None:
    with pytest.raises(DataError, match="label 'b' has 2 rows; a split needs at least 3"):
        stratified_split(rows("a", 30) + rows("b", 2), 0.1, 0.1, seed=0)


def write_split(folder: Path, name: str, labels: str) -> None:
    lines = [json.dumps({"text": f"{name} {i}", "label": label}) for i, label in enumerate(labels)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def test_a_folder_of_splits(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_split(tmp_path, name, "ab" * 10)
    (tmp_path / "unlabeled.csv").write_text("text\nfree\n")
    splits = load_splits(Data(folder=tmp_path), seed=0)
    assert splits.labels == ["a", "b"]
    assert content(splits.unlabeled) == [("free", None)]
    assert splits.fingerprints()["train"].rows == 20


def test_a_label_in_test_that_train_never_saw(tmp_path: Path) -> None:
    write_split(tmp_path, "train", "ab" * 10)
    write_split(tmp_path, "validation", "ab")
    write_split(tmp_path, "test", "aac")
    with pytest.raises(DataError, match=r"test\.jsonl:3: label 'c' is not among the training labels \['a', 'b'\]"):
        load_splits(Data(folder=tmp_path), seed=0)


def test_a_class_with_too_few_rows(tmp_path: Path) -> None:
    write_split(tmp_path, "train", "a" * 20 + "b" * 7)
    write_split(tmp_path, "validation", "ab")
    write_split(tmp_path, "test", "ab")
    with pytest.raises(
        DataError, match=r"train\.jsonl:21: label 'b' has 7 rows, the first of them here; expected at least 8"
    ):
        load_splits(Data(folder=tmp_path), seed=0)


@pytest.mark.parametrize("problem", ["missing", "twice", "no folder", "one label"])
def test_folders_that_are_not_usable(tmp_path: Path, problem: str) -> None:
    for name in ("train", "validation", "test"):
        write_split(tmp_path, name, "aa" * 10 if problem == "one label" else "ab" * 10)
    expected = {
        "missing": "no test file",
        "twice": "expected one test file",
        "no folder": "no such folder",
        "one label": "at least two labels",
    }
    folder = tmp_path
    if problem == "missing":
        (tmp_path / "test.jsonl").unlink()
    elif problem == "twice":
        (tmp_path / "test.csv").write_text("text,label\na,b\n")
    elif problem == "no folder":
        folder = tmp_path / "nowhere"
    with pytest.raises(DataError, match=expected[problem]):
        load_splits(Data(folder=folder), seed=0)


def test_a_limit_draws_rows_by_seed(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_split(tmp_path, name, "a" * 50 + "b" * 50)
    few = load_splits(Data(folder=tmp_path, limit=40), seed=3)
    assert len(few.train) == len(few.test) == 40
    assert set(few.labels) == {"a", "b"}
    assert few == load_splits(Data(folder=tmp_path, limit=40), seed=3)


def test_pairs_need_a_second_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "text_pair": "b", "label": "c"}\n{"text": "a", "label": "c"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2: no column 'text_pair'; found text, label"):
        read_examples(path, Columns(), labeled=True, paired=True)
    single = read_examples(path, Columns(), labeled=True)
    assert [example.input for example in single] == ["a", "a"]
    path.write_text('{"text": "a", "text_pair": "b", "label": "c"}\n')
    assert read_examples(path, Columns(), labeled=True, paired=True)[0].input == ("a", "b")


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], dtype=np.int32)), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"text": broken, "label": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet"):
        read_examples(tmp_path / "x.parquet", Columns(), labeled=True)
