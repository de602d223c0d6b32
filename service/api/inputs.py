"""What every dialect asks of its inputs before they cost any work."""

from collections.abc import Sequence

from bundle import Manifest
from service.engine.tokenization import TextInput, unreadable
from service.errors import InvalidInputError


def check_inputs(inputs: Sequence[TextInput], manifest: Manifest, max_inputs: int) -> None:
    """Raise InvalidInputError, naming the input, unless the model can classify all of them.

    A pair model wants pairs and any other model single texts; a text needs a character that is not white space, and
    has no lone surrogates, which JSON can escape but no tokenizer reads; a request has 1 to `max_inputs` inputs.
    """
    if not inputs:
        raise InvalidInputError("inputs", "found none, expected at least one text")
    if len(inputs) > max_inputs:
        raise InvalidInputError("inputs", f"found {len(inputs)}, expected at most {max_inputs}; send several requests")
    for number, given in enumerate(inputs):
        field = f"inputs[{number}]"
        if isinstance(given, str):
            if manifest.text_pair:
                raise InvalidInputError(
                    field, f'found a single text, but model {manifest.name} compares two: send {{"text", "text_pair"}}'
                )
            _check_text(field, given)
        else:
            if not manifest.text_pair:
                raise InvalidInputError(field, f"found a pair, but model {manifest.name} takes single texts")
            _check_text(f"{field}.text", given[0])
            _check_text(f"{field}.text_pair", given[1])


def _check_text(field: str, text: str) -> None:
    problem = unreadable(text)
    if problem is not None:
        raise InvalidInputError(field, problem)
