"""From the logits of tokens to entities in a text, as transformers' token-classification pipeline groups them.

`TokenClassificationPipeline` of transformers 4.57 is the reference: its strategies, its scores, its words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Activation
from service.engine.postprocess import FloatArray, activate
from service.engine.tokenization import Encoding, Tokenizer

T = TypeVar("T")

_BEGINNING, _ENDING = frozenset("BSU"), frozenset("ESLU")  # prefixes of BIO, BIOES and BILOU
_PREFIXES = _BEGINNING | _ENDING | {"I"}


class Strategy(StrEnum):
    """How tokens become entities; all but NONE join neighbors with the same tag."""

    NONE = "none"  # every token is one
    SIMPLE = "simple"  # tokens as they are tagged
    FIRST = "first"  # a word has the tag of its first token
    AVERAGE = "average"  # a word has the tag whose mean score over its tokens is highest
    MAX = "max"  # a word has the tag of its surest token


@dataclass(frozen=True, slots=True)
class Entity:
    """A part of the text, from character `start` up to `end`; `index` is the token's place, of single tokens alone."""

    entity: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


class _Token(NamedTuple):
    word: str
    scores: NDArray[np.float32]  # (C,)
    start: int
    end: int
    place: int
    continues: bool  # the word of the token before it


class _Tagged(NamedTuple):
    tag: str
    score: float
    word: str
    start: int
    end: int


class Tagger:
    """Groups the tokens of one bundle's model; `labels` are its tags in the order of its outputs."""

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[str], activation: Activation, temperature: float) -> None:
        self._tokenizer = tokenizer
        self._labels = labels
        self._activation = activation
        self._temperature = temperature

    def entities(
        self,
        text: str,
        outputs: Sequence[tuple[FloatArray, Encoding]],
        strategy: Strategy,
        ignored: frozenset[str],
    ) -> list[Entity]:
        """Return the entities of one text but those with an ignored tag, in order.

        `outputs` are, for each of its windows, the logits (T, C) of its tokens, more rows than tokens allowed, and
        its encoding. Where windows overlap the longer entity counts, and among equals the surer one.
        """
        found: list[Entity] = []
        for logits, encoding in outputs:
            tokens = self._tokens(text, logits, encoding)
            found += [entity for entity in self._group(tokens, strategy) if entity.entity not in ignored]
        return _without_overlaps(found) if len(outputs) > 1 else found

    def _tokens(self, text: str, logits: FloatArray, encoding: Encoding) -> list[_Token]:
        assert encoding.offsets is not None, "the tokenizer gives no offsets"  # noqa: S101
        scores = activate(logits[: encoding.tokens], self._activation, self._temperature)
        tokens = []
        for index, (token_id, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
            if start < 0:
                continue
            word, in_text = self._tokenizer.token(token_id), text[start:end]
            if token_id == self._tokenizer.unknown_id:
                word, continues = in_text, False
            elif self._tokenizer.marks_continuation:
                continues = len(word) != len(in_text)
            else:
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            tokens.append(_Token(word, scores[index], start, end, index, continues))
        return tokens

    def _group(self, tokens: list[_Token], strategy: Strategy) -> list[Entity]:
        if strategy is Strategy.NONE:
            return [
                Entity(tagged.tag, tagged.score, tagged.word, tagged.start, tagged.end, token.place)
                for token in tokens
                for tagged in [self._tag(token)]
            ]
        if strategy is Strategy.SIMPLE:
            tagged = [self._tag(token) for token in tokens]
        else:
            tagged = [self._tag_word(word, strategy) for word in _runs(tokens, lambda _, token: token.continues)]
        return [self._join(run) for run in _runs(tagged, _go_together)]

    def _tag(self, token: _Token) -> _Tagged:
        best = int(token.scores.argmax())
        return _Tagged(self._labels[best], float(token.scores[best]), token.word, token.start, token.end)

    def _tag_word(self, tokens: list[_Token], strategy: Strategy) -> _Tagged:
        if strategy is Strategy.FIRST:
            scores = tokens[0].scores
        elif strategy is Strategy.MAX:
            scores = max(tokens, key=lambda token: float(token.scores.max())).scores
        else:
            scores = np.stack([token.scores for token in tokens]).mean(axis=0)
        best = int(scores.argmax())
        word = self._tokenizer.join([token.word for token in tokens])
        return _Tagged(self._labels[best], float(scores[best]), word, tokens[0].start, tokens[-1].end)

    def _join(self, run: list[_Tagged]) -> Entity:
        score = float(np.mean([tagged.score for tagged in run]))
        word = self._tokenizer.join([tagged.word for tagged in run])
        # named as transformers does: whatever precedes the first hyphen is taken for the prefix
        return Entity(run[0].tag.split("-", 1)[-1], score, word, run[0].start, run[-1].end)


def _runs(items: Sequence[T], belongs: Callable[[T, T], bool]) -> list[list[T]]:
    """Cut into runs of which each item belongs to the one before it."""
    runs: list[list[T]] = []
    for item in items:
        if runs and belongs(runs[-1][-1], item):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _go_together(before: _Tagged, tagged: _Tagged) -> bool:
    """Say whether a tag continues the entity before it; transformers knows B and I alone."""
    (last_prefix, last_name), (prefix, name) = _parts(before.tag), _parts(tagged.tag)
    return name == last_name and prefix not in _BEGINNING and last_prefix not in _ENDING


def _parts(tag: str) -> tuple[str, str]:
    """Split B-PER into B and PER; a tag without a prefix continues what has the same name."""
    prefix, hyphen, name = tag.partition("-")
    return (prefix, name) if hyphen and prefix in _PREFIXES else ("I", tag)


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
            kept[-1] = entity
    return kept
