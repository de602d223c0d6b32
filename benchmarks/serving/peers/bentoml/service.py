"""BentoML with adaptive batching in each of its workers."""

import os

import bentoml
from classifier import Classifier


@bentoml.service(workers=int(os.environ["PEER_WORKERS"]), logging={"access": {"enabled": False}})
class Service:
    """Classifies the texts of many requests at once."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(
        batchable=True,
        max_batch_size=int(os.environ["PEER_BATCH"]),
        max_latency_ms=int(os.environ["PEER_MAX_LATENCY_MS"]),
    )
    def classify(self, inputs: list[str]) -> list[list[dict[str, str | float]]]:
        """Return each text's labels."""
        return self.classifier.classify(inputs)
