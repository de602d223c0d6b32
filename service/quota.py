"""How much a caller may ask: token buckets, decided on a clock that is passed in."""

import math
from collections.abc import Iterator

from service.errors import RateLimitedError

_PERIOD_S = 60.0


class Bucket:
    """Holds what may be spent now: at most a minute's worth, refilled evenly; at least one. Overdrawn, it fills first.

    `share` is the part of `per_minute` that this process may give away.
    """

    def __init__(self, per_minute: int, share: float) -> None:
        self.per_minute = per_minute
        self._share = share
        self._per_s = per_minute * share / _PERIOD_S
        self._capacity = max(1.0, per_minute * share)
        self._level = self._capacity
        self._then_s: float | None = None

    def level(self, now_s: float) -> float:
        """Return what may be spent at this moment."""
        if self._then_s is not None:
            earned = (now_s - self._then_s) * self._per_s
            self._level = min(self._capacity, self._level + earned)
        self._then_s = now_s
        return self._level

    def spend(self, amount: float) -> None:
        """Take so much away."""
        self._level -= amount

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until `amount` is there."""
        return max(0.0, (amount - self.level(now_s)) / self._per_s)

    def headers(self, now_s: float) -> tuple[int, int, int]:
        """Return limit, what remains of it over all processes, and the seconds until it is full again."""
        level = self.level(now_s)
        full_s = (self._capacity - level) / self._per_s
        left = math.floor(level / self._share)
        return self.per_minute, min(self.per_minute, max(0, left)), math.ceil(full_s)


class Quota:
    """Requests and tokens a minute of one caller; either may be unbounded.

    How many tokens a request has is known when it has been answered: it is admitted while any are left, and what it
    took beyond them delays the next.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None, workers: int) -> None:
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute, 1 / workers)
        self._tokens = None if tokens_per_minute is None else Bucket(tokens_per_minute, 1 / workers)
        self.bounded = self._requests is not None or self._tokens is not None

    def check(self, now_s: float) -> None:
        """Raise RateLimitedError unless a request may come now."""
        waits = [bucket.wait_s(1, now_s) for bucket in self._buckets()]
        longest_s = max(waits, default=0.0)
        if longest_s > 0:
            unit = "requests" if self._requests and waits[0] == longest_s else "tokens"
            raise RateLimitedError(
                f"this key's {unit} of a minute are used up", retry_after_s=max(1, math.ceil(longest_s))
            )

    def take_request(self) -> None:
        """Count a request that was admitted."""
        if self._requests is not None:
            self._requests.spend(1)

    def take_tokens(self, tokens: int) -> None:
        """Count what a request read."""
        if self._tokens is not None:
            self._tokens.spend(tokens)

    def headers(self, now_s: float) -> list[tuple[bytes, bytes]]:
        """Return the RateLimit headers of the bound that is nearest (draft-ietf-httpapi-ratelimit-headers-07)."""
        states = [bucket.headers(now_s) for bucket in self._buckets()]
        if not states:
            return []
        nearest = min(states, key=lambda state: state[1] / state[0])
        names = (b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset")
        return [(name, b"%d" % value) for name, value in zip(names, nearest, strict=True)]

    def _buckets(self) -> Iterator[Bucket]:
        return (bucket for bucket in (self._requests, self._tokens) if bucket is not None)
