"""PyTriton: Triton's HTTP server and dynamic batcher in front of Python functions."""

import os

import numpy as np
from classifier import Classifier
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


class Infer:
    """One instance of the model."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @batch
    def __call__(self, text: np.ndarray) -> dict[str, np.ndarray]:
        """Texts (B, 1) to scores (B, C) and labels (B, 1)."""
        scores = self.classifier.scores([value.decode() for value in text[:, 0]])
        best = np.array([self.classifier.labels[index] for index in scores.argmax(axis=1)], dtype=object)
        return {"scores": scores, "label": np.char.encode(best.astype(str), "utf-8")[:, None]}


if __name__ == "__main__":
    addresses = {"http_address": "127.0.0.1", "grpc_address": "127.0.0.1", "metrics_address": "127.0.0.1"}
    names = {"http_port": "PEER_PORT", "grpc_port": "PEER_GRPC_PORT", "metrics_port": "PEER_METRICS_PORT"}
    ports = {option: int(os.environ[name]) for option, name in names.items()}
    with Triton(config=TritonConfig(**addresses, **ports)) as triton:
        batcher = DynamicBatcher(max_queue_delay_microseconds=int(os.environ["PEER_QUEUE_DELAY_US"]))
        triton.bind(
            model_name="classifier",
            infer_func=[Infer() for _ in range(int(os.environ["PEER_INSTANCES"]))],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="scores", dtype=np.float32, shape=(-1,)),
                Tensor(name="label", dtype=bytes, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=int(os.environ["PEER_BATCH"]), batcher=batcher),
        )
        triton.serve()
