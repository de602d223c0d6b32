"""When requests of an open loop leave: times that are fixed before, whatever the server does."""

import random
from collections.abc import Iterator
from enum import StrEnum


class Arrivals(StrEnum):
    """How the times lie."""

    POISSON = "poisson"
    """As from many users who know nothing of each other."""
    CONSTANT = "constant"
    """At equal distances."""


def times(arrivals: Arrivals, rate: float, seed: int, share: int = 0, shares: int = 1) -> Iterator[float]:
    """Yield times in seconds from 0 on, without an end: part number `share` of `shares` of `rate` requests a second.

    The parts of a Poisson process are independent Poisson processes; of constant arrivals a part takes every
    `shares`-th.
    """
    if arrivals is Arrivals.CONSTANT:
        number = share
        while True:
            yield number / rate
            number += shares
    draw = random.Random(seed * 65_537 + share).expovariate  # noqa: S311 - not for secrets
    mine = rate / shares
    at = 0.0
    while True:
        at += draw(mine)
        yield at
