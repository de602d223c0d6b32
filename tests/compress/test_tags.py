"""Entities and schemes against seqeval, and against a second reading written as a regular expression."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from compress.tags import check_tags, detect_scheme, spans, tag_labels, to_scheme

SCHEMES = {"IOB1": IOB1, "IOB2": IOB2, "BIOES": IOBES}
ANY_TAGS = st.lists(st.sampled_from(["O", *(f"{p}-{t}" for p in "BIES" for t in ("LOC", "PER", "a-b"))]), max_size=12)
ENTITIES = st.lists(st.tuples(st.sampled_from(["", "", "LOC", "PER"]), st.integers(1, 3)), min_size=1, max_size=8)


def write_iob2(entities: list[tuple[str, int]]) -> list[str]:
    """Write entities of given lengths; an empty type is words outside."""
    tags = []
    for kind, length in entities:
        tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(length)]
    return tags


def read_by_expression(tags: list[str]) -> list[tuple[str, int, int]]:
    """Read spans type by type: one letter a word, then `[BI]?…` — nothing shared with the code under test."""
    found = []
    for kind in {tag[2:] for tag in tags if tag != "O"}:
        letters = "".join(tag[0] if tag[2:] == kind else "." for tag in tags)
        found += [(kind, m.start(), m.end() - 1) for m in re.finditer(r"S|[BI]I*E?|E", letters)]
    return sorted(found, key=lambda span: span[1])


@settings(deadline=None)
@given(ANY_TAGS)
def test_spans_are_those_of_seqeval(tags: list[str]) -> None:
    assert spans(tags) == get_entities(tags)
    assert spans(tags) == read_by_expression(tags)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O I-LOC I-LOC O", [("LOC", 1, 2)]),
        ("B-LOC I-LOC B-LOC", [("LOC", 0, 1), ("LOC", 2, 2)]),
        ("I-LOC I-PER I-PER", [("LOC", 0, 0), ("PER", 1, 2)]),
        ("S-LOC B-LOC I-LOC E-LOC", [("LOC", 0, 0), ("LOC", 1, 3)]),
        ("U-LOC B-LOC I-LOC L-LOC I-LOC", [("LOC", 0, 0), ("LOC", 1, 3), ("LOC", 4, 4)]),
        ("E-LOC E-LOC", [("LOC", 0, 0), ("LOC", 1, 1)]),
        ("B-a-b I-a-b I-a", [("a-b", 0, 1), ("a", 2, 2)]),
        ("", []),
    ],
)
def test_spans_by_hand(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == expected


@settings(deadline=None)
@given(ENTITIES)
def test_every_scheme_says_the_same(entities: list[tuple[str, int]]) -> None:
    iob2 = write_iob2(entities)
    written = {name: to_scheme(iob2, "IOB2", name) for name in SCHEMES}
    assert written["IOB2"] == iob2
    for name, tags in written.items():
        strict = [(e.tag, e.start, e.end - 1) for e in Entities([tags], SCHEMES[name]).entities[0]]
        assert spans(tags) == spans(iob2)
        assert strict == spans(iob2), "seqeval's strict reading accepts what we write"
        for other in SCHEMES:
            assert to_scheme(tags, name, other) == written[other]


def test_the_words_of_each_scheme() -> None:
    iob2 = ["B-LOC", "I-LOC", "B-LOC", "O", "B-PER", "B-LOC", "I-LOC", "I-LOC"]
    iob1 = ["I-LOC", "I-LOC", "B-LOC", "O", "I-PER", "I-LOC", "I-LOC", "I-LOC"]
    bioes = ["B-LOC", "E-LOC", "S-LOC", "O", "S-PER", "B-LOC", "I-LOC", "E-LOC"]
    bilou = ["B-LOC", "L-LOC", "U-LOC", "O", "U-PER", "B-LOC", "I-LOC", "L-LOC"]
    assert to_scheme(iob2, "IOB2", "IOB1") == iob1
    assert to_scheme(iob1, "IOB1", "BIOES") == bioes
    assert to_scheme(bilou, "BIOES", "IOB2") == iob2
    assert to_scheme(bilou, "BIOES", "BIOES") == bioes


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["B-LOC I-LOC O", "B-PER"], "IOB2"),
        (["I-LOC I-LOC O", "I-PER B-PER"], "IOB1"),
        (["I-LOC", "I-PER", "B-PER"], "IOB1"),
        (["B-LOC", "B-PER B-PER", "O I-PER"], "IOB2"),
        (["B-LOC", "S-PER"], "BIOES"),
        (["B-LOC L-LOC"], "BIOES"),
        (["O O", ""], "IOB2"),
        ([], "IOB2"),
    ],
)
def test_the_scheme_is_found(texts: list[str], expected: str) -> None:
    assert detect_scheme([text.split() for text in texts]) == expected


@pytest.mark.parametrize("tag", ["FOO", "X-LOC", "B-", "B", "", "-LOC", "o", "BI-LOC", "B_LOC"])
def test_a_wrong_tag_is_named(tag: str) -> None:
    expected = rf"^word 1 has the tag {tag!r}; expected O, or one of B-, I-, E-, S-, L-, U- and an entity type$"
    for read in (spans, check_tags):
        with pytest.raises(ValueError, match=expected):
            read(["O", tag])
    with pytest.raises(ValueError, match=r"^text 1: word 0 has the tag"):
        detect_scheme([["O"], [tag]])
    with pytest.raises(ValueError, match="word 0 has the tag"):
        tag_labels([["O"], [tag]])


def test_a_tag_of_another_scheme_is_named() -> None:
    check_tags(["O", "B-LOC", "E-LOC"], "BIOES")
    for scheme in ("IOB1", "IOB2"):
        with pytest.raises(ValueError, match="word 2 has the tag 'E-LOC'; expected O, or one of B-, I- and"):
            to_scheme(["O", "B-LOC", "E-LOC"], scheme, "BIOES")
    for source, target in (("IOB3", "IOB2"), ("IOB2", "IOB3")):
        with pytest.raises(ValueError, match="unknown scheme 'IOB3'; expected one of IOB1, IOB2, BIOES"):
            to_scheme([], source, target)


def test_labels_start_with_outside_and_go_by_type() -> None:
    assert tag_labels([["I-PER", "B-PER"], ["B-LOC", "O"]]) == ["O", "B-LOC", "B-PER", "I-PER"]
    assert tag_labels([["E-a-b", "S-a-b", "B-a-b"], ["U-LOC"]]) == ["O", "U-LOC", "B-a-b", "E-a-b", "S-a-b"]
    assert tag_labels([]) == ["O"]
