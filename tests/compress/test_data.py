"""Every kind of file gives the same examples; every bad row is named with its file and line."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundle.manifest import Task
from compress.data import Splits, load_splits, read_examples, stratified_split
from compress.errors import DataError
from compress.examples import Example, Target
from compress.recipe import Columns, Data
from compress.tasks import SPECS

SINGLE, MULTI = SPECS[Task.SINGLE_LABEL], SPECS[Task.MULTI_LABEL]
PAIR, TAGS = SPECS[Task.PAIR], SPECS[Task.TOKEN_CLASSIFICATION]

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


def content(examples: list[Example]) -> list[tuple[str, Target]]:
    return [(example.text, example.target) for example in examples]


def read(path: Path, columns: Columns | None = None) -> list[Example]:
    return read_examples(path, columns or Columns(), SINGLE, labeled=True)


def load(data: Data, seed: int = 0) -> Splits:
    return load_splits(data, seed, SINGLE)


def test_jsonl_csv_and_parquet_agree(tmp_path: Path) -> None:
    expected = [(row["text"], row["label"]) for row in ROWS]
    for path in write_all_kinds(tmp_path, ROWS):
        assert content(read(path)) == expected, path.suffix


def test_columns_can_be_renamed_and_labels_can_be_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"sentence": "t", "class": 3}\n')
    assert content(read(path, Columns(text="sentence", label="class"))) == [("t", "3")]


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
        read(path)
    assert message in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert content(read(path)) == [("a", "b")]


def rows(label: str, count: int) -> list[Example]:
    return [Example(f"{label}{i}", label, f"f:{i}") for i in range(count)]


def test_a_split_is_stratified_complete_and_decided_by_the_seed() -> None:
    everything = rows("a", 90) + rows("b", 10)
    train, validation, test = stratified_split(everything, 0.1, 0.2, 5, SINGLE)
    assert Counter(e.target for e in validation) == {"a": 9, "b": 1}
    assert Counter(e.target for e in test) == {"a": 18, "b": 2}
    assert sorted(e.text for e in train + validation + test) == sorted(e.text for e in everything)
    assert stratified_split(everything, 0.1, 0.2, 5, SINGLE) == (train, validation, test)
    assert stratified_split(everything, 0.1, 0.2, 6, SINGLE) != (train, validation, test)


def test_a_label_too_rare_to_split() -> None:
    with pytest.raises(DataError, match="label 'b' has 2 rows; a split needs at least 3"):
        stratified_split(rows("a", 30) + rows("b", 2), 0.1, 0.1, 0, SINGLE)


def write_split(folder: Path, name: str, labels: str) -> None:
    lines = [json.dumps({"text": f"{name} {i}", "label": label}) for i, label in enumerate(labels)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def test_a_folder_of_splits(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_split(tmp_path, name, "ab" * 10)
    (tmp_path / "unlabeled.csv").write_text("text\nfree\n")
    splits = load(Data(folder=tmp_path))
    assert splits.labels == ["a", "b"]
    assert content(splits.unlabeled) == [("free", None)]
    assert splits.fingerprints()["train"].rows == 20


def test_a_label_in_test_that_train_never_saw(tmp_path: Path) -> None:
    write_split(tmp_path, "train", "ab" * 10)
    write_split(tmp_path, "validation", "ab")
    write_split(tmp_path, "test", "aac")
    with pytest.raises(DataError, match=r"test\.jsonl:3: label 'c' is not among the training labels \['a', 'b'\]"):
        load(Data(folder=tmp_path))


def test_a_class_with_too_few_rows(tmp_path: Path) -> None:
    write_split(tmp_path, "train", "a" * 20 + "b" * 7)
    write_split(tmp_path, "validation", "ab")
    write_split(tmp_path, "test", "ab")
    with pytest.raises(
        DataError, match=r"train\.jsonl:21: label 'b' has 7 rows, the first of them here; expected at least 8"
    ):
        load(Data(folder=tmp_path))


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
        load(Data(folder=folder))


def test_a_limit_draws_rows_by_seed(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_split(tmp_path, name, "a" * 50 + "b" * 50)
    few = load(Data(folder=tmp_path, limit=40), seed=3)
    assert len(few.train) == len(few.test) == 40
    assert set(few.labels) == {"a", "b"}
    assert few == load(Data(folder=tmp_path, limit=40), seed=3)


def test_pairs_need_a_second_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "text_pair": "b", "label": "c"}\n{"text": "a", "label": "c"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2: no column 'text_pair'; found text, label"):
        read_examples(path, Columns(), PAIR, labeled=True)
    assert [example.input for example in read(path)] == ["a", "a"]
    path.write_text('{"text": "a", "text_pair": "b", "label": "c"}\n')
    assert read_examples(path, Columns(), PAIR, labeled=True)[0].input == ("a", "b")


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], dtype=np.int32)), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"text": broken, "label": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet"):
        read(tmp_path / "x.parquet")


MULTI_ROWS = [
    {"text": "both", "labels": ["b", "a", "b"]},
    {"text": "none", "labels": []},
    {"text": "one", "labels": ["a"]},
]
TAG_ROWS = [
    {"tokens": ["New", "York", "wins"], "tags": ["B-LOC", "I-LOC", "O"]},
    {"tokens": ["☃", "東京"], "tags": ["O", "B-LOC"]},
]


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_labels_are_a_list_or_in_csv_one_field(tmp_path: Path) -> None:
    """JSON lists are read in CSV, too; the order and a label named twice do not matter."""
    bars = [row | {"labels": " | ".join(row["labels"])} for row in MULTI_ROWS]
    lists = [row | {"labels": json.dumps(row["labels"])} for row in MULTI_ROWS]
    lines = "".join(json.dumps(row) + "\n" for row in MULTI_ROWS)
    (tmp_path / "x.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(MULTI_ROWS), tmp_path / "x.parquet")
    for path in (
        tmp_path / "x.jsonl",
        tmp_path / "x.parquet",
        write_csv(tmp_path / "bars.csv", bars),
        write_csv(tmp_path / "lists.csv", lists),
    ):
        found = read_examples(path, Columns(), MULTI, labeled=True)
        assert content(found) == [("both", ("a", "b")), ("none", ()), ("one", ("a",))], path.name


def test_words_and_tags_are_lists_or_in_csv_have_spaces_between_them(tmp_path: Path) -> None:
    spaced = [{name: " ".join(values) for name, values in row.items()} for row in TAG_ROWS]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TAG_ROWS))
    pq.write_table(pa.Table.from_pylist(TAG_ROWS), tmp_path / "x.parquet")
    for path in (tmp_path / "x.jsonl", tmp_path / "x.parquet", write_csv(tmp_path / "x.csv", spaced)):
        found = read_examples(path, Columns(), TAGS, labeled=True)
        assert [list(e.words or ()) for e in found] == [row["tokens"] for row in TAG_ROWS], path.name
        assert [list(e.target or ()) for e in found] == [row["tags"] for row in TAG_ROWS], path.name
        assert found[0].text == "New York wins"


def test_unlabeled_words_may_be_a_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "New  York"}\n{"tokens": ["a", "b"]}\n')
    found = read_examples(tmp_path / "x.jsonl", Columns(), TAGS, labeled=False)
    assert [(e.words, e.text, e.target) for e in found] == [
        (("New", "York"), "New York", None),
        (("a", "b"), "a b", None),
    ]


@pytest.mark.parametrize(
    ("task", "raw", "message"),
    [
        ("multi-label", '{"text": "a", "labels": []}\n{"text": "a"}\n', "x.jsonl:2: no column 'labels'; found text"),
        ("multi-label", '{"text": "a", "labels": {"b": 1}}\n', "x.jsonl:1: column 'labels' holds {'b': 1}"),
        ("multi-label", '{"text": "a", "labels": ["b", 1.5]}\n', "x.jsonl:1: column 'labels' holds 1.5"),
        ("multi-label", '{"text": "a", "labels": ["b", " "]}\n', "x.jsonl:1: column 'labels' is empty"),
        ("multi-label", '{"text": "a", "labels": "[b"}\n', "x.jsonl:1: column 'labels' starts with [ but is not"),
        ("pair", '{"text": "a", "text_pair": " ", "label": "b"}\n', "x.jsonl:1: column 'text_pair' is empty"),
        ("token-classification", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "x.jsonl:1: found 2 words and 1 tags"),
        ("token-classification", '{"tokens": [], "tags": []}\n', "x.jsonl:1: column 'tokens' is empty"),
        ("token-classification", '{"tokens": ["a", ""], "tags": ["O", "O"]}\n', "x.jsonl:1: column 'tokens' is empty"),
        ("token-classification", '{"tokens": ["a b"], "tags": ["O"]}\n', "holds 'a b'; expected words without white"),
        ("token-classification", '{"tokens": ["a"], "tags": ["X-LOC"]}\n', "x.jsonl:1: word 0 has the tag 'X-LOC'"),
        ("token-classification", '{"tokens": ["a"], "tags": ["LOC"]}\n', "x.jsonl:1: word 0 has the tag 'LOC'"),
        ("token-classification", '{"tokens": [1], "tags": ["O"]}\n', "x.jsonl:1: column 'tokens' holds 1"),
    ],
)
def test_a_bad_row_of_another_task_is_named(tmp_path: Path, task: str, raw: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(raw)
    with pytest.raises(DataError) as caught:
        read_examples(tmp_path / "x.jsonl", Columns(), SPECS[Task(task)], labeled=True)
    assert message in str(caught.value)


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([MULTI_ROWS[0], {"text": "a", "labels": None}]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: row 2: column 'labels' holds None"):
        read_examples(tmp_path / "x.parquet", Columns(), MULTI, labeled=True)


def test_slices_are_read_from_the_users_column(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": "b", "shop": 7}\n')
    assert read(tmp_path / "x.jsonl", Columns(slice="shop"))[0].slice == "7"
    with pytest.raises(DataError, match="no column 'town'"):
        read(tmp_path / "x.jsonl", Columns(slice="town"))


def multi_rows(*counts: tuple[tuple[str, ...], int]) -> list[Example]:
    return [Example(f"{labels}{i}", labels, f"f:{i}") for labels, count in counts for i in range(count)]


def test_a_split_keeps_the_mix_of_label_sets_and_rare_sets_are_split_together() -> None:
    """scikit-learn's own stratified split of the frequent sets gives the same numbers."""
    from sklearn.model_selection import train_test_split

    frequent = multi_rows((("a",), 60), (("a", "b"), 20), ((), 20))
    rare = multi_rows((("b",), 2), (("a", "c"), 1), (("c",), 2))
    train, validation, test = stratified_split(frequent + rare, 0.1, 0.2, 5, MULTI)
    assert sorted(e.text for e in train + validation + test) == sorted(e.text for e in frequent + rare)
    _, expected = train_test_split(frequent, test_size=0.2, stratify=[str(e.target) for e in frequent], random_state=0)
    frequent_sets = {e.target for e in frequent}
    found = Counter(e.target for e in test if e.target in frequent_sets)
    assert found == Counter(e.target for e in expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[] for _ in range(20)], "no row with a label"),
        ([["a"] for _ in range(20)], "every row of train has the label 'a'; expected rows without it"),
    ],
)
def test_several_labels_that_cannot_be_learned(tmp_path: Path, labels: list[list[str]], message: str) -> None:
    for name in ("train", "validation", "test"):
        lines = [json.dumps({"text": f"{name} {i}", "labels": own}) for i, own in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        load_splits(Data(folder=tmp_path), 0, MULTI)


def write_tags(folder: Path, name: str, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"tokens": words.split(), "tags": tags.split()}) for words, tags in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


# two entities side by side, as each scheme writes them
SCHEMES = {
    "IOB1": "O I-LOC I-LOC B-LOC I-PER",
    "IOB2": "O B-LOC I-LOC B-LOC B-PER",
    "BIOES": "O B-LOC E-LOC S-LOC S-PER",
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tags_of_every_scheme_become_iob2(tmp_path: Path, scheme: str, named: bool) -> None:
    for name in ("train", "validation", "test"):
        write_tags(tmp_path, name, [("in New York Paris Anna", SCHEMES[scheme])] * 8)
    data = Data(folder=tmp_path, tag_scheme=scheme if named else "auto")
    splits = load_splits(data, 0, TAGS)
    assert splits.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    for split in (splits.train, splits.validation, splits.test):
        assert {e.target for e in split} == {tuple(SCHEMES["IOB2"].split())}


def test_tags_that_are_not_of_the_scheme_that_is_named(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_tags(tmp_path, name, [("in New York Paris Anna", SCHEMES["BIOES"])] * 8)
    with pytest.raises(DataError, match=r"train\.jsonl:1: word 2 has the tag 'E-LOC'"):
        load_splits(Data(folder=tmp_path, tag_scheme="IOB2"), 0, TAGS)


def test_entities_that_train_never_saw_and_none_at_all(tmp_path: Path) -> None:
    write_tags(tmp_path, "train", [("in York", "O B-LOC")] * 8)
    write_tags(tmp_path, "validation", [("in York", "O B-LOC")])
    write_tags(tmp_path, "test", [("in York", "O B-LOC"), ("by Anna", "O B-PER")])
    with pytest.raises(DataError, match=r"test\.jsonl:2: label 'PER' is not among the training labels \['LOC'\]"):
        load_splits(Data(folder=tmp_path), 0, TAGS)
    write_tags(tmp_path, "train", [("in York", "O O")] * 8)
    with pytest.raises(DataError, match="no word with a tag other than O"):
        load_splits(Data(folder=tmp_path), 0, TAGS)


def test_the_fingerprint_of_a_split_sees_every_part_of_a_row(tmp_path: Path) -> None:
    base = {"text": "a", "text_pair": "b", "label": "c"}
    digests = set()
    for change in ({}, {"text": "x"}, {"text_pair": "x"}, {"label": "x"}):
        (tmp_path / "x.jsonl").write_text(json.dumps(base | change) + "\n")
        rows = read_examples(tmp_path / "x.jsonl", Columns(), PAIR, labeled=True)
        digests.add(Splits(rows, [], [], [], []).fingerprints()["train"].sha256)
    assert len(digests) == 4
