"""Files in the playground: what comes back is read with Python's own csv and json modules."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.slow


def give(page: "Page", name: str, content: bytes) -> None:
    page.get_by_label("Drop a file here").set_input_files([{"name": name, "mimeType": "", "buffer": content}])


def run(page: "Page") -> str:
    page.get_by_role("button", name="Classify the file").click()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#file-said")).to_contain_text("classified")
    return page.locator("#file-said").inner_text()


def download(page: "Page") -> tuple[str, str]:
    with page.expect_download() as waiting:
        page.locator("#download").click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes().decode()


def left_out(page: "Page") -> list[str]:
    return page.locator("#bad li").all_inner_texts()


def label_of(server: str, text: str, path: str = "reviews/classify") -> tuple[str, float]:
    answer = httpx.post(f"{server}/v1/models/{path}", json={"inputs": text}, timeout=60).json()
    best = answer["results"][0]["labels"][0]
    return best["label"], best["score"]


def rows_of(content: str, **options: object) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content, newline=""), strict=True, **options))


NASTY = [
    ["id", "text", "note"],
    ["1", "a good movie", "plain"],
    ["2", 'he said "great film", twice', "quotes, commas"],
    ["3", "bad\r\nplot", "line end"],
    ["4", 'dull\n\n"film"\n', ""],
    ["5", " awful ", "  spaces kept "],
    ["6", "👍🏽 סרט good", "emoji"],
    ["7", "great", '"'],
]


@pytest.mark.parametrize("terminator", ["\r\n", "\n"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
def test_a_table_comes_back_with_two_more_columns(playground, server, terminator, name, delimiter, begin) -> None:
    given = io.StringIO(newline="")
    csv.writer(given, delimiter=delimiter, lineterminator=terminator).writerows(NASTY)
    give(playground, name, begin + given.getvalue().encode())
    expect(playground.locator("#file-about")).to_have_text(f"{name}: 7 rows.")
    assert playground.locator("#column option:checked").inner_text() == "text"
    assert run(playground) == "7 rows classified."
    expect(playground.get_by_role("progressbar")).to_have_attribute("value", "1")
    told, content = download(playground)
    assert told == name.replace(".", ".classified.")
    header, *rows = rows_of(content, delimiter=delimiter)
    assert header == [*NASTY[0], "label", "score"]
    assert [row[:3] for row in rows] == NASTY[1:]
    for row in rows:
        label, score = label_of(server, row[1])
        assert (row[3], float(row[4])) == (label, pytest.approx(score, abs=1e-6))


def test_bad_rows_are_told_by_line_and_the_rest_goes_on(playground) -> None:
    lines = [
        "text,n",
        "good,1",
        "too,many,fields",  # 3
        "one field",  # 4
        '"   ",5',  # 5
        '"closed" too early,6',  # 6
        '"two\nlines bad",7',  # 7 and 8
        "",  # 9: blank, passed over
        "bad,10",
        '"never closed,11',  # 11
        "great,12",
    ]
    give(playground, "bad.csv", "\n".join(lines).encode())
    assert run(playground) == "4 rows classified, 5 left out."
    assert left_out(playground) == [
        "Line 3: found 3 fields, expected 2",
        "Line 4: found 1 fields, expected 2",
        "Line 5: no text in text",
        "Line 6: there is text behind a closing quote",
        "Line 11: a quote is never closed",
    ]
    _, content = download(playground)
    assert [row[0] for row in rows_of(content)] == ["text", "good", "two\nlines bad", "bad", "great"]


def test_json_lines_keep_what_they_have(playground, server, problems) -> None:
    lines = [
        '{"id": 12345678901234567890, "text": "a good movie", "label": "old"}',
        "not json",
        "",
        "[1]",
        '{"text": "\\ud800"}',
        '{"text": 5}',
        "{ }",
        ' {"text": "dull film", "more": {"a": [1.0]}}\r',
    ]
    give(playground, "a.jsonl", "\n".join(lines).encode())
    assert run(playground) == "2 rows classified, 5 left out."
    told = left_out(playground)
    assert [line.partition(":")[0] for line in told] == ["Line 2", "Line 4", "Line 5", "Line 6", "Line 7"]
    assert "found half of a surrogate pair" in told[2]
    name, content = download(playground)
    assert name == "a.classified.jsonl"
    first, second = map(json.loads, content.splitlines())
    label, score = label_of(server, "a good movie")
    assert first == {"id": 12345678901234567890, "text": "a good movie", "label": "old"} | {
        "limbeck_label": label,
        "limbeck_score": score,
    }
    assert content.startswith('{"id": 12345678901234567890, "text": "a good movie", "label": "old",')
    assert second["more"] == {"a": [1.0]}
    assert second["limbeck_label"] == "negative"
    assert ["status of 422" in problem for problem in problems] == [True, True]  # of the batch, then of the one row
    problems.clear()


def test_many_rows_go_in_batches_of_which_one_refused_row_takes_none_along(playground, problems) -> None:
    sizes = []

    def watch(route: "Route") -> None:
        sizes.append(len(json.loads(route.request.post_data)["inputs"]))
        route.continue_()

    playground.route("**/classify", watch)
    rows = [json.dumps({"text": f"good film {number}"}) for number in range(100)]
    rows[40] = json.dumps({"text": "\ud800"})
    give(playground, "many.jsonl", "\n".join(rows).encode())
    assert run(playground) == "99 rows classified, 1 left out."
    assert sizes == [32, 32, 1, 31, 32, 4]
    _, content = download(playground)
    assert [json.loads(line)["text"] for line in content.splitlines()] == [
        f"good film {number}" for number in range(100) if number != 40
    ]
    assert all("status of 422" in problem for problem in problems)
    problems.clear()


def test_a_busy_service_is_waited_for(playground, problems) -> None:
    answers = iter([429, 504])

    def busy_at_first(route: "Route") -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            error = {"code": "queue_full", "message": "the queue is full"}
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"error": error})

    playground.route("**/classify", busy_at_first)
    give(playground, "a.csv", b"text\ngood\n")
    playground.get_by_role("button", name="Classify the file").click()
    expect(playground.locator("#file-said")).to_have_text("The service is busy; going on in 1 s.")
    expect(playground.locator("#file-said")).to_have_text("1 row classified.")
    assert len(problems) == 2
    problems.clear()


def test_a_run_that_is_stopped_or_ends_early_gives_what_it_has(playground, problems) -> None:
    asked = []

    def then_gone(route: "Route") -> None:
        asked.append(route)
        if len(asked) == 1:
            route.continue_()
        else:
            route.abort()

    playground.route("**/classify", then_gone)
    give(playground, "a.csv", ("text\n" + "good\n" * 50).encode())
    assert run(playground) == "Ended early. The service cannot be reached. Is it still running? 32 rows classified."
    _, content = download(playground)
    assert len(rows_of(content)) == 33
    playground.unroute("**/classify")
    playground.route("**/classify", lambda route: None)  # never answers
    playground.get_by_role("button", name="Classify the file").click()
    playground.get_by_role("button", name="Stop").click()
    expect(playground.locator("#file-said")).to_have_text("Stopped. 0 rows classified.")
    expect(playground.locator("#download")).to_be_hidden()
    assert len(problems) >= 1
    problems.clear()


@pytest.mark.parametrize("guarded", [True, False])
def test_what_a_spreadsheet_would_run_gets_an_apostrophe_unless_it_shall_not(playground, guarded) -> None:
    dangers = ["=1+1", "+good", "@SUM(A1)", "-bad", '=HYPERLINK("x","y")']
    harmless = ["-5", "+1.5e3", "a = b", "good"]
    given = io.StringIO(newline="")
    csv.writer(given).writerows([["text", "n"], *([text, "-1"] for text in [*dangers, *harmless])])
    give(playground, "a.csv", given.getvalue().encode())
    guard = playground.get_by_label("5 rows have a field that a spreadsheet would take for a formula")
    expect(guard).to_be_checked()
    guard.set_checked(guarded)
    run(playground)
    _, content = download(playground)
    _, *rows = rows_of(content)
    assert [row[0] for row in rows] == [*(("'" if guarded else "") + text for text in dangers), *harmless]
    assert {row[1] for row in rows} == {"-1"}


def test_names_of_columns_are_guarded_too(playground) -> None:
    give(playground, "a.csv", b"text,=HYPERLINK(A1)\ngood,1\n")
    expect(playground.get_by_label("1 row has a field that a spreadsheet would take for a formula")).to_be_checked()
    run(playground)
    assert rows_of(download(playground)[1])[0][:2] == ["text", "'=HYPERLINK(A1)"]


def test_a_file_that_was_classified_may_be_classified_again(playground) -> None:
    give(playground, "a.csv", b"text,label,limbeck_label\ngood,x,y\n")
    run(playground)
    header, row = rows_of(download(playground)[1])
    assert header == ["text", "label", "limbeck_label", "limbeck_limbeck_label", "limbeck_limbeck_score"]
    assert row[:3] == ["good", "x", "y"]


def test_more_rows_than_a_page_can_hold_are_refused(playground) -> None:
    give(playground, "a.csv", b"text\n" + b"a\n" * 500_001)
    expect(playground.locator("#file-said")).to_contain_text("a.csv has more than 500,000 rows: use limbeck classify")
    expect(playground.get_by_role("button", name="Classify the file")).to_be_hidden()


def test_other_tasks_write_their_own_columns(playground, server) -> None:
    playground.get_by_label("Model").select_option("themes")
    give(playground, "a.csv", b"text\nfilm great film film\ndull\n")
    run(playground)
    (header, first, second) = rows_of(download(playground)[1])
    assert header == ["text", "labels", "scores"]
    assert (first[1], len(first[2].split("|"))) == ("story|praise", 2)
    assert second == ["dull", "", ""]
    playground.get_by_label("Model").select_option("names")
    run(playground)
    (header, first, _) = rows_of(download(playground)[1])
    assert header == ["text", "entities"]
    assert [(one["entity"], one["start"], one["end"]) for one in json.loads(first[1])] == [
        ("KIND", 0, 4),
        ("KIND", 11, 15),
        ("KIND", 16, 20),
    ]
    playground.get_by_label("Model").select_option("pairs")
    give(playground, "b.jsonl", b'{"text": "good", "text_pair": "great"}\n{"text": "good"}\n')
    assert run(playground) == "1 row classified, 1 left out."
    assert left_out(playground) == ["Line 2: no text in text_pair"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", "The file is empty."),
        ("a.csv", "text\nn\u00e9\n".encode("latin-1"), "a.csv is not UTF-8. Save it as UTF-8 and try again."),
        ("a.csv", b'"text\ngood\n', "Line 1, with the names of the columns: a quote is never closed."),
        ("a.jsonl", b'{"n": 1}\n', "a.jsonl has no column of texts."),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused_in_plain_words(playground, name, content, told) -> None:
    give(playground, name, content)
    expect(playground.locator("#file-said")).to_have_text(told)
    expect(playground.get_by_role("button", name="Classify the file")).to_be_hidden()


def test_a_file_can_be_dropped(playground) -> None:
    dropped = playground.evaluate_handle(
        "() => { const all = new DataTransfer(); const lines = ['text\\ngood\\n'];"
        " all.items.add(new File(lines, 'dropped.csv')); return all }"
    )
    playground.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(playground.locator("#file-about")).to_have_text("dropped.csv: 1 row.")
    assert run(playground) == "1 row classified."
