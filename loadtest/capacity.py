"""What a found maximum means for a deployment: replicas, and money."""

import math
from dataclasses import dataclass

_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class Capacity:
    """Figures that follow from the highest rate of one replica that holds the objective."""

    want_rate: float | None
    """Requests a second that are wanted."""
    replicas: int | None
    """So many hold them at the objective, if load is spread evenly."""
    price_per_hour: float | None
    """Of one replica."""
    price_per_million_texts: float | None
    """With every replica kept at the highest rate; at the wanted rate, with that many replicas."""


def capacity(
    highest_rate: float, texts_a_request: int, want_rate: float | None, price_per_hour: float | None
) -> Capacity:
    """Return what follows from `highest_rate` requests a second."""
    replicas = None if want_rate is None else math.ceil(want_rate / highest_rate)
    per_million = None
    if price_per_hour is not None:
        rate, count = (highest_rate, 1) if want_rate is None or replicas is None else (want_rate, replicas)
        per_million = 1e6 * count * price_per_hour / (rate * texts_a_request * _SECONDS_AN_HOUR)
    return Capacity(want_rate, replicas, price_per_hour, per_million)
