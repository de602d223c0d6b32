"""A client that keeps books: of each request that it sends, what `/metrics` has to say of it afterwards."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.service.helpers import VOCABULARY
from tests.support.bundles import LABELS

MAX_LENGTH = 16  # tokens, of the tests' bundles
LONG = "the movie was not very good the plot was awful the film is great"  # 14 words: as many as the model reads
TOO_LONG = f"{LONG} unheard of"

Sample = tuple[str, frozenset[tuple[str, str]]]


def ids_of(text: str) -> list[int]:
    """The token ids that the model reads of a text, by the vocabulary alone."""
    words = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in text.lower().split()]
    return [2, *words[: MAX_LENGTH - 2], 3]


@dataclass(frozen=True)
class Ask:
    """A request. `model` and `version` are whom it reaches, empty where it is turned away before it has chosen one.

    `labels` reads from an answer's body the label of each text.
    """

    path: str
    route: str
    dialect: str
    body: Any = None
    texts: tuple[str, ...] = ()
    labels: Callable[[Any], list[str]] = list
    model: str = ""
    version: str = ""
    key: str | None = "full"
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


REASONS = {401: "unauthorized", 403: "forbidden", 413: "body_too_large"}


@dataclass
class Tally:
    """What the client saw, as samples of the service's metrics."""

    secrets: dict[str, str]
    ids: dict[str, str]
    """Of each key its id in metrics."""
    samples: Counter[Sample] = field(default_factory=Counter)
    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Of each status and reason how many answers."""

    def add(self, name: str, amount: int, **labels: str) -> None:
        self.samples[f"limbeck_{name}", frozenset(labels.items())] += amount

    async def send(self, client: httpx.AsyncClient, ask: Ask) -> httpx.Response:
        """Send a request and count its answer."""
        headers = dict(ask.headers)
        if ask.body is not None:
            headers = {"content-type": "application/json"} | headers
        if ask.key is not None:
            headers["authorization"] = f"Bearer {self.secrets[ask.key]}"
        content = None if ask.body is None else ask.content()
        answer = await client.request(ask.method, ask.path, content=content, headers=headers)
        self.count(ask, answer.status_code, answer)
        return answer

    def count(self, ask: Ask, status: int, answer: httpx.Response | None = None) -> None:
        """Count what became of a request; `status` is 499 when the client did not wait."""
        dialect, route = ("", "unmatched") if status == 401 else (ask.dialect, ask.route)
        of = {"model": ask.model, "version": ask.version}
        self.add("requests_total", 1, **of, dialect=dialect, route=route, status=str(status))
        self.add("request_duration_seconds_count", 1, route=route)
        if ask.key in self.ids:
            self.add("key_requests_total", 1, key=self.ids[ask.key], status=str(status))
        reason = REASONS.get(status, "")
        if status in (429, 503) and ask.method == "POST":
            assert answer is not None
            assert int(answer.headers["retry-after"]) >= 1, "a refusal says when to come again"
            reason = "queue_full" if "queue has no room" in answer.text else "rate_limited"
        if reason:
            self.add("rejected_total", 1, reason=reason)
        self.statuses[status, reason] += 1
        if status == 200 and ask.texts:
            assert answer is not None
            self._answered(ask, of, ask.labels(answer.json()))
        elif status in (499, 504):  # it waited in the queue, and was taken out of it
            self.add("inputs_total", len(ask.texts), **of)
            name = "cancelled_entries_total" if status == 499 else "expired_entries_total"
            self.add(name, len(ask.texts), **of)

    def _answered(self, ask: Ask, of: dict[str, str], labels: list[str]) -> None:
        assert len(labels) == len(ask.texts)
        ids = [ids_of(text) for text in ask.texts]
        self.add("inputs_total", len(ids), **of)
        self.add("inputs_truncated_total", sum(len(text.split()) + 2 > MAX_LENGTH for text in ask.texts), **of)
        self.add("tokens_total", sum(map(len, ids)), **of)
        self.add("unknown_tokens_total", sum(one.count(1) for one in ids), **of)
        for label in labels:
            self.add("predictions_total", 1, **of, label=label)
        for name in ("queue_wait_seconds_count", "prediction_confidence_count", "prediction_entropy_count"):
            self.add(name, len(ids), **of)
        self.add("batch_size_sum", len(ids), **of)
        if ask.key in self.ids:
            self.add("key_tokens_total", sum(map(len, ids)), key=self.ids[ask.key])


def samples_of(metrics: str) -> dict[Sample, float]:
    """Every sample of a scrape, by prometheus_client's parser."""
    families = text_string_to_metric_families(metrics)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def _native(answer: Any) -> list[str]:
    return [result["labels"][0]["label"] for result in answer["results"]]


def native(texts: tuple[str, ...], model: str = "", version: str = "", **more: Any) -> Ask:
    """The native dialect; without a model the default one, `tiny`, in its highest version, 2."""
    path = route = "/v1/classify"
    if model:
        path, route = f"/v1/models/{model}", "/v1/models/{model}"
        if version:
            path, route = f"{path}/versions/{version}", route + "/versions/{version}"
        path, route = f"{path}/classify", f"{route}/classify"
    body = {"inputs": list(texts)} | more.pop("options", {})
    reached = {"model": model or "tiny", "version": version or ("2" if model in ("", "tiny") else "1")}
    return Ask(path, route, "native", body, texts, _native, **(reached | more))


def tei(texts: tuple[str, ...], **more: Any) -> Ask:
    body = {"inputs": [[text] for text in texts]}
    reached = {"model": "tiny", "version": "2"}
    return Ask("/predict", "/predict", "tei", body, texts, lambda a: [r[0]["label"] for r in a], **(reached | more))


def hugging_face(texts: tuple[str, ...], model: str = "other", **more: Any) -> Ask:
    body = {"inputs": list(texts), "parameters": {"top_k": 1}}
    reached = {"model": model, "version": "1"}
    labels = lambda answer: [ranked[0]["label"] for ranked in answer]  # noqa: E731
    return Ask(f"/models/{model}", "/models/{model}", "huggingface", body, texts, labels, **(reached | more))


def v2(texts: tuple[str, ...], model: str = "tiny", version: str = "", **more: Any) -> Ask:
    path, route = f"/v2/models/{model}", "/v2/models/{model}"
    if version:
        path, route = f"{path}/versions/{version}", route + "/versions/{version}"
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    body = {"inputs": [tensor]} | more.pop("options", {})
    labels = lambda answer: next(one["data"] for one in answer["outputs"] if one["name"] == "label")  # noqa: E731
    reached = {"model": model, "version": version or ("2" if model == "tiny" else "1")}
    return Ask(f"{path}/infer", f"{route}/infer", "v2", body, texts, labels, **(reached | more))


def vllm(texts: tuple[str, ...], model: str = "tiny", **more: Any) -> Ask:
    reached = {"model": model, "version": "2" if model == "tiny" else "1"}
    body = {"model": model, "input": list(texts)}
    return Ask(
        "/classify", "/classify", "vllm", body, texts, lambda a: [d["label"] for d in a["data"]], **reached | more
    )


def kserve_v1(texts: tuple[str, ...], model: str = "other", **more: Any) -> Ask:
    def labels(answer: Any) -> list[str]:
        return [LABELS[int(max(scores, key=scores.__getitem__))] for scores in answer["predictions"]]

    route = "/v1/models/{model}:predict"
    reached = {"model": model, "version": "1"}
    body = {"instances": list(texts)}
    return Ask(f"/v1/models/{model}:predict", route, "guardrails", body, texts, labels, **(reached | more))


def detectors(texts: tuple[str, ...], **more: Any) -> Ask:
    path = "/api/v1/text/contents"
    labels = lambda answer: [found[0]["detection"] for found in answer]  # noqa: E731
    reached = {"model": "other", "version": "1", "headers": (("detector-id", "other"),)}
    return Ask(path, path, "guardrails", {"contents": list(texts)}, texts, labels, **(reached | more))


def operation(path: str, method: str = "GET", route: str | None = None, dialect: str = "operations") -> Ask:
    return Ask(path, path if route is None else route, dialect, method=method, key=None)
