"""From texts to token ids, and from token ids to padded arrays."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from service.engine.errors import TokenizerLoadError

TextInput = str | tuple[str, str]
"""One text, or one pair of texts."""

IntArray = NDArray[np.int64]


class Keep(StrEnum):
    """What is read of an input that is longer than the model reads."""

    HEAD = "head"
    TAIL = "tail"
    WINDOWS = "windows"  # all of it, in windows that overlap
    WHOLE = "whole"  # nothing: it is refused


class Reading(NamedTuple):
    """How inputs are read; `stride` is the number of tokens that neighboring windows share."""

    keep: Keep = Keep.HEAD
    stride: int = 0


HEAD = Reading()


class Reach(NamedTuple):
    """How far an input is read: its tokens, specials included, and the end of each of its texts in characters."""

    tokens: int
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One tokenised input, special tokens included."""

    ids: list[int]
    type_ids: list[int]
    truncated: bool
    whole: int | None = None
    """Number of tokens of all of the input; of those alone that were to be read whole and are too long."""
    windows: tuple["Encoding", ...] = ()
    """The windows after this one."""
    offsets: list[tuple[int, int]] | None = None
    """Of each token its characters in the text, (begin, end); (-1, -1) for special tokens."""

    @property
    def tokens(self) -> int:
        """Number of tokens, specials included."""
        return len(self.ids)


class Tokenizer:
    """A `tokenizer.json`, cutting inputs to `max_length` tokens. Safe to use from several threads.

    With `offsets` encodings say which characters their tokens stand for.
    """

    def __init__(self, path: Path, max_length: int, *, offsets: bool = False) -> None:
        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # the Rust extension raises plain Exception
            raise TokenizerLoadError(f"{path}: not a tokenizer.json that tokenizers can read: {error}") from error
        self.pad_id = int((self._tokenizer.padding or {}).get("pad_id", 0))
        self.max_length = max_length
        self._offsets = offsets
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        model = self._tokenizer.model
        self.marks_continuation = bool(getattr(model, "continuing_subword_prefix", None))
        """Whether a token shows that it continues a word, as "##ing" does."""
        unknown = getattr(model, "unk_token", None)
        self.unknown_id = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self._other: FastTokenizer | None = None  # for every other way to cut; made when it is first asked for
        self._cutting = threading.Lock()  # how it cuts is a state of it

    @property
    def most_stride(self) -> int:
        """The most tokens that neighboring windows of one text can share: half of one.

        With more, a text of a megabyte would become hundreds of thousands of windows.
        """
        return (self.max_length - int(self._tokenizer.num_special_tokens_to_add(is_pair=False))) // 2

    def vocabulary(self) -> dict[str, int]:
        """Return every token with its id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def token(self, token_id: int) -> str:
        """Return the token with this id."""
        token: str = self._tokenizer.id_to_token(token_id)
        return token

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text that tokens stand for."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def encode(self, inputs: Sequence[TextInput], reading: Reading = HEAD) -> list[Encoding]:
        """Tokenise texts and pairs, in order; pairs are cut longest first.

        Of an input that is to be read whole and is too long, the encoding is that of its head.
        """
        if reading.keep in (Keep.HEAD, Keep.WHOLE):
            found = self._call(self._tokenizer, inputs)
        else:
            with self._cutting:
                other = self._for_other_ways()
                other.enable_truncation(
                    self.max_length,
                    stride=min(reading.stride, self.most_stride),
                    direction="left" if reading.keep is Keep.TAIL else "right",
                )
                found = self._call(other, inputs)
        in_windows = reading.keep is Keep.WINDOWS
        encodings = [self._encoding(encoding, in_windows) for encoding in found]
        if reading.keep is Keep.WHOLE:
            for number, (given, encoding) in enumerate(zip(inputs, encodings, strict=True)):
                if encoding.truncated:
                    encodings[number] = replace(encoding, whole=self._count(given))
        return encodings

    def _count(self, given: TextInput) -> int:
        """Return how many tokens an input has, however long it is."""
        first, second = (given, None) if isinstance(given, str) else given
        with self._cutting:
            other = self._for_other_ways()
            other.no_truncation()
            return len(other.encode(first, second).ids)

    def _for_other_ways(self) -> FastTokenizer:
        """Return the second tokenizer; only while `_cutting` is held."""
        if self._other is None:
            self._other = FastTokenizer.from_str(self._tokenizer.to_str())
        return self._other

    def _call(self, tokenizer: FastTokenizer, inputs: Sequence[TextInput]) -> list[Any]:
        # fast: without offsets
        call = tokenizer.encode_batch if self._offsets else tokenizer.encode_batch_fast
        found: list[Any] = call(list(inputs))
        return found

    def _encoding(self, found: Any, in_windows: bool = False) -> Encoding:
        more = found.overflowing
        return Encoding(
            found.ids,
            found.type_ids,
            truncated=bool(more) and not in_windows,
            windows=tuple(self._encoding(window) for window in more) if in_windows else (),
            offsets=_offsets(found) if self._offsets else None,
        )

    def reach(self, given: TextInput) -> Reach:
        """Return how far the head of an input is read: all of it, unless it is too long."""
        (found,) = self._tokenizer.encode_batch([given])  # which lets other threads run, as `encode` does not
        texts = (given,) if isinstance(given, str) else given
        if not found.overflowing:
            return Reach(len(found.ids), tuple(len(text) for text in texts))
        ends = [0] * len(texts)
        for part, (_, end) in zip(found.sequence_ids, found.offsets, strict=True):
            if part is not None:
                ends[part] = max(ends[part], end)
        return Reach(len(found.ids), tuple(ends))

    def encode_with_offsets(self, inputs: Sequence[TextInput]) -> list[tuple[Encoding, list[tuple[int, int]]]]:
        """Tokenise, and give the characters that each token stands for: (begin, end), (-1, -1) for special tokens."""
        found = self._tokenizer.encode_batch(list(inputs))
        return [(Encoding(one.ids, one.type_ids, bool(one.overflowing)), _offsets(one)) for one in found]


def _offsets(found: Any) -> list[tuple[int, int]]:
    special = found.special_tokens_mask
    return [(-1, -1) if mark else pair for mark, pair in zip(special, found.offsets, strict=True)]


def unreadable(text: str, most_characters: int | None = None) -> str | None:
    """Say why no model classifies `text`: it is blank, too long, or has lone surrogates, which JSON can escape."""
    if not text or text.isspace():
        return "found an empty text, expected at least one character that is not white space"
    if most_characters is not None and len(text) > most_characters:
        return f"found a text of {len(text)} characters, expected at most {most_characters}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"found half of a surrogate pair at character {error.start}, expected whole Unicode characters"
    return None


def pad(encodings: Sequence[Encoding], pad_id: int) -> dict[str, IntArray]:
    """Pad on the right to the longest: `input_ids`, `attention_mask`, `token_type_ids`, each (B, T) int64."""
    lengths = [len(encoding.ids) for encoding in encodings]
    shape = (len(encodings), max(lengths))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, (encoding, length) in enumerate(zip(encodings, lengths, strict=True)):
        input_ids[row, :length] = encoding.ids
        if any(encoding.type_ids):  # of pairs only
            token_type_ids[row, :length] = encoding.type_ids
    attention_mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
