"""What a word is, how far a text is read, and what is left of a text without a word."""

import pytest

from service.engine.tokenization import Reach, Tokenizer
from service.occlusion import Span, grouped, variants, words_of
from tests.support.tokenizers import KINDS


def whole(*texts: str) -> Reach:
    return Reach(9, tuple(map(len, texts)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A moving, beautifully acted film.", ["A", "moving", ",", "beautifully", "acted", "film", "."]),
        ("don't stop... won’t!!! ever", ["don't", "stop", "...", "won’t", "!!!", "ever"]),
        ("3.5 of 1,000 (good-natured)", ["3.5", "of", "1,000", "(", "good", "-", "natured", ")"]),
        ("\tcafe\u0301  e\u0301te\u0301\n", ["cafe\u0301", "e\u0301te\u0301"]),
        ("👩‍👩‍👧 ok 👍🏽 🇩🇪🇫🇷", ["👩‍👩‍👧", "ok", "👍🏽", "🇩🇪", "🇫🇷"]),
        ("👍👍great", ["👍", "👍", "great"]),
        ("הסרט היה נהדר!", ["הסרט", "היה", "נהדר", "!"]),
        ("می‌خواهم فیلم", ["می‌خواهم", "فیلم"]),
        ("这部电影很好。OK", ["这", "部", "电", "影", "很", "好", "。", "OK"]),
        ("ラーメンを食べた", ["ラーメン", "を", "食", "べ", "た"]),
        ("영화가 좋다", ["영화가", "좋다"]),
        ("हिन्दी फ़िल्म", ["हिन्दी", "फ़िल्म"]),
        ("a\x00b \u200b \u2028c", ["a", "\x00", "b", "\u200b", "c"]),
    ],
)
def test_a_word_is_what_a_reader_takes_for_one(text, words):
    found, left_out = words_of(text, whole(text))
    assert [text[start:end] for _, start, end in found] == words
    assert left_out == 0


def test_neighbors_are_put_together_and_no_word_is_lost():
    words = words_of(("a b c d e", "f g h"), whole("a b c d e", "f g h"))[0]
    assert grouped(words, 8) == words
    assert grouped(words, 5) == [Span(0, 0, 3), Span(0, 4, 7), Span(0, 8, 9), Span(1, 0, 3), Span(1, 4, 5)]
    assert grouped(words, 2) == [Span(0, 0, 9), Span(1, 0, 5)]
    assert grouped([], 2) == []


def test_a_variant_lacks_one_word_and_ends_where_reading_ended():
    words = [Span(0, 4, 7), Span(1, 0, 1)]
    assert list(variants(("one two three", "x yz"), words, Reach(6, (7, 2)))) == [("one  ", "x "), ("one two", "  ")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "given",
    [
        "New York is not very good, the dull movie was great in Paris " * 3,
        "wonderful 👍🏽 players cafe\u0301 纽约 " * 5,
        ("the dull movie", "New York is not very good in Paris " * 4),
        ("not great in Paris " * 9, "wonderful playing players won't play " * 6),
    ],
)
def test_what_lies_beyond_a_texts_reach_is_not_read(tmp_path, kind, given):
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 24)
    reach = tokenizer.reach(given)
    texts = [given] if isinstance(given, str) else list(given)
    cut = [text[:end] for text, end in zip(texts, reach.ends, strict=True)]
    assert cut != texts
    whole_text, only_read = tokenizer.encode([given, cut[0] if len(cut) == 1 else tuple(cut)])
    assert whole_text.truncated
    assert only_read.ids == whole_text.ids
    assert reach.tokens == 24


def test_a_text_that_is_not_too_long_is_read_to_its_end(tmp_path):
    KINDS["wordpiece"]().save(str(tmp_path / "tokenizer.json"))
    reach = Tokenizer(tmp_path / "tokenizer.json", 24).reach(("good \u200b ", "dull"))
    assert reach.ends == (7, 4)
