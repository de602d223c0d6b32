"""What the command and its processes that generate load tell each other."""

from dataclasses import dataclass, field

from loadtest.arrivals import Arrivals

GOOD = "good"
TIMEOUT = "no answer in time"
REFUSED = "no connection"
CLOSED = "connection closed"
INVALID = "answer that is no HTTP"

READY = "ready"
"""What a process says once it can take plans."""


@dataclass(frozen=True)
class Settings:
    """What stays the same for all steps."""

    address: tuple[str, int]
    """IP address and port."""
    server_name: str | None
    """The host's name for TLS; None: no TLS."""
    requests: tuple[bytes, ...]
    """Whole HTTP requests, sent in turn."""
    timeout_s: float
    """A request that has no answer so long after its scheduled time is given up."""
    max_connections: int
    """Of each process."""
    reuse: bool
    """Whether a connection takes another request after its answer."""


@dataclass(frozen=True)
class Plan:
    """One step, as one process is told of it."""

    start_s: float
    """When the measured part begins, by time.monotonic."""
    warm_up_s: float
    """So much earlier requests begin to leave."""
    seconds: float
    """How long the measured part takes."""
    rate: float
    """Requests a second of all processes together; 0: a closed loop."""
    clients: int
    """Of a closed loop in this process."""
    arrivals: Arrivals
    seed: int
    share: int
    """The number of this process."""
    shares: int
    """How many processes there are."""


@dataclass
class Tick:
    """What one process saw in one second, by when answers came; seconds before the measured part are negative."""

    second: int
    latency: bytes = b""
    """An encoded HDR histogram, microseconds from the scheduled time: of good answers, and of requests without one."""
    lag: bytes = b""
    """An encoded HDR histogram, microseconds from the scheduled time to when the process got round to sending."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """Requests that were scheduled in the measured part, by what became of them."""
    answers: int = 0
    """Good answers that came in this second, whenever their requests were scheduled."""
    in_flight: int = 0
    busy_s: float = 0.0
    """CPU time of the process."""
    last: bool = False
