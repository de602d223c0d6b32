"""What is known of a request while it is answered: who asks, whom, and how it went."""

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from service.errors import ForbiddenError
from service.keys import Caller

if TYPE_CHECKING:  # the supervisor, which forks, has no use for NumPy and tokenizers
    from service.engine.request import Classified
    from service.engine.tokenization import TextInput
    from service.trial import Trial

UNMATCHED = "unmatched"
"""The route of requests to paths that do not exist: what clients invent must not become a label value."""


class Visited(Protocol):
    """A model, as far as a request that asks it has to do with it."""

    name: str
    version: str
    visitors: int


@dataclass(slots=True)
class Visit:
    """One request, from its arrival to its answer. Times are seconds, `arrived_s` on the clock `time.monotonic`."""

    arrived_s: float
    caller: Caller | None = None
    """Who asks; None while keys are off."""
    request_id: str = ""
    traceparent: bytes = b""
    """W3C's trace context, as it came."""
    route: str = UNMATCHED
    model: str = ""
    version: str = ""
    dialect: str = ""
    error: str = ""
    """The code of the error that it was answered with."""
    inputs: int = 0
    tokens: int = 0
    queue_s: float = 0.0
    inference_s: float = 0.0
    answered_s: float = 0.0
    """When the engine was done with it, on the same clock."""
    asked_s: float = 0.0
    """When the engine got it, on the same clock; only of requests in a trial."""
    trial: "Trial | None" = None
    """The trial of a new version that it takes part in."""
    texts: "Sequence[TextInput] | None" = None
    """What was asked, of a request whose texts are to be logged; empty until the engine has it."""
    _held: list[Visited] = field(default_factory=list)

    def may_ask(self, model: str) -> bool:
        """Say whether the caller's key allows a model."""
        return self.caller is None or self.caller.may_ask(model)

    def check(self, model: str) -> None:
        """Raise ForbiddenError when the caller may not ask a model."""
        if not self.may_ask(model):
            raise ForbiddenError(f"key {self.caller.id if self.caller else ''} does not allow model {model}")

    def choose(self, model: Visited) -> None:
        """Note whom the request asks; raises ForbiddenError when the caller may not."""
        self.check(model.name)
        self.model, self.version = model.name, model.version

    def hold(self, model: Visited) -> None:
        """Keep a model from being closed until the visit is over."""
        model.visitors += 1
        self._held.append(model)

    def release(self) -> None:
        """Let go of what it holds."""
        for model in self._held:
            model.visitors -= 1
        self._held.clear()

    def take(self, results: Sequence["Classified"]) -> None:
        """Note what the engine did for it; of times the longest."""
        self.answered_s = time.monotonic()
        self.inputs = len(results)
        for one in results:
            self.tokens += len(one.encoding.ids)
            self.queue_s = max(self.queue_s, one.queue_s)
            self.inference_s = max(self.inference_s, one.inference_s)

    def timing(self) -> str:
        """Return where the time went so far, as the header Server-Timing says it, in milliseconds.

        `tokenize` is all that came before the queue: the request's way through the framework, too. Of several inputs
        queue and inference are the longest of each, as in the request log.
        """
        tokenize_s = max(0.0, self.answered_s - self.arrived_s - self.queue_s - self.inference_s)
        parts = {"tokenize": tokenize_s, "queue": self.queue_s, "inference": self.inference_s}
        parts["total"] = time.monotonic() - self.arrived_s
        return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in parts.items())


VISIT: ContextVar[Visit] = ContextVar("visit")
"""The visit that the running task is for. Only requests that go through the framework have one."""
