"""Tags of words: the entities they spell, their schemes, and the way from one scheme to another.

A tag is `O`, or a prefix, a dash and an entity type: `B-LOC`. All schemes are read by one rule, that of conlleval: an
entity begins at B or S, at a tag after O, E or S, and where the type changes. IOB1 and IOB2 differ only in what they
write, so a file that mixes them, or a model that predicts `O I-LOC`, is read without a guess.
"""

from collections.abc import Iterator, Sequence

Span = tuple[str, int, int]
"""Entity type, first word, last word (both counted from 0, both inside)."""

OUTSIDE = "O"
PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIESLU"}
"""Scheme -> the prefixes it may be read with; BILOU's L and U are read as E and S."""

_READ_AS = {"L": "E", "U": "S"}
_ALL_PREFIXES = PREFIXES["BIOES"]
_BEGINS = {"B", "S"}
_ENDS = {OUTSIDE, "E", "S"}


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of one text, first to last, as seqeval's `get_entities` and conlleval find them.

    Raises ValueError naming the first tag that is none.
    """
    found: list[Span] = []
    before, before_type = OUTSIDE, ""
    begin = 0
    for word, tag in enumerate([*tags, OUTSIDE]):
        prefix, entity_type = _parse(tag, word, _ALL_PREFIXES)
        changed = before_type != entity_type
        if before != OUTSIDE and (before in _ENDS or prefix in _BEGINS or changed):
            found.append((before_type, begin, word - 1))
        if prefix != OUTSIDE and (before in _ENDS or prefix in _BEGINS or changed):
            begin = word
        before, before_type = prefix, entity_type
    return found


def check_tags(tags: Sequence[str], scheme: str | None = None) -> None:
    """Raise ValueError naming the first tag that is none, or none of `scheme` (IOB1, IOB2 or BIOES)."""
    prefixes = _ALL_PREFIXES if scheme is None else _prefixes(scheme)
    for word, tag in enumerate(tags):
        _parse(tag, word, prefixes)


def detect_scheme(sequences: Sequence[Sequence[str]]) -> str:
    """Return the scheme, IOB1, IOB2 or BIOES, that the tags of all texts are written in.

    Any E, S, L or U makes it BIOES. Else IOB1 and IOB2 differ in the first word of an entity that does not follow one
    of its own type: I in IOB1, B in IOB2; the more frequent counts (a few slips don't change a file's scheme), and
    IOB2 where there is neither. Raises ValueError naming the first tag that is none.
    """
    begin_with = {"B": 0, "I": 0}
    for index, tags in enumerate(sequences):
        try:
            found = spans(tags)
        except ValueError as error:
            raise ValueError(f"text {index}: {error}") from error
        if any(tag[0] in "ESLU" for tag in tags):
            return "BIOES"
        for (_, begin, _), follows in zip(found, _follows_its_like(found), strict=True):
            if not follows:
                begin_with[tags[begin][0]] += 1
    return "IOB1" if begin_with["I"] > begin_with["B"] else "IOB2"


def to_scheme(tags: Sequence[str], source: str, target: str) -> list[str]:
    """Return the same entities, written in `source` (IOB1, IOB2 or BIOES), as scheme `target` writes them.

    Raises ValueError naming the first tag that is none of `source`.
    """
    _prefixes(target)
    check_tags(tags, source)
    found = spans(tags)
    written = [OUTSIDE] * len(tags)
    for (entity_type, begin, end), follows in zip(found, _follows_its_like(found), strict=True):
        prefixes = ["I"] * (end - begin + 1)
        if target != "IOB1" or follows:
            prefixes[0] = "B"
        if target == "BIOES":
            prefixes[-1] = "S" if begin == end else "E"
        written[begin : end + 1] = [f"{prefix}-{entity_type}" for prefix in prefixes]
    return written


def tag_labels(sequences: Sequence[Sequence[str]]) -> list[str]:
    """Return the tags that occur, in the order of a model's output ids: O (always), then by type: B, I, E, S, L, U.

    Raises ValueError naming the first tag that is none.
    """
    found = {_parse(tag, word, _ALL_PREFIXES, read_as={}) for tags in sequences for word, tag in enumerate(tags)}
    entity_tags = sorted(
        (pair for pair in found if pair[0] != OUTSIDE), key=lambda pair: (pair[1], _ALL_PREFIXES.index(pair[0]))
    )
    return [OUTSIDE, *(f"{prefix}-{entity_type}" for prefix, entity_type in entity_tags)]


def _parse(tag: str, word: int, prefixes: str, read_as: dict[str, str] = _READ_AS) -> tuple[str, str]:
    """Return prefix and type of a tag; the type of O is empty."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, entity_type = tag.partition("-")
    if dash and entity_type and prefix in set(prefixes):
        return read_as.get(prefix, prefix), entity_type
    expected = ", ".join(f"{letter}-" for letter in prefixes)
    raise ValueError(f"word {word} has the tag {tag!r}; expected O, or one of {expected} and an entity type")


def _follows_its_like(found: Sequence[Span]) -> Iterator[bool]:
    """Yield for each span whether the word before it ends an entity of the same type."""
    before: Span | None = None
    for span in found:
        yield before is not None and before[0] == span[0] and before[2] == span[1] - 1
        before = span


def _prefixes(scheme: str) -> str:
    if scheme not in PREFIXES:
        raise ValueError(f"unknown scheme {scheme!r}; expected one of {', '.join(PREFIXES)}")
    return PREFIXES[scheme]
