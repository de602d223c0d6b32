"""What a model's score owes to each word of a text, by occlusion (Zeiler and Fergus 2014): pure functions.

A word is what a reader takes for one, whatever the model's tokenizer makes of it: a run of letters and digits with the
marks on them and apostrophes inside; a character of Chinese or of Thai and other scripts that put no spaces between
words; a run of one punctuation mark; an emoji, however many code points it has.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from service.engine.tokenization import Reach, TextInput

BLANK = " "
"""What stands in a word's place: a space, so that its neighbors do not become one word."""

# In the regular expressions of Oniguruma, which the tokenizers' library brings.
_ALONE = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts without spaces between words
_IN_WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}_\u200c\u200d\u00ad]&&[^{_ALONE}]]"  # joiners and the soft hyphen among them
_INSIDE = r"(?:['’]|(?<=\p{N})[.,](?=\p{N}))"  # don't, 3.5
_WORD = rf"[{_ALONE}]\p{{M}}*|{_IN_WORD}+(?:{_INSIDE}{_IN_WORD}+)*|(\p{{P}})\1*|(?!\s)\X"


class Span(NamedTuple):
    """Characters `start` to `end` (Unicode code points) of an input's text, or with `part` 1 of the pair's second."""

    part: int
    start: int
    end: int


def _splitter() -> FastTokenizer:
    splitter = FastTokenizer(models.WordLevel({"": 0}, unk_token=""))
    splitter.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    return splitter


_SPLITTER = _splitter()


def words_of(given: TextInput, reach: Reach) -> tuple[list[Span], int]:
    """Return the words that the model reads, at least a part of each, and the number of those that it does not."""
    found = _SPLITTER.encode_batch(list(parts_of(given)))  # which lets other threads run, as `encode` does not
    read: list[Span] = []
    total = 0
    for part, (words, end) in enumerate(zip(found, reach.ends, strict=True)):
        spans = words.offsets
        total += len(spans)
        read += [Span(part, start, min(stop, end)) for start, stop in spans[: bisect_left(spans, (end,))]]
    return read, total - len(read)


def grouped(words: Sequence[Span], most: int) -> list[Span]:
    """Put neighbors of one text together, equally many, until there are at most `most` (2 and up) groups."""
    parts = [[word for word in words if word.part == part] for part in (0, 1)]
    size = max(1, len(words) // most)
    while sum(-(-len(part) // size) for part in parts) > most:
        size += 1
    return [
        Span(part[first].part, part[first].start, part[min(first + size, len(part)) - 1].end)
        for part in parts
        for first in range(0, len(part), size)
    ]


def variants(given: TextInput, words: Sequence[Span], reach: Reach, by: str = BLANK) -> Iterator[TextInput]:
    """Yield the input without each of the words, in order.

    Of a text that the model does not read whole a variant is only what it reads: else words that it had no place for
    would move up, and the difference would be theirs.
    """
    texts = [text[:end] for text, end in zip(parts_of(given), reach.ends, strict=True)]
    for part, start, end in words:
        changed = f"{texts[part][:start]}{by}{texts[part][end:]}"
        if len(texts) == 1:
            yield changed
        else:
            yield (changed, texts[1]) if part == 0 else (texts[0], changed)


def effects(scores: NDArray[np.float32], label: int) -> list[float]:
    """Return what each variant lacks of a label's score; `scores` (1 + N, C) begin with those of the whole input."""
    whole, *others = scores[:, label].tolist()
    return [whole - other for other in others]


def parts_of(given: TextInput) -> tuple[str, ...]:
    """Return the one text or the two texts of an input."""
    return (given,) if isinstance(given, str) else given
