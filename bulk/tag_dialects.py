"""How a live endpoint is asked for entities: the dialects that have them (docs/api.md)."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bulk.answers import Place, Tagged
from bulk.dialects import Detectors, Dialect, HuggingFace, Native, OpenInference
from service.engine.tokenization import TextInput

_OUTSIDE = "O"  # what some servers tell of tokens that are in no entity


class NativeTags(Native):
    """Limbeck's own."""

    pairs = False

    def path(self, given: str) -> str:  # noqa: D102
        if not given:
            return "/v1/tag"
        return given if given.endswith("/tag") else f"{given}/tag"

    def read(self, found: Any) -> list[Tagged]:  # noqa: D102
        return [_tagged(result["entities"], "entity") for result in found["results"]]


class HuggingFaceTags(HuggingFace):
    """That of Hugging Face's inference clients."""

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"inputs": list(inputs), "parameters": {"aggregation_strategy": "simple"}}

    def read(self, found: Any) -> list[Tagged]:  # noqa: D102
        return [_tagged(entities, "entity_group") for entities in found]


class OpenInferenceTags(OpenInference):
    """The Open Inference Protocol's (V2), with Limbeck's output `entities`: JSON, a text each."""

    pairs = False

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return super().body(inputs) | {"outputs": [{"name": "entities"}]}

    def read(self, found: Any) -> list[Tagged]:  # noqa: D102
        (output,) = [output for output in found["outputs"] if output["name"] == "entities"]
        return [_tagged(json.loads(entities), "entity") for entities in output["data"]]


class DetectorsTags(Detectors):
    """That of FMS' detectors, which report parts of a text."""

    def read(self, found: Any) -> list[Tagged]:  # noqa: D102
        return [_tagged(reported, "detection") for reported in found]


TAG_DIALECTS: dict[str, type[Dialect]] = {
    kind.name: kind for kind in (NativeTags, HuggingFaceTags, OpenInferenceTags, DetectorsTags)
}


def _tagged(entities: Sequence[Mapping[str, Any]], label: str) -> Tagged:
    """Return what a response says of a text, of an entity that it names twice the higher score.

    Raises KeyError, TypeError or ValueError where it is no list of entities.
    """
    if not isinstance(entities, list):
        raise TypeError(f"found {type(entities).__name__}, expected a list of entities")
    scores: dict[tuple[Place, str], float] = {}
    for one in entities:
        start, end, name, score = one["start"], one["end"], one[label], float(one["score"])
        whole = isinstance(start, int) and isinstance(end, int) and 0 <= start < end
        if not whole or not isinstance(name, str) or not math.isfinite(score):
            raise ValueError(f"found {one}, which is no entity")
        if name != _OUTSIDE:
            scores[(start, end), name] = max(score, scores.get(((start, end), name), score))
    return Tagged(scores)
