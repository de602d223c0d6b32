"""`limbeck diff` between classifiers that find entities."""

import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from bundle import Bundle
from tests.bulk.helpers import run_limbeck, sentences
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
    expected = "found tei, which tells no entities; expected one of native, huggingface, openinference, detectors"
    assert expected in " ".join(result.stderr.decode().split())
