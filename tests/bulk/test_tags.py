"""`limbeck diff` between classifiers that find entities."""

import json
import socket
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from bulk.answers import Tagged
from bulk.dialects import Labels
from bulk.endpoint import Endpoint
from bulk.errors import EndpointError, TaskError
from bulk.tag_dialects import TAG_DIALECTS
from bulk.tags import Tags
from bundle import Bundle
from tests.bulk.helpers import run_limbeck, sentences
from tests.bulk.test_diff import Reply, endpoint_that
from tests.service.helpers import VOCABULARY, tag_bundle, tag_weights
from tests.support.rows import write_lines

LABELS = ("O", "PER", "LOC")
READ = 14
"""Words that the model reads, which takes 16 tokens."""

Entities = dict[tuple[int, int], str]


def entities(text: str, seed: int) -> Entities:
    """Place -> label, from the model's weights with numpy alone; neighbors of one label are one entity."""
    weights = tag_weights(seed)
    words, start = [], 0
    for word in text.split(" ")[:READ]:
        words.append((word.lower(), start, start + len(word)))
        start += len(word) + 1
    ids = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word, _, _ in words]
    tags = (weights["embeddings"][ids] @ weights["classifier"]).argmax(axis=1).tolist()
    found = {}
    for tag, run in groupby(zip(tags, words, strict=True), key=lambda one: one[0]):
        places = [place for _, (_, *place) in run]
        if tag:
            found[places[0][0], places[-1][1]] = LABELS[tag]
    return found


@pytest.fixture
def taggers(bundle: Bundle, tmp_path: Path) -> tuple[Bundle, Bundle]:
    return tag_bundle(bundle, tmp_path / "one", seed=1), tag_bundle(bundle, tmp_path / "two", seed=2)


def test_two_bundles_are_compared_entity_by_entity(taggers: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    texts = sentences(300)
    data = write_lines(tmp_path / "d.jsonl", [{"text": text} for text in texts])
    folders = [bundle.folder for bundle in taggers]
    result = run_limbeck("diff", *folders, "--data", data, "--json", "--worst", 300)
    assert result.returncode == 0, result.stderr.decode()
    found = json.loads(result.stdout)

    sides = [(entities(text, 1), entities(text, 2)) for text in texts]
    assert found["texts"] == 300
    assert found["agreed"] == sum(before == after for before, after in sides) > 0
    moves = Counter(
        (before.get(place, "(none)"), after.get(place, "(none)"))
        for before, after in sides
        for place in before.keys() | after.keys()
    )
    flips = {(flip["reference"], flip["candidate"]): flip["entities"] for flip in found["flips"]}
    given = Counter(label for before, _ in sides for label in before.values())
    for flip in found["flips"]:
        known = given.get(flip["reference"])  # of what the reference does not find there is no number
        assert flip["share"] == (None if known is None else pytest.approx(flip["entities"] / known))
    assert flips == {(before, after): count for (before, after), count in moves.items() if before != after}
    assert {("PER", "LOC"), ("PER", "(none)"), ("(none)", "LOC")} <= flips.keys()
    for label in LABELS[1:]:
        had = {(row, place) for row, (one, _) in enumerate(sides) for place in one if one[place] == label}
        has = {(row, place) for row, (_, one) in enumerate(sides) for place in one if one[place] == label}
        counted = {"reference": had, "candidate": has, "lost": had - has, "gained": has - had}
        assert found["labels"][label] == {name: len(marks) for name, marks in counted.items()}
    for one in found["worst"]:
        for side, expected in zip(("reference", "candidate"), sides[one["row"] - 1], strict=True):
            assert {(e["start"], e["end"]): e["entity"] for e in one[side]["entities"]} == expected
        before, after = (
            {(e["start"], e["end"], e["entity"]): e["score"] for e in one[side]["entities"]}
            for side in ("reference", "candidate")
        )
        differences = [abs(before.get(mark, 0) - after.get(mark, 0)) for mark in before.keys() | after.keys()]
        assert one["difference"] == pytest.approx(max(differences))
    assert len(found["worst"]) == 300 - found["agreed"]


def test_the_scores_of_shared_entities_are_compared(taggers: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    """A higher temperature changes no entity, and every score."""
    cold, data = taggers[0], tmp_path / "d.txt"
    data.write_text("\n".join(sentences(50)))
    warm = tag_bundle(cold, tmp_path / "warm", seed=1, temperature=2.0)
    result = run_limbeck("diff", cold.folder, warm.folder, "--data", data, "--json")
    assert result.returncode == 0, result.stderr.decode()
    found = json.loads(result.stdout)
    assert (found["agreed"], found["flips"]) == (50, [])
    assert 0.02 < found["score_difference"]["mean"] <= found["score_difference"]["largest"] < 0.5


def test_tables_count_entities(taggers: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("\n".join(sentences(50)))
    result = run_limbeck("diff", *[bundle.folder for bundle in taggers], "--data", tmp_path / "d.txt", "--worst", 1)
    told = " ".join(result.stdout.decode().split())
    assert "from to entities of those" in told
    assert "label entities lost gained" in told


def test_what_finds_no_entities_is_refused(taggers: tuple[Bundle, Bundle], bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a good movie\n")
    for sides in ((bundle, taggers[0]), (taggers[0], bundle)):
        result = run_limbeck("diff", *[side.folder for side in sides], "--data", tmp_path / "d.txt")
        assert result.returncode == 1
        assert b"one finds entities and the other gives labels to texts" in result.stderr
    result = run_limbeck("diff", "http://127.0.0.1:1/predict", taggers[0].folder, "--data", tmp_path / "d.txt")
    assert result.returncode == 1
    expected = "the URL: found the dialect tei; expected one of native, huggingface, openinference, detectors, which"
    assert expected in " ".join(result.stderr.decode().split())


def test_a_bundle_that_finds_entities_is_asked_for(bundle: Bundle) -> None:
    with pytest.raises(TaskError, match=r"cannot tag with bundle .*: found task single-label, expected token-class"):
        Tags(bundle)


def test_scores_that_are_no_numbers_are_told(taggers: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for a text without entities."""
    with Tags(taggers[0]) as tags:
        run = tags._model.session.run
        monkeypatch.setattr(tags._model.session, "run", lambda arrays: run(arrays) * np.float32("nan"))
        assert tags.answers(["a good movie"]) == ["the model's scores are not finite numbers"]


def test_many_long_texts_are_answered_in_order(taggers: tuple[Bundle, Bundle]) -> None:
    """More than are tokenized together."""
    texts = [f"{text} {'x' * 20_000}" for text in sentences(250)]
    with Tags(taggers[0]) as tags:
        for text, found in zip(texts, tags.answers(texts), strict=True):
            assert isinstance(found, Tagged)
            assert dict(found.marks) == entities(text, 1)


LONDON = {"entity": "LOC", "start": 3, "end": 9, "score": 0.75}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([LONDON, LONDON | {"score": 0.5}], {((3, 9), "LOC"): 0.75}),  # told twice: the higher counts
        ([LONDON, LONDON | {"entity": "O", "start": 0, "end": 2}], {((3, 9), "LOC"): 0.75}),
        ([], {}),
        ({}, None),
        ([LONDON | {"start": None}], None),
        ([LONDON | {"start": 9}], None),
        ([LONDON | {"start": 1e999}], None),
        ([LONDON | {"entity": None}], None),
        ([LONDON | {"score": float("nan")}], None),
        ([LONDON | {"score": 10**400}], None),
        ([{"label": "LOC", "score": 0.75}], None),
    ],
)
def test_what_a_server_tells_of_entities(found: object, expected: dict[object, float] | None) -> None:
    with endpoint_that(lambda inputs: (200, {"results": [{"entities": found} for _ in inputs]})) as (url, asked):
        for path in ("", "/v1/models/ner", "/v1/models/ner/tag"):
            with Endpoint(
                url + path, None, Labels(LABELS, {}, False), key_env=None, timeout_s=5, dialects=TAG_DIALECTS
            ) as opened:
                if expected is None:
                    with pytest.raises(EndpointError, match="its answer is none of the dialect native"):
                        opened.answers(["in London"])
                else:
                    assert opened.answers(["in London"]) == [Tagged(expected)]
    assert [one["path"] for one in asked] == ["/v1/tag", "/v1/models/ner/tag", "/v1/models/ner/tag"]


def test_labels_in_common_are_looked_for_in_all_texts(taggers: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    """Hundreds of texts hold none of the labels that the two share."""
    texts = sentences(300)
    other, shared = LONDON | {"entity": "MISC", "start": 0, "end": 1}, LONDON | {"start": 0, "end": 1}

    def answers(inputs: list[str]) -> Reply:
        return 200, {"results": [{"entities": [shared if text == texts[299] else other]} for text in inputs]}

    data = write_lines(tmp_path / "d.jsonl", [{"text": text} for text in texts])
    with endpoint_that(answers) as (url, _):
        told = run_limbeck("diff", url, taggers[0].folder, "--data", data, "--json")
        assert told.returncode == 0, told.stderr.decode()
        assert json.loads(told.stdout)["labels"]["MISC"]["lost"] == 299
        assert b"the candidate does not have: MISC" in told.stderr
        told = run_limbeck("diff", url, taggers[0].folder, "--data", data, "--limit", 299)
        assert told.returncode == 1
        assert "found MISC; expected some of the candidate's (LOC, PER)" in " ".join(told.stderr.decode().split())


@pytest.mark.parametrize("kind", ["connection", "proxy", "socks"])
def test_connections_of_every_kind_are_ended(kind: str) -> None:
    """Those of httpx to a proxy have names of their own."""

    class Stream:
        def get_extra_info(self, _: str) -> socket.socket:
            return here

    here, there = socket.socketpair()
    opened = Endpoint("http://127.0.0.1:1", None, Labels(LABELS, {}, False), key_env=None, timeout_s=5)
    with here, there:
        there.settimeout(20)
        opened._remember(f"{kind}.connect_tcp.complete", {"return_value": Stream()})
        opened.close()
        assert there.recv(1) == b""
