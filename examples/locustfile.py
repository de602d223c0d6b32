"""Load on the native dialect for teams that use Locust.

    pip install locust
    locust -f examples/locustfile.py --host http://localhost:8000 --headless --users 50 --spawn-rate 10 --run-time 1m

LIMBECK_TEXTS names a file of texts, one a line; LIMBECK_MODEL a model, where the server has several;
LIMBECK_API_KEY_FILE a file with a key. Locust's users wait for their answers (a closed loop): a server that stalls is
asked less, and the stall is hardly seen. `limbeck loadtest` charges it for everyone who would have waited.
"""

import os
import random
from pathlib import Path

from locust import FastHttpUser, constant_throughput, task

_SAMPLE = ["A moving, beautifully acted film.", "Two hours I will not get back.", "I would not buy it again."]


def _texts() -> list[str]:
    file = os.environ.get("LIMBECK_TEXTS")
    lines = Path(file).read_text(encoding="utf-8").splitlines() if file else _SAMPLE
    return [line for line in lines if line.strip()]


def _headers() -> dict[str, str]:
    file = os.environ.get("LIMBECK_API_KEY_FILE")
    return {"Authorization": f"Bearer {Path(file).read_text(encoding='utf-8').strip()}"} if file else {}


class Classifying(FastHttpUser):
    """Somebody who asks about one text after the other, at most ten a second."""

    wait_time = constant_throughput(10)
    texts = _texts()
    headers = _headers()
    model = os.environ.get("LIMBECK_MODEL")
    path = f"/v1/models/{model}/classify" if model else "/v1/classify"

    @task
    def classify(self) -> None:
        """Ask about one text; an answer without a label is a failure, whatever its status."""
        body = {"inputs": [random.choice(self.texts)], "top_k": 1}  # noqa: S311 - not for secrets
        with self.client.post(self.path, json=body, headers=self.headers, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif not response.json()["results"][0]["labels"]:
                response.failure("an answer without a label")
