"""What every dialect asks of its inputs before they cost any work."""

from collections.abc import Sequence
from typing import NamedTuple

from bundle import Manifest
from service.engine.tokenization import Reading, TextInput, unreadable
from service.errors import InvalidInputError, NoInputsError
from service.model import Model


class Bounds(NamedTuple):
    """How many inputs a request may have, and how many characters each text."""

    inputs: int
    text_chars: int


def check_inputs(inputs: Sequence[TextInput], manifest: Manifest, bounds: Bounds, name: str = "inputs") -> None:
    """Raise InvalidInputError, naming the input, unless the model can classify all of them; `name` is the list's.

    A pair model wants pairs and any other model single texts; a text needs a character that is not white space, and
    has no lone surrogates, which JSON can escape but no tokenizer reads, and keeps the bounds.
    """
    if not inputs:
        raise NoInputsError(name)
    if len(inputs) > bounds.inputs:
        raise InvalidInputError(name, f"found {len(inputs)}, expected at most {bounds.inputs}; send several requests")
    for number, given in enumerate(inputs):
        check_input(given, manifest, bounds, f"{name}[{number}]")


def check_input(given: TextInput, manifest: Manifest, bounds: Bounds, field: str) -> None:
    """Raise InvalidInputError, naming the input as `field`, unless the model can classify it."""
    if isinstance(given, str):
        if manifest.text_pair:
            raise InvalidInputError(
                field, f'found a single text, but model {manifest.name} compares two: send {{"text", "text_pair"}}'
            )
        _check_text(field, given, bounds.text_chars)
    else:
        if not manifest.text_pair:
            raise InvalidInputError(field, f"found a pair, but model {manifest.name} takes single texts")
        _check_text(f"{field}.text", given[0], bounds.text_chars)
        _check_text(f"{field}.text_pair", given[1], bounds.text_chars)


def check_task(model: Model, *, tags: bool) -> None:
    """Raise InvalidInputError unless the model gives what is asked for: tags to words, or labels to texts."""
    name = model.manifest.name
    if tags and not model.tags:
        raise InvalidInputError("model", f"{name} gives labels to texts, not tags to words; ask it to classify")
    if model.tags and not tags:
        raise InvalidInputError("model", f"{name} gives tags to words, not labels to texts; ask it to tag")


def check_windows(reading: Reading, model: Model) -> None:
    """Raise InvalidInputError unless the model can read texts in windows that overlap so."""
    if model.manifest.text_pair:
        raise InvalidInputError("truncate", f"found windows, but model {model.manifest.name} compares two texts")
    if reading.stride > model.tokenizer.most_stride:
        raise InvalidInputError(
            "stride",
            f"found {reading.stride}, expected at most {model.tokenizer.most_stride} for {model.manifest.name}",
        )


def _check_text(field: str, text: str, most_chars: int) -> None:
    problem = unreadable(text, most_chars)
    if problem is not None:
        raise InvalidInputError(field, problem)
