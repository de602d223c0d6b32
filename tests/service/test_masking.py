"""The masker against examples written by hand, and what must hold for any text."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.masking import mask

EXAMPLES = [
    json.loads(line)
    for line in Path(__file__).with_name("masking_examples.jsonl").read_text(encoding="utf-8").splitlines()
]
POSITIVE = [example for example in EXAMPLES if "masked" in example]
LOOK_ALIKES = [example["text"] for example in EXAMPLES if "masked" not in example]
KINDS = {"CARD", "CREDENTIALS", "EMAIL", "IBAN", "IP", "PHONE", "RESIDENT_ID", "SSN"}
TAG = re.compile(rf"\[(?:{'|'.join(KINDS)})\]")


def test_recall_and_precision(capsys: pytest.CaptureFixture[str]) -> None:
    """A positive is found only if its whole masked text is as written; whatever else is masked is a false alarm."""
    missed = [(e["text"], mask(e["text"])) for e in POSITIVE if mask(e["text"]) != e["masked"]]
    alarms = [(text, mask(text)) for text in LOOK_ALIKES if mask(text) != text]
    right = len(POSITIVE) - len(missed)
    wrong = len(alarms) + sum(masked != text for text, masked in missed)
    recall, precision = right / len(POSITIVE), right / (right + wrong)
    figures = f"recall {recall:.3f} of {len(POSITIVE)}, precision {precision:.3f} with {len(LOOK_ALIKES)} look-alikes"
    with capsys.disabled():
        print(f"\nmasking: {figures}")  # noqa: T201
    assert len(POSITIVE) >= 200
    assert len(LOOK_ALIKES) >= 200
    assert recall >= 0.98, missed
    assert precision >= 0.98, alarms


def test_every_kind_is_among_the_examples() -> None:
    kinds = {tag for example in POSITIVE for tag in TAG.findall(example["masked"])}
    assert kinds == {f"[{kind}]" for kind in KINDS}


# Texts that are like what the masker looks for, put together at random: whole and broken findings, and what joins them.
PIECES = st.sampled_from([
    *(TAG.sub("", text) for text in LOOK_ALIKES),
    *(example["text"] for example in POSITIVE),
    *"0123456789.:-@/+ ,()=?&#_axXé一１＠　$\uffff[]",
    *("[EMAIL]", "[PHONE]", "://", "::", "ssn ", "a@b.co", "13800138000", "4111111111111111", "1.2.3.4", "+86", "00"),
])  # fmt: skip
HARD_TEXTS = (
    st.lists(PIECES, max_size=8).map("".join) | st.text(alphabet="0123456789 .:-@/+abXf", max_size=80) | st.text()
)


@given(HARD_TEXTS)
def test_masking_twice_is_masking_once(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@given(HARD_TEXTS)
def test_what_is_not_masked_stays_byte_for_byte(text: str) -> None:
    kept = TAG.split(mask(text))
    assert text.startswith(kept[0])
    assert text.endswith(kept[-1])
    position = 0
    for part in kept:
        position = text.find(part, position)
        assert position >= 0, part
        position += len(part)


@given(st.text().filter(lambda text: not any(c.isdecimal() or c in "@:=＠：＝" for c in text)))
def test_text_without_digits_at_signs_colons_and_equals_signs_stays(text: str) -> None:
    assert mask(text) == text


def with_another_digit(number: str, place: int, step: int) -> str:
    places = [i for i, c in enumerate(number) if c in "0123456789"]
    i = places[place % len(places)]
    return number[:i] + str((int(number[i]) + step) % 10) + number[i + 1 :]


CHECKED = [
    ("4242 4242 4242 4242", "[CARD]"),
    ("378282246310005", "[CARD]"),
    ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
    ("GB82WEST12345698765432", "[IBAN]"),
    ("440524188001010014", "[RESIDENT_ID]"),
    ("11010519491231002X", "[RESIDENT_ID]"),
]


@given(st.sampled_from(CHECKED), st.integers(0, 40), st.integers(1, 9))
def test_one_wrong_digit_is_enough_for_no_finding(checked: tuple[str, str], place: int, step: int) -> None:
    number, tag = checked
    assert mask(f"it is {number}!") == f"it is {tag}!"
    assert tag not in mask(f"it is {with_another_digit(number, place, step)}!")


HOSTILE = [
    "a", "1", "1 ", "@", "a@", "a.", "a@a.", ":", "::", "1:", "1.", "1-", "+", "+1 ", "+1 22 33 44 55 66 77 ", "4444 ",
    "62 ", "DE12 ", "de12" + "a" * 30 + " ", "a://", "a://" + "b" * 300, "?token=", "?" + "a-" * 40, "ssn 123", "(",
    "13800138001 ", " ", "１", "\uffff", "[EMAIL]", "110105194912310020 ", "2001:db8:", "ord no ", "o'", "'a",
    "a" * 64 + ".",
]  # fmt: skip


@pytest.mark.parametrize("size", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("piece", HOSTILE, ids=range(len(HOSTILE)))
def test_a_megabyte_of_anything_is_masked_in_linear_time(piece: str, size: int) -> None:
    """A pattern that goes over the rest of the text from every place takes hours, and the suite's time-out ends it."""
    mask((piece * (size // len(piece) + 1))[:size])
