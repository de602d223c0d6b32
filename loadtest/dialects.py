"""How each dialect of docs/api.md asks about texts: its path, its headers and its body."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from loadtest.errors import WorkloadError

Text = str | tuple[str, str]
"""A text, or a pair of texts."""


@dataclass(frozen=True)
class Asked:
    """One request, still without a server."""

    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Dialect:
    """One way to ask. A path is None where the dialect needs a model's name, or has no place for one."""

    path: str | None
    model_path: str | None
    body: Callable[[Sequence[Text], str | None], Any]
    pairs: bool = False
    """Whether two texts can be asked about together."""
    model_headers: Callable[[str], dict[str, str]] = field(default=lambda _: {})


def _native(texts: Sequence[Text], _model: str | None) -> Any:
    return {"inputs": [one if isinstance(one, str) else {"text": one[0], "text_pair": one[1]} for one in texts]}


def _tei(texts: Sequence[Text], _model: str | None) -> Any:
    lists = [[one] if isinstance(one, str) else list(one) for one in texts]
    if len(lists) > 1:
        return {"inputs": lists}
    return {"inputs": lists[0] if len(lists[0]) == 2 else lists[0][0]}


def _hugging_face(texts: Sequence[Text], _model: str | None) -> Any:
    return {"inputs": texts[0] if len(texts) == 1 else list(texts), "parameters": {}}


def _open_inference(texts: Sequence[Text], _model: str | None) -> Any:
    columns = {"text": [one if isinstance(one, str) else one[0] for one in texts]}
    if not isinstance(texts[0], str):
        columns["text_pair"] = [one[1] for one in texts]
    return {
        "inputs": [
            {"name": name, "shape": [len(column)], "datatype": "BYTES", "data": column}
            for name, column in columns.items()
        ]
    }


def _vllm(texts: Sequence[Text], model: str | None) -> Any:
    return {"input": list(texts)} | ({} if model is None else {"model": model})


def _kserve(texts: Sequence[Text], _model: str | None) -> Any:
    return {"instances": list(texts)}


def _detectors(texts: Sequence[Text], _model: str | None) -> Any:
    return {"contents": list(texts)}


DIALECTS: Mapping[str, Dialect] = {
    "native": Dialect("/v1/classify", "/v1/models/{model}/classify", _native, pairs=True),
    "tei": Dialect("/predict", "/models/{model}", _tei, pairs=True),
    "huggingface": Dialect("/", "/models/{model}", _hugging_face),
    "openinference": Dialect(None, "/v2/models/{model}/infer", _open_inference, pairs=True),
    "vllm": Dialect("/classify", "/classify", _vllm),
    "kserve": Dialect(None, "/v1/models/{model}:predict", _kserve),
    "detectors": Dialect(None, "/api/v1/text/contents", _detectors, model_headers=lambda model: {"detector-id": model}),
}


def asked(name: str, texts: Sequence[Text], model: str | None) -> Asked:
    """Return the request of dialect `name` about one or several texts, all of them single or all of them pairs.

    Raises WorkloadError when the dialect has no pairs, or names a model that is not given.
    """
    dialect = DIALECTS[name]
    if not dialect.pairs and not isinstance(texts[0], str):
        able = ", ".join(one for one, dialect in DIALECTS.items() if dialect.pairs)
        raise WorkloadError(f"--dialect {name} has no pairs of texts; these have: {able}")
    path = dialect.path if model is None else dialect.model_path
    if path is None:
        raise WorkloadError(f"--dialect {name} names the model in every request: say which with --model")
    headers = {} if model is None else dialect.model_headers(model)
    body = json.dumps(dialect.body(texts, model), ensure_ascii=False, separators=(",", ":"))
    return Asked(path.format(model=quote(model or "", safe="")), body.encode(), headers)
