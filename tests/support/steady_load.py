"""Requests at a steady rate, and what became of each."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

CLASSIFY = {"inputs": "a good movie"}


@dataclass
class Load:
    """Single requests at a steady rate, whatever becomes of those before; every outcome is kept."""

    url: str
    rate_per_s: float
    key: str = ""
    ended: bool = False
    """Send nothing more."""
    versions: list[str] = field(default_factory=list)
    """Of the model, as answers with 200 name it, in the order in which they came."""
    outcomes: list[tuple[float, int, str]] = field(
        default_factory=list
    )  # when it was sent; status, 0 without answer; why

    async def run(self, duration_s: float) -> None:
        begin_s = time.monotonic()
        # the service closes idle connections after 5 s: sooner than it, or both might act in the same moment
        limits = httpx.Limits(max_connections=64, keepalive_expiry=2)
        client = httpx.AsyncClient(base_url=self.url, timeout=40, trust_env=False, limits=limits)
        async with client, asyncio.TaskGroup() as requests:
            for number in range(int(duration_s * self.rate_per_s)):
                await asyncio.sleep(max(0.0, begin_s + number / self.rate_per_s - time.monotonic()))
                if self.ended:
                    break
                requests.create_task(self._ask(client))

    async def _ask(self, client: httpx.AsyncClient) -> None:
        sent_s = time.time()
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            answer = await client.post("/v1/classify", json=CLASSIFY, headers=headers)
        except httpx.HTTPError as error:
            self.outcomes.append((sent_s, 0, repr(error)))
            return
        why = "" if answer.status_code == 200 else f"{answer.headers} {answer.text}"
        if answer.status_code in (429, 503) and "retry-after" not in answer.headers:
            why = f"no Retry-After: {why}"
        if answer.status_code == 200:
            self.versions.append(answer.json()["version"])
        self.outcomes.append((sent_s, answer.status_code, why))

    def summary(self) -> Counter[int]:
        return Counter(status for _, status, _ in self.outcomes)

    def statuses(self, since: int = 0) -> list[int]:
        """Of all answers but the first `since`, in the order in which they came."""
        return [status for _, status, _ in self.outcomes[since:]]
