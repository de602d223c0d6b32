"""Texts from files, and how every dialect asks about them: the service itself answers."""

import asyncio
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from bundle import Bundle
from loadtest import workload
from loadtest.dialects import DIALECTS, Asked, asked
from loadtest.errors import WorkloadError
from tests.service.helpers import pair_bundle, reference_scores, running, settings_for

TEXTS = ["a good movie", "the plot was awful"]
# a parameter is part of its test's name, which must not change from one second to the next
PACKED = gzip.compress(b"a", mtime=0)


def scores_in(found: object) -> list[float]:
    """All numbers under the names that dialects give to scores, in order."""
    if isinstance(found, dict):
        own = [found[name] for name in ("score", "probs") if name in found]
        if found.get("name") == "scores":
            own.append(found["data"])
        if set(found) == {"0", "1"}:
            own.append(list(found.values()))
        return np.ravel(np.array(own)).tolist() if own else scores_in(list(found.values()))
    return [score for one in found for score in scores_in(one)] if isinstance(found, list) else []


def answers(bundle: Bundle, requests: list[Asked]) -> list[object]:
    async def ask() -> list[object]:
        found = []
        async with running(settings_for(bundle)) as client:
            for request in requests:
                headers = {"content-type": "application/json", **request.headers}
                answer = await client.post(request.path, content=request.body, headers=headers)
                assert answer.status_code == 200, answer.text
                found.append(answer.json())
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_understood(tiny_bundle: Bundle, name: str) -> None:
    models = [tiny_bundle.manifest.name] if DIALECTS[name].path is None else [None, tiny_bundle.manifest.name]
    asks = [(TEXTS[:count], model) for count in (1, 2) for model in models]
    found = answers(tiny_bundle, [asked(name, texts, model) for texts, model in asks])
    for (texts, _), answer in zip(asks, found, strict=True):
        scores = [reference_scores(text) for text in texts]
        # detectors report what is predicted
        expected = [score for one in scores for score in (one if name != "detectors" else [max(one)])]
        assert sorted(scores_in(answer)) == pytest.approx(sorted(expected), abs=1e-4)


@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if dialect.pairs])
def test_pairs_are_understood(tiny_bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle = pair_bundle(tiny_bundle, tmp_path / "pairs")
    pairs = [("a good movie", "the plot"), ("dull", "not very good")]
    asks = [pairs[:1], pairs]
    found = answers(bundle, [asked(name, some, bundle.manifest.name) for some in asks])
    for some, answer in zip(asks, found, strict=True):
        expected = sorted(score for pair in some for score in reference_scores(*pair))
        assert sorted(scores_in(answer)) == pytest.approx(expected, abs=1e-4)


def test_what_a_dialect_cannot_say() -> None:
    with pytest.raises(WorkloadError, match="vllm has no pairs of texts; these have: native, tei, openinference"):
        asked("vllm", [("a", "b")], None)
    with pytest.raises(WorkloadError, match="say which with --model"):
        asked("kserve", ["a"], None)
    assert asked("kserve", ["a"], "a/b c").path == "/v1/models/a%2Fb%20c:predict"


def test_files_of_all_kinds(tmp_path: Path) -> None:
    rows = [{"text": "Zwölf, 'or' \"so\"\nlines", "text_pair": "b", "n": 1}, {"text": "c", "text_pair": "d", "n": 2}]
    (tmp_path / "rows.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "rows.csv").write_text(
        'text,n,text_pair\n"Zwölf, \'or\' ""so""\nlines",1,b\nc,2,d\n', encoding="utf-8-sig"
    )
    (tmp_path / "rows.txt").write_text("first text\n\nsecond\n", encoding="utf-8")
    for name in ("rows.jsonl", "rows.csv"):
        assert sorted(workload.read_texts(tmp_path / name, "text", None, 0)) == sorted(row["text"] for row in rows)
        pairs = workload.read_texts(tmp_path / name, "text", "text_pair", 0)
        assert sorted(pairs) == sorted((row["text"], row["text_pair"]) for row in rows)
    assert sorted(workload.read_texts(tmp_path / "rows.txt", "text", None, 0)) == ["first text", "second"]


def test_of_a_long_file_texts_are_drawn_evenly(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("".join(f"{number}\n" for number in range(2 * workload.MOST_TEXTS)))
    found = np.array(list(map(int, workload.read_texts(file, "text", None, 5))))
    assert len(set(found.tolist())) == workload.MOST_TEXTS
    expected = workload.MOST_TEXTS
    assert found.mean() == pytest.approx(expected, abs=4 * expected / math.sqrt(3 * len(found)))
    assert workload.read_texts(file, "text", None, 5) == list(map(str, found))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jsonl", b"", "found no texts, expected at least one"),
        ("blank.txt", b"\n \n", "found no texts"),
        ("head.csv", b"text\n", "found no texts"),
        ("broken.jsonl", b'{"text": "a"}\n{"text', "broken.jsonl:2: found no JSON"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1: found list, expected an object a line"),
        ("column.jsonl", b'{"review": "a"}\n', "column.jsonl:1: found the columns review; expected 'text'"),
        ("number.jsonl", b'{"text": 7}\n', "number.jsonl:1: text: found '7', expected a text"),
        ("short.csv", b"n,text\n1\n", "short.csv:2: text: found 'None', expected a text"),
        ("latin.txt", b"caf\xe9\n", "found bytes that are no UTF-8"),
        ("packed.gz", PACKED, "found the ending '.gz'; expected one of .jsonl, .ndjson, .csv, .txt"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkloadError) as raised:
        workload.read_texts(tmp_path / name, "text", None, 0)
    assert problem in str(raised.value)


def test_batches_and_the_length_mix() -> None:
    assert workload.batches(["a", "b", "c"], 2) == [["a", "b"], ["c", "a"]]
    assert workload.batches(["a"], 3) == [["a", "a", "a"]]
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    mix = workload.length_mix(["x" * length for length in lengths])
    found = (mix.characters_p10, mix.characters_p50, mix.characters_p90, mix.characters_max)
    assert found == pytest.approx(np.quantile(lengths, [0.1, 0.5, 0.9, 1], method="higher"), abs=2)
    assert mix.words_p50 == 1
    sample = workload.sample_texts(pairs=False)
    assert workload.length_mix(sample).characters_max > 5 * workload.length_mix(sample).characters_p50
    assert all(len(pair) == 2 for pair in workload.sample_texts(pairs=True))
