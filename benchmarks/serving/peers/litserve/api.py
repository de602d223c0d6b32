"""LitServe: one inference process or several behind one HTTP server or several, batching on."""

import os

import litserve
from classifier import Classifier


class Api(litserve.LitAPI):
    """Classifies the texts of many requests at once."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model, in the process that runs it."""
        self.classifier = Classifier()

    def decode_request(self, request: dict) -> list[str]:
        """Return a request's texts."""
        return request["inputs"]

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        """Keep the requests apart: they may differ in their number of texts."""
        return inputs

    def predict(self, x: list[list[str]]) -> list[list]:
        """Run all texts in one call, and hand each request its own."""
        found = iter(self.classifier.classify([text for texts in x for text in texts]))
        return [[next(found) for _ in texts] for texts in x]

    def unbatch(self, output: list[list]) -> list[list]:
        """Nothing is left to take apart."""
        return output

    def encode_response(self, output: list) -> dict:
        """Return the answer's JSON."""
        return {"results": output}


if __name__ == "__main__":
    api = Api(
        max_batch_size=int(os.environ["PEER_BATCH"]),
        batch_timeout=float(os.environ["PEER_BATCH_TIMEOUT_S"]),
        api_path="/classify",
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        fast_queue=os.environ["PEER_FAST_QUEUE"] == "1",
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=int(os.environ["PEER_API_SERVERS"]),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
