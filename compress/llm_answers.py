"""From what a language model writes to how probable it holds each label: no network, no clock."""

import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.rows import FloatArray

Probabilities = NDArray[np.float64]
"""(C,): of one label (they add up to 1), or in multi-label of each label by itself."""

NOTHING = "none"
"""What a model answers in multi-label where no label applies."""

_PLACES = re.compile(r"\{(text|text_pair|labels)\}")
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "sorry",
    "i can't",
    "i cannot",
    "i won't",
    "i'm unable",
    "i am unable",
    "as an ai",
)
_LEAST_MASS = 0.5
"""Log-probabilities that name labels with less than this are no answer."""

_SINGLE = (
    "Classify the text. Answer with exactly one of these labels and nothing else: {labels}.\n\nText: {text}\n\nLabel:"
)
_MULTI = (
    "Which of these labels apply to the text: {labels}? Answer with those that apply, separated by commas, and nothing "
    f"else, or with {NOTHING}." + "\n\nText: {text}\n\nLabels:"
)
_PAIR = (
    "Classify the two texts together. Answer with exactly one of these labels and nothing else: {labels}.\n\n"
    "First text: {text}\n\nSecond text: {text_pair}\n\nLabel:"
)


class Kind(StrEnum):
    """What an answer was taken for."""

    ANSWERED = "answered"
    REFUSED = "refused"
    UNPARSABLE = "unparsable"


def default_prompt(*, multi_label: bool, paired: bool) -> str:
    """Return the template that is used where the recipe has none."""
    return _PAIR if paired else _MULTI if multi_label else _SINGLE


def filled(template: str, text: str, text_pair: str | None, answers: Sequence[str]) -> str:
    """Return the prompt for a text; braces that name nothing stay, and so do those in the text."""
    values = {"text": text, "text_pair": text_pair or "", "labels": ", ".join(answers)}
    return _PLACES.sub(lambda place: values[place[1]], template)


def said(choice: Mapping[str, Any]) -> str:
    """Return what a choice of a response says, without what a reasoning model thought aloud."""
    return _THOUGHTS.sub("", choice.get("content") or "").strip()


def kind_of(choice: Mapping[str, Any], *, named: bool) -> Kind:
    """Say what a choice is, given whether it names a label; a refusal in words counts where it names none."""
    if choice.get("refusal") or choice.get("finish_reason") == "content_filter":
        return Kind.REFUSED
    if named:
        return Kind.ANSWERED
    return Kind.REFUSED if plain(said(choice)).startswith(_REFUSALS) else Kind.UNPARSABLE


def named_label(content: str, answers: Sequence[str]) -> int | None:
    """Return the index of the one answer that `content` is or holds as whole words; None for none and for several.

    Case, and marks around it, do not count. Of answers that hold one another ("sport", "winter sport") the longest
    does.
    """
    text = plain(content)
    wanted = [plain(answer) for answer in answers]
    if text in wanted:
        return wanted.index(text)
    found = [] if text.startswith(_REFUSALS) else _held(text, wanted)
    return found[0] if len(found) == 1 else None


def named_labels(content: str, answers: Sequence[str]) -> list[int] | None:
    """Return the indices of all answers that `content` holds, none for "none"; None when it says neither."""
    text = plain(content)
    found = [] if text.startswith(_REFUSALS) else _held(text, [plain(answer) for answer in answers])
    return found if found or text == NOTHING else None


def from_logprobs(tokens: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Probabilities | None:
    """Return the probabilities (C,) of the answers that a response's log-probabilities give, or None where they do not.

    `tokens` are those of `choices[].logprobs.content`: each has `token`, `logprob` and `top_logprobs`. The probability
    of every alternative goes to the answer that begins so, in equal parts to all that do: how it would have gone on is
    not known. Where several begin with the token that was chosen, the next token decides among them: P(label) =
    P(prefix) · P(rest | prefix). They add up to 1 afterwards; tokens that name labels with less than half of the
    probability are no answer. Nor are those that were chosen if they go on to something else than the label that they
    began, as "It is French" does with Italian, or to another label.
    """
    wanted = [plain(answer) for answer in answers]
    mass = np.zeros(len(answers))
    raw, reached, decided = "", 1.0, None
    for token in tokens:
        chosen = str(token["token"])
        alternatives = {str(other["token"]): float(other["logprob"]) for other in token.get("top_logprobs") or ()}
        alternatives.setdefault(chosen, float(token["logprob"]))
        for piece, logprob in alternatives.items():
            meant = _meant(raw, piece, wanted)
            if len(meant) == 1 or piece != chosen:
                mass[meant] += reached * math.exp(min(logprob, 0.0)) / max(1, len(meant))
        meant = _meant(raw, chosen, wanted)
        decided = meant[0] if len(meant) == 1 else None
        if decided is not None or not _beginning(_begun(raw + chosen), wanted):
            break
        raw += chosen
        reached *= math.exp(min(float(token["logprob"]), 0.0))
    else:
        if _begun(raw) in wanted:
            decided = wanted.index(_begun(raw))
            mass[decided] += reached
    if decided is None:
        return None
    text = plain("".join(str(token["token"]) for token in tokens))
    cut_off = wanted[decided].startswith(text)
    named = text.startswith(wanted[decided]) and named_label(text, answers) == decided
    total = float(mass.sum())
    return mass / total if total >= _LEAST_MASS and (cut_off or named) else None


def from_votes(votes: Sequence[Sequence[int]], labels: int) -> Probabilities:
    """Return for each label (C,) the share of the votes, each a list of labels, that name it."""
    counts = np.zeros(labels)
    for vote in votes:
        counts[list(vote)] += 1
    return counts / len(votes)


def to_logits(probabilities: Probabilities, smoothing: float, *, multi_label: bool) -> FloatArray:
    """Return logits (C,) float32 whose softmax (multi-label: sigmoid) are the smoothed probabilities.

    (1 − s) · p + s / C, in multi-label (1 − s) · p + s / 2, as label smoothing does (Szegedy et al. 2016, section 7): a
    label that was never named is improbable, not impossible. Logits of one label add up to 0, so that they can be
    averaged with a model's.
    """
    if multi_label:
        smooth = (1 - smoothing) * probabilities + smoothing / 2
        return np.asarray(np.log(smooth / (1 - smooth)), dtype=np.float32)
    logs = np.log((1 - smoothing) * probabilities + smoothing / len(probabilities))
    return np.asarray(logs - logs.mean(), dtype=np.float32)


def plain(text: str) -> str:
    """Return a text in lower case, with single spaces and without the marks at its ends, as answers are compared."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", " ".join(text.casefold().replace("’", "'").split()))


def _held(text: str, wanted: Sequence[str]) -> list[int]:
    """Return which answers stand in a text as whole words, and not only within a longer answer that stands there."""
    spans = [
        (match.start(), match.end(), index)
        for index, answer in enumerate(wanted)
        for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text)
    ]
    return sorted(
        {
            index
            for begin, end, index in spans
            if not any(b <= begin and end <= e and e - b > end - begin for b, e, _ in spans)
        }
    )


def _meant(raw: str, piece: str, wanted: Sequence[str]) -> list[int]:
    """Return which answers may be meant when `piece` comes after `raw`; none where it says nothing of that."""
    before, after = _begun(raw), _begun(raw + piece)
    found = _beginning(after, wanted)
    ends = after == before or not found  # a full stop, or a token that ends the answer
    if len(found) != 1 and ends:
        return [wanted.index(before)] if before in wanted and not piece[:1].isalnum() else []
    return found


def _begun(raw: str) -> str:
    """Return what an answer begins with, as `plain` writes it but for marks that may stand within it."""
    text = re.sub(r"^[\W_]+", "", " ".join(raw.casefold().replace("’", "'").split()))
    return text.rstrip(" \"'`*.,:;)]}")


def _beginning(begun: str, wanted: Sequence[str]) -> list[int]:
    """Return which answers begin so; all of them for nothing."""
    return [index for index, answer in enumerate(wanted) if answer.startswith(begun)]
