"""From texts to token ids, and from token ids to padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from service.engine.errors import TokenizerLoadError

TextInput = str | tuple[str, str]
"""One text, or one pair of texts."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One tokenised input, special tokens included."""

    ids: list[int]
    type_ids: list[int]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Number of tokens, specials included."""
        return len(self.ids)


class Tokenizer:
    """A `tokenizer.json`, cutting inputs to `max_length` tokens. Safe to use from several threads."""

    def __init__(self, path: Path, max_length: int) -> None:
        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # the Rust extension raises plain Exception
            raise TokenizerLoadError(f"{path}: not a tokenizer.json that tokenizers can read: {error}") from error
        self.pad_id = int((self._tokenizer.padding or {}).get("pad_id", 0))
        self.max_length = max_length
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def vocabulary(self) -> dict[str, int]:
        """Return every token with its id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode(self, inputs: Sequence[TextInput]) -> list[Encoding]:
        """Tokenise texts and pairs, in order; pairs are cut longest first."""
        return [
            Encoding(encoding.ids, encoding.type_ids, bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch_fast(list(inputs))  # fast: without offsets
        ]

    def encode_with_offsets(self, inputs: Sequence[TextInput]) -> list[tuple[Encoding, list[tuple[int, int]]]]:
        """Tokenise, and give the characters that each token stands for: (begin, end), (-1, -1) for special tokens."""
        found = []
        for encoding in self._tokenizer.encode_batch(list(inputs)):
            special = encoding.special_tokens_mask
            offsets = [(-1, -1) if mark else pair for mark, pair in zip(special, encoding.offsets, strict=True)]
            found.append((Encoding(encoding.ids, encoding.type_ids, bool(encoding.overflowing)), offsets))
        return found


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
