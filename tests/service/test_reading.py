"""What is read of long texts, in the engine; scores are compared with transformers in tests/dialects."""

import asyncio

import pytest
import transformers

from service.engine.queue import Entry, Refusal
from service.engine.tokenization import HEAD, Keep, Reading, Tokenizer
from service.errors import InvalidInputError
from tests.service.fakes import make, scenario
from tests.service.test_queue import queue
from tests.support.bundles import WORDS, tiny_tokenizer

LENGTH = 8
TEXT = " ".join(WORDS)


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json", LENGTH)


@pytest.fixture
def reference(tmp_path):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), model_max_length=LENGTH, pad_token="[PAD]"
    )


@pytest.mark.parametrize("stride", [0, 2, (LENGTH - 2) // 2])
def test_windows_are_those_of_transformers(tokenizer, reference, stride) -> None:
    expected = reference(TEXT, truncation=True, return_overflowing_tokens=True, stride=stride)["input_ids"]
    short, (found) = tokenizer.encode(["good", TEXT], Reading(Keep.WINDOWS, stride))
    assert [window.ids for window in (found, *found.windows)] == expected
    assert not any(window.truncated or window.windows for window in (short, *found.windows))
    assert tokenizer.encode([TEXT])[0].ids == expected[0]  # the other ways leave the usual one alone


def test_the_tail_is_kept(tokenizer, reference) -> None:
    reference.truncation_side = "left"
    for given in (TEXT, ("good film", TEXT)):
        expected = reference(*([given] if isinstance(given, str) else given), truncation=True)["input_ids"]
        (found,) = tokenizer.encode([given], Reading(Keep.TAIL))
        assert (found.ids, found.truncated) == (expected, True)


@pytest.mark.parametrize("given", [TEXT, (TEXT, "a good movie")])
def test_what_is_to_be_read_whole_says_how_long_it_is(tokenizer, reference, given) -> None:
    whole = len(reference(*([given] if isinstance(given, str) else given))["input_ids"])
    short, found = tokenizer.encode(["good", given], Reading(Keep.WHOLE))
    assert (short.truncated, short.whole) == (False, None)
    assert (found.truncated, found.whole) == (True, whole)


def test_a_stride_beyond_the_text_is_taken_for_the_most(tokenizer) -> None:
    (found,) = tokenizer.encode([TEXT], Reading(Keep.WINDOWS, 1000))
    (most,) = tokenizer.encode([TEXT], Reading(Keep.WINDOWS, tokenizer.most_stride))
    assert found == most


def test_a_request_may_turn_out_to_be_more_entries_than_were_reserved() -> None:
    target = queue(capacity_entries=4)
    assert target.reserve(1) is target.reserve(1) is None
    assert target.admit([Entry(1) for _ in range(3)], 0.0, 1) is None
    assert (target.waiting_entries, target.reserved_entries) == (3, 1)
    assert target.admit([Entry(1) for _ in range(2)], 0.0, 1) is Refusal.ENTRIES_NOW
    assert (target.waiting_entries, target.reserved_entries) == (3, 0)
    target.reserve(1)
    assert target.admit([Entry(1) for _ in range(5)], 0.0, 1) is Refusal.ENTRIES_EVER
    assert (target.waiting_entries, target.reserved_entries, target.waiting_tokens) == (3, 0, 3)


def in_threes(model):
    """Make the model's tokenizer read windows of three characters."""
    plain = model.tokenize

    def tokenize(inputs, reading=HEAD):
        if reading.keep is not Keep.WINDOWS:
            return plain(inputs)
        found = []
        for text in inputs:
            first, *others = plain([text[start : start + 3] for start in range(0, len(text), 3)])
            object.__setattr__(first, "windows", tuple(others))
            found.append(first)
        return found

    model.tokenize = tokenize


def test_requests_read_in_different_ways_share_batches() -> None:
    async def test(model):
        in_threes(model)
        model.tokenize_gate.clear()
        _, batcher = make(model)
        first = batcher.submit(["a"])
        await asyncio.sleep(0.02)  # the tokenizer is busy with it: the others go together
        windows = batcher.submit(["aaaaaaa", "bb"], reading=Reading(Keep.WINDOWS))
        plain = batcher.submit(["aaaa"])
        model.tokenize_gate.set()
        assert [float(one.output[0]) for one in await windows] == [3, 3, 1, 2]
        assert [len(one.encoding.windows) for one in await windows] == [2, 0, 0, 0]
        assert [float(one.output[0]) for one in await plain] == [4]
        await first
        await batcher.close(5)

    scenario(test)


def test_more_windows_than_the_queue_holds_are_refused() -> None:
    async def test(model):
        in_threes(model)
        target, batcher = make(model, capacity_entries=4)
        with pytest.raises(InvalidInputError, match="found 5 windows, more than the queue ever holds"):
            await batcher.classify(["a" * 15], reading=Reading(Keep.WINDOWS))
        assert [float(one.output[0]) for one in await batcher.classify(["ab"])] == [2]
        assert (target.waiting_entries, target.reserved_entries) == (0, 0)
        await batcher.close(5)

    scenario(test)
