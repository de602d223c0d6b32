"""Tensors of the Open Inference Protocol, in JSON and in its binary extension."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from service.errors import InvalidInputError

_LENGTH = struct.Struct("<I")
_MOST_DIGITS = 12


class InputTensor(msgspec.Struct):
    """An input as it is sent; its values are in `data`, or behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class WantedOutput(msgspec.Struct):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of a request; unknown keys are ignored."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[WantedOutput] | None = None


_decode = msgspec.json.Decoder(InferRequest).decode


def read_request(body: bytes, json_length: str | None) -> tuple[InferRequest, bytes]:
    """Return the JSON of a request and the raw tensors behind it; `json_length` is the header that says where.

    Raises InvalidInputError.
    """
    end = len(body)
    if json_length is not None:
        digits = json_length.isascii() and json_length.isdigit() and len(json_length) <= _MOST_DIGITS
        if not digits or int(json_length) > len(body):
            raise InvalidInputError(
                "Inference-Header-Content-Length", f"found {json_length[:40]}, expected at most {len(body)}, the body's"
            )
        end = int(json_length)
    try:
        return _decode(body[:end]), body[end:]
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("body", f"not an inference request: {error}") from error


def texts_of(tensors: Sequence[InputTensor], raw: bytes) -> dict[str, list[str]]:
    """Return the values of every input, which are all texts. Raises InvalidInputError, which names the input."""
    found: dict[str, list[str]] = {}
    at = 0
    for tensor in tensors:
        name = tensor.name
        if tensor.datatype != "BYTES":
            raise InvalidInputError(name, f"found datatype {tensor.datatype[:40]}, expected BYTES")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _flat(name, tensor.data)
        elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(raw) - at:
            raise InvalidInputError(
                name, f"found binary_data_size {size!r}, expected at most the {len(raw) - at} bytes that are left"
            )
        else:
            values = _unpack(name, raw[at : at + size])
            at += size
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
            raise InvalidInputError(name, f"found shape {tensor.shape[:8]}, expected [n] or [n, 1]")
        if tensor.shape[0] != len(values):
            raise InvalidInputError(name, f"found shape {tensor.shape}, but {len(values)} values")
        found[name] = values
    if at != len(raw):
        raise InvalidInputError("body", f"found {len(raw) - at} bytes more than the inputs' binary_data_size say")
    return found


def write_response(head: dict[str, Any], outputs: Sequence[tuple[str, Any, bool]]) -> tuple[bytes, int | None]:
    """Return a body, and the length of its JSON where raw tensors follow.

    `outputs` are name, an array (float32, or of str objects) and whether it is to be raw.
    """
    described, raw = [], []
    for name, array, binary in outputs:
        is_text = array.dtype == object
        tensor: dict[str, Any] = {"name": name, "datatype": "BYTES" if is_text else "FP32", "shape": list(array.shape)}
        if binary:
            packed = _pack(array.ravel().tolist()) if is_text else np.ascontiguousarray(array, dtype="<f4").tobytes()
            raw.append(packed)
            tensor["parameters"] = {"binary_data_size": len(packed)}
        else:
            tensor["data"] = array.ravel().tolist()
        described.append(tensor)
    body = json.dumps({**head, "outputs": described}).encode()
    return (body + b"".join(raw), len(body)) if raw else (body, None)


def _flat(name: str, data: Any) -> list[str]:
    if data is None:
        raise InvalidInputError(name, "found neither data nor binary_data_size")
    values = [inner for value in data for inner in (value if isinstance(value, list) else [value])]
    for value in values:
        if not isinstance(value, str):
            raise InvalidInputError(name, f"found a value of type {type(value).__name__}, expected texts")
    return values


def _unpack(name: str, packed: bytes) -> list[str]:
    """Read texts, each behind its length in four bytes, little-endian."""
    values, at = [], 0
    while at < len(packed):
        if at + _LENGTH.size > len(packed):
            raise InvalidInputError(name, f"found {len(packed) - at} bytes at the end, expected a length of 4 bytes")
        (length,) = _LENGTH.unpack_from(packed, at)
        at += _LENGTH.size
        if at + length > len(packed):
            raise InvalidInputError(name, f"found a text of {length} bytes where {len(packed) - at} are left")
        try:
            values.append(packed[at : at + length].decode())
        except UnicodeDecodeError as error:
            raise InvalidInputError(name, f"value {len(values)} is not UTF-8 at byte {error.start}") from error
        at += length
    return values


def _pack(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))
