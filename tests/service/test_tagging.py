"""Entities of tags that transformers' pipeline does not know; the others are compared with it in tests/dialects."""

import numpy as np
import pytest

from bundle.manifest import Activation
from service.engine.tagging import Strategy, Tagger
from service.engine.tokenization import Tokenizer
from tests.support.bundles import tiny_tokenizer

LABELS = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "L-PER", "U-PER", "PER"]
TEXT = "good bad great awful"


@pytest.fixture
def tagger(tmp_path):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 16, offsets=True)
    return Tagger(tokenizer, LABELS, Activation.SOFTMAX, 1.0), tokenizer


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["B-PER", "I-PER", "E-PER", "O"], ["good bad great"]),
        (["S-PER", "S-PER", "O", "S-PER"], ["good", "bad", "awful"]),
        (["S-PER", "I-PER", "E-PER", "I-PER"], ["good", "bad great", "awful"]),
        (["B-PER", "L-PER", "U-PER", "B-PER"], ["good bad", "great", "awful"]),
        (["PER", "PER", "O", "PER"], ["good bad", "awful"]),
        (["B-PER", "B-PER", "I-PER", "PER"], ["good", "bad great awful"]),
    ],
)
def test_entities_begin_and_end_where_their_tags_say(tagger, tags, words) -> None:
    grouper, tokenizer = tagger
    (encoding,) = tokenizer.encode([TEXT])
    logits = np.full((encoding.tokens + 3, len(LABELS)), -5, dtype=np.float32)  # three rows of padding
    for place, tag in enumerate(tags, start=1):  # after [CLS]
        logits[place, LABELS.index(tag)] = 5
    found = grouper.entities(TEXT, [(logits, encoding)], Strategy.SIMPLE, frozenset("O"))
    assert [TEXT[one.start : one.end] for one in found] == words
    assert {one.entity for one in found} == {"PER"}
    assert all(0.99 < one.score <= 1 for one in found)


def test_a_text_without_entities_has_none(tagger) -> None:
    grouper, tokenizer = tagger
    (encoding,) = tokenizer.encode([TEXT])
    logits = np.zeros((encoding.tokens, len(LABELS)), dtype=np.float32)
    logits[:, 0] = 1
    for strategy in Strategy:
        assert grouper.entities(TEXT, [(logits, encoding)], strategy, frozenset("O")) == []
