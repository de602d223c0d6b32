"""The names under which dashboards made for Text Embeddings Inference look for metrics, with our numbers."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.registry import Collector

_SAME = {
    "limbeck_request_duration_seconds": "te_request_duration",
    "limbeck_tokenization_seconds": "te_request_tokenization_duration",
    "limbeck_queue_wait_seconds": "te_request_queue_duration",
    "limbeck_inference_seconds": "te_request_inference_duration",
    "limbeck_queue_entries": "te_queue_size",
    "limbeck_batch_size": "te_batch_next_size",
    "limbeck_batch_tokens": "te_batch_next_tokens",
}


class TeiMetrics(Collector):
    """Shows what `source` holds in TEI's names; seconds stay seconds, as there."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for metric in self._source.collect():
            if metric.name in _SAME:
                yield _renamed(metric, _SAME[metric.name])
            elif metric.name == "limbeck_requests":
                yield from _requests(metric)


def _renamed(metric: Metric, name: str) -> Metric:
    renamed = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        renamed.add_sample(name + sample.name.removeprefix(metric.name), sample.labels, sample.value)
    return renamed


def _requests(metric: Metric) -> Iterator[Metric]:
    """Yield how many requests to models there were, and how they ended; TEI's counters have no `_total`."""
    asked = [sample for sample in metric.samples if sample.labels["model"]]
    good = sum(sample.value for sample in asked if sample.labels["status"] == "200")
    total = sum(sample.value for sample in asked)
    for name, text, value in (
        ("te_request_count", "Requests to models", total),
        ("te_request_success", "Requests that were answered with a result", good),
        ("te_request_failure", "Requests that were not", total - good),
    ):
        counted = Metric(name, text, "unknown")
        counted.add_sample(name, {}, value)
        yield counted
