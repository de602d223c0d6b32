"""What can be classified, and what is wrong with what cannot."""

from collections.abc import Iterable, Iterator
from typing import Any

from bulk.errors import InputError
from service.engine.tokenization import TextInput, unreadable

MAX_TEXT_CHARACTERS = 1 << 20
"""Longer texts are refused, whatever the model reads of them: a tokenizer takes hundreds of bytes a character."""

_WINDOW_ROWS = 2048
_WINDOW_SIZE = 1 << 21


def text_problem(text: Any) -> str | None:
    """Say why `text` cannot be classified, or return None."""
    if isinstance(text, bytes):
        return "found bytes that are not UTF-8"
    if not isinstance(text, str):
        return f"found {'null' if text is None else type(text).__name__}, expected a text"
    return unreadable(text, MAX_TEXT_CHARACTERS)


def checked(inputs: Iterable[Any], *, pairs: bool) -> Iterator[TextInput]:
    """Yield the inputs, pairs as tuples; raises InputError naming the first that a model of this kind cannot take."""
    for number, given in enumerate(inputs):
        is_pair = isinstance(given, list | tuple) and len(given) == 2
        if pairs and not is_pair:
            raise InputError(f"inputs[{number}]: the model compares two texts; expected a pair (text, text_pair)")
        if not pairs and is_pair:
            raise InputError(f"inputs[{number}]: found a pair, but the model takes single texts")
        problems = [text_problem(text) for text in (given if is_pair else [given])]
        problem = next((problem for problem in problems if problem is not None), None)
        if problem is not None:
            raise InputError(f"inputs[{number}]: {problem}")
        yield (given[0], given[1]) if is_pair else given


class WindowBound:
    """Decides how many rows are tokenized and sorted by length together: a bound on their number and on their size."""

    def __init__(self) -> None:
        self._rows = 0
        self._size = 0

    def full_after(self, size: int) -> bool:
        """Count one more row of `size` characters or bytes; whether the window ends with it."""
        self._rows += 1
        self._size += size
        full = self._rows >= _WINDOW_ROWS or self._size >= _WINDOW_SIZE
        if full:
            self._rows = self._size = 0
        return full
