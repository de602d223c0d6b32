"""How a live endpoint is asked for labels, and how its answer is read: one class a dialect (docs/api.md)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bulk.answers import Answer, Found
from bulk.errors import EndpointError
from service.engine.tokenization import TextInput

_ALL_LABELS = 1000
_THRESHOLD = 0.5
CONTENTS = "/api/v1/text/contents"
"""The path of FMS' detectors."""


class Labels(NamedTuple):
    """What is known of the other classifier's labels, for dialects that do not tell all."""

    names: Sequence[str]
    thresholds: Mapping[str, float]
    """Of multi-label; 0.5 where it names none."""
    multi_label: bool


class Dialect(ABC):
    """Builds requests and reads responses; `read` raises KeyError, TypeError or ValueError for what it cannot read."""

    name: str
    pairs = True
    """Whether it can be asked about two texts together."""

    names_model = False
    """Whether every request names the model in a header."""

    def __init__(self, labels: Labels, model: str = "") -> None:
        self.labels = labels
        self.model = model

    def headers(self) -> dict[str, str]:
        """Return what every request says beside its body."""
        return {}

    @abstractmethod
    def path(self, given: str) -> str:
        """Return the path that is asked, given the one in the URL (perhaps empty)."""

    @abstractmethod
    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:
        """Return the request for these texts or pairs."""

    @abstractmethod
    def read(self, found: Any) -> Sequence[Found]:
        """Return the answers in a response, one a text."""

    def _decided(self, scores: Mapping[str, float]) -> Answer:
        """Return what scores are taken for: the highest, in multi-label all that reach their threshold."""
        if not self.labels.multi_label:
            return Answer((max(scores, key=scores.__getitem__),), scores)
        reached = [label for label, score in scores.items() if score >= self.labels.thresholds.get(label, _THRESHOLD)]
        return Answer(tuple(reached), scores)

    def _named(self, scores: Sequence[float]) -> dict[str, float]:
        """Return scores by label where a dialect gives only their order, which must be the other classifier's."""
        if len(scores) != len(self.labels.names):
            raise EndpointError(
                f"it gives {len(scores)} scores without names, the bundle has {len(self.labels.names)} labels; ask it "
                "in a dialect that names labels, such as native or tei"
            )
        return dict(zip(self.labels.names, map(float, scores), strict=True))


class Native(Dialect):
    """Limbeck's own."""

    name = "native"

    def path(self, given: str) -> str:  # noqa: D102
        if not given:
            return "/v1/classify"
        return given if given.endswith("/classify") else f"{given}/classify"

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"inputs": [x if isinstance(x, str) else {"text": x[0], "text_pair": x[1]} for x in inputs]}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        answers = []
        for result in found["results"]:
            decided = self._decided(_by_label(result["labels"]))
            predicted = result.get("predicted")
            answers.append(decided if predicted is None else Answer(tuple(map(str, predicted)), decided.scores))
        return answers


class Tei(Dialect):
    """Text Embeddings Inference's."""

    name = "tei"

    def path(self, given: str) -> str:  # noqa: D102
        return given or "/predict"

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"inputs": [[x] if isinstance(x, str) else list(x) for x in inputs], "truncate": True}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        return [self._decided(_by_label(labels)) for labels in found]


class HuggingFace(Dialect):
    """That of Hugging Face's inference clients."""

    name = "huggingface"
    pairs = False

    def path(self, given: str) -> str:  # noqa: D102
        return given or "/"

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"inputs": list(inputs), "parameters": {"top_k": _ALL_LABELS}}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        # some servers give each text's best label alone
        return [self._decided(_by_label([one] if isinstance(one, dict) else one)) for one in found]


class OpenInference(Dialect):
    """The Open Inference Protocol's (V2), with the classification extension, which names labels."""

    name = "openinference"

    def path(self, given: str) -> str:  # noqa: D102
        return given if given.endswith("/infer") else f"{given}/infer"

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        columns = [("text", [x if isinstance(x, str) else x[0] for x in inputs])]
        if not isinstance(inputs[0], str):
            columns.append(("text_pair", [x[1] for x in inputs]))
        tensors = [{"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts} for name, texts in columns]
        wanted = [{"name": "scores", "parameters": {"classification": _ALL_LABELS}}, {"name": "label"}]
        return {"inputs": tensors, "outputs": wanted}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        outputs = {output["name"]: output for output in found["outputs"]}
        number, width = outputs["scores"]["shape"]
        cells = [str(cell).split(":", 2) for cell in outputs["scores"]["data"]]
        rows = [cells[row * width : (row + 1) * width] for row in range(number)]
        answers = []
        for cells_of_row, told in zip(rows, outputs["label"]["data"], strict=True):
            scores = {label: float(score) for score, _, label in cells_of_row}
            if self.labels.multi_label:  # names with commas between them, and a name may hold one
                reached = tuple(label for label in scores if f",{label}," in f",{told},")
                answers.append(Answer(reached, scores))
            else:
                answers.append(Answer((str(told),), scores))
        return answers


class Vllm(Dialect):
    """vLLM's `/classify`; only the best label has a name, so the others are taken in the bundle's order."""

    name = "vllm"
    pairs = False

    def path(self, given: str) -> str:  # noqa: D102
        return given or "/classify"

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"input": list(inputs)}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        answers = []
        for one in sorted(found["data"], key=lambda one: int(one["index"])):
            scores = self._named(one["probs"])
            best = max(scores, key=scores.__getitem__)
            if one["label"] != best:
                raise EndpointError(
                    f"it calls {one['label']!r} what the bundle's order of labels calls {best!r}; ask it in a dialect "
                    "that names labels, such as native or tei"
                )
            answers.append(self._decided(scores))
        return answers


class KServe(Dialect):
    """KServe V1's `:predict`: scores by the label's name, or by its number in the bundle's order."""

    name = "kserve"
    pairs = False

    def path(self, given: str) -> str:  # noqa: D102
        return given if given.endswith(":predict") else f"{given}:predict"

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"instances": list(inputs)}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        answers = []
        for one in found["predictions"]:
            scores = {str(label): float(score) for label, score in one.items()}
            numbered = sorted(scores, key=int) if all(label.isdecimal() for label in scores) else []
            if numbered and not set(scores) <= set(self.labels.names):
                scores = self._named([scores[label] for label in numbered])
            answers.append(self._decided(scores))
        return answers


class Detectors(Dialect):
    """That of FMS' detectors, which report labels above a threshold; at 0 all of them."""

    name = "detectors"
    pairs = False
    names_model = True

    def headers(self) -> dict[str, str]:  # noqa: D102
        return {"detector-id": self.model}

    def path(self, given: str) -> str:  # noqa: D102
        return given or CONTENTS

    def body(self, inputs: Sequence[TextInput]) -> dict[str, Any]:  # noqa: D102
        return {"contents": list(inputs), "detector_params": {"threshold": 0.0}}

    def read(self, found: Any) -> Sequence[Found]:  # noqa: D102
        answers = []
        for reported in found:
            scores: dict[str, float] = {}
            for one in reported:  # several times the same where it reports parts of a text
                label = str(one["detection"])
                scores[label] = max(float(one["score"]), scores.get(label, 0.0))
            answers.append(self._decided(scores) if scores else Answer((), scores))
        return answers


DIALECTS: dict[str, type[Dialect]] = {
    kind.name: kind for kind in (Native, Tei, HuggingFace, OpenInference, Vllm, KServe, Detectors)
}


def dialect_of(path: str) -> str:
    """Return the dialect that a URL's path belongs to; native where it says nothing."""
    if path.endswith(":predict"):
        return KServe.name
    if path.startswith("/v2/"):
        return OpenInference.name
    if path.startswith("/models/"):
        return HuggingFace.name
    known = {"/predict": Tei.name, "/invocations": Tei.name, "/classify": Vllm.name, CONTENTS: Detectors.name}
    return known.get(path, Native.name)


def _by_label(labels: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    scores = {str(one["label"]): float(one["score"]) for one in labels}
    if not scores:
        raise ValueError("no label")
    return scores
