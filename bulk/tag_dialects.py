"""How a live endpoint is asked for entities: the dialects that have them (docs/api.md)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bulk.answers import Tagged
from bulk.dialects import Detectors, Dialect, HuggingFace, Native, OpenInference
from service.engine.tokenization import TextInput


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


def _tagged(entities: Iterable[Mapping[str, Any]], label: str) -> Tagged:
    return Tagged({((int(one["start"]), int(one["end"])), str(one[label])): float(one["score"]) for one in entities})
