"""Rebuilt tokenizers, against the originals and against transformers' own WordPiece in Python."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer

from compress.errors import ModelError
from compress.tokens import check_kind, kept_ids, rebuilt
from tests.support.bundles import tiny_tokenizer
from tests.support.tokenizers import CORPUS, KINDS, wordpiece

KEPT_WORDS = "the movie was not very good , players play in Paris"
WORDS = sorted({word for line in CORPUS for word in line.split()})
LETTERS = sorted(set("".join(WORDS)))


def document_of(tokenizer: Tokenizer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def pruned(tokenizer: Tokenizer, text: str = KEPT_WORDS) -> tuple[Tokenizer, list[int]]:
    document = document_of(tokenizer)
    ids = kept_ids(document, set(tokenizer.encode(text).ids))
    return Tokenizer.from_str(json.dumps(rebuilt(document, ids))), ids


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[], Tokenizer]:
    return KINDS[request.param]


def test_a_character_that_only_pieces_have_does_not_become_unknown() -> None:
    """Of Unigram as of WordPiece; here no piece is "▁" alone or an "e" alone."""
    pieces = ["<unk>", "▁the", "▁movie", "▁m", "o", "v", "i", "t", "h", "▁to", "ie"]
    model = models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], unk_id=0)
    old = Tokenizer(model)
    old.pre_tokenizer = pre_tokenizers.Metaspace()
    document = document_of(old)
    ids = kept_ids(document, set(old.encode("to").ids))
    new = Tokenizer.from_str(json.dumps(rebuilt(document, ids)))
    assert {"▁the", "ie"} <= new.get_vocab().keys()
    for text in ("the movie", "to", "movi", "tie the"):
        assert "<unk>" not in [new.id_to_token(index) for index in new.encode(text).ids] or "<unk>" in [
            old.id_to_token(index) for index in old.encode(text).ids
        ]
    assert new.encode("movie").tokens == ["▁movie"]


def test_tokens_go_and_ids_have_no_gaps(kind: Callable[[], Tokenizer]) -> None:
    old = kind()
    new, ids = pruned(old)
    assert len(ids) < old.get_vocab_size()
    assert sorted(new.get_vocab().values()) == list(range(len(ids)))
    assert [new.id_to_token(place) for place in range(len(ids))] == [old.id_to_token(index) for index in ids]


def test_texts_of_kept_pieces_are_cut_as_before(kind: Callable[[], Tokenizer]) -> None:
    old = kind()
    new, ids = pruned(old)
    source = random.Random(0)
    same = 0
    for _ in range(300):
        text = " ".join(source.choices(WORDS, k=source.randint(1, 6)))
        before, after = old.encode(text), new.encode(text)
        if set(before.ids) <= set(ids):
            assert after.tokens == before.tokens, text
            assert [ids[index] for index in after.ids] == before.ids
            assert after.offsets == before.offsets
            same += 1
    assert 20 < same < 300


@given(text=st.text(alphabet=[*LETTERS, " "], min_size=1, max_size=30))
@pytest.mark.parametrize("name", KINDS)
def test_nothing_becomes_unencodable(name: str, text: str) -> None:
    old, new = TOKENIZERS[name]
    if "[UNK]" not in old.encode(text).tokens and "<unk>" not in old.encode(text).tokens:
        assert not {"[UNK]", "<unk>"} & set(new.encode(text).tokens)


TOKENIZERS = {name: (make(), pruned(make())[0]) for name, make in KINDS.items()}


def test_wordpiece_is_transformers_own(tmp_path: Path) -> None:
    """BertTokenizer in Python, of a vocabulary file with the kept tokens."""
    new, ids = pruned(wordpiece())
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("".join(f"{new.id_to_token(place)}\n" for place in range(len(ids))))
    reference = BertTokenizer(str(vocabulary), do_lower_case=True)
    source = random.Random(1)
    for _ in range(200):
        text = " ".join(source.choices([*WORDS, "unseen", "Éclair", "日本"], k=source.randint(1, 8)))
        assert new.encode(text).ids == reference(text)["input_ids"], text
        assert new.encode(text, "good").ids == reference(text, "good")["input_ids"]


def test_a_piece_with_a_letter_of_no_other_piece_stays() -> None:
    document = document_of(wordpiece())
    vocabulary = document["model"]["vocab"]
    vocabulary["##wq"] = len(vocabulary)  # there is no "##q"
    assert "##q" not in vocabulary
    assert vocabulary["##wq"] in kept_ids(document, [])
    assert vocabulary["play"] not in kept_ids(document, [])


def test_merges_between_letters_and_a_kept_piece_stay() -> None:
    merges = [("l", "o"), ("w", "e"), ("lo", "we"), ("lowe", "r"), ("e", "r")]
    letters = ["l", "o", "w", "e", "r"]
    tokens = [*letters, "lo", "we", "lowe", "lower", "er"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    document = document_of(tokenizer)
    ids = kept_ids(document, [tokens.index("lower")])
    assert [tokens[index] for index in ids] == [*letters, "lo", "we", "lowe", "lower"]
    new = Tokenizer.from_str(json.dumps(rebuilt(document, ids)))
    assert new.encode("lower").tokens == tokenizer.encode("lower").tokens == ["lower"]
    assert new.encode("er").tokens == ["e", "r"]


def test_merges_written_as_strings_are_read() -> None:
    document = document_of(KINDS["byte-level"]())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    old = KINDS["byte-level"]()
    ids = kept_ids(document, set(old.encode(KEPT_WORDS).ids))
    new = Tokenizer.from_str(json.dumps(rebuilt(document, ids)))
    assert new.encode(KEPT_WORDS).tokens == old.encode(KEPT_WORDS).tokens


def test_the_least_probable_piece_of_unigram_stays() -> None:
    document = document_of(KINDS["sentencepiece"]())
    scores = [score for _, score in document["model"]["vocab"]]
    assert scores.index(min(scores)) in kept_ids(document, [])


def test_padding_keeps_its_token() -> None:
    tokenizer = wordpiece()
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[MASK]"), pad_token="[MASK]")
    new, ids = pruned(tokenizer)
    assert new.padding is not None
    assert new.padding["pad_id"] == new.token_to_id("[MASK]") == len(ids) - 1


def test_whole_words_cannot_be_made_of_smaller_ones() -> None:
    with pytest.raises(ModelError, match="the tokenizer is WordLevel, and a word that is not in it has no smaller"):
        check_kind(document_of(tiny_tokenizer()))
