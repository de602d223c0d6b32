"""How much padding is worth a call of the model: found out by timing it."""

import time
from collections.abc import Callable

_LENGTHS = (8, 64)  # tokens
_TIMES, _LONGEST_S = 10, 0.2  # runs of each length: the fastest counts
_AROUND_S = 100e-6  # what a batch costs the engine around the model: hand-overs between threads, arrays, results
# An entry that is left out shares another batch's cost with others, so that not all of a call is saved; the share that
# served most requests in docs/experiments.md.
_SAVED = 0.4
_LEAST, _MOST = 4, 64


def padding_worth_a_call(
    run: Callable[[int], object], longest: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Return the most tokens of padding that one entry should add to a batch.

    `run` classifies one text of so many tokens, of at most `longest`. What a call costs whatever is in it, and what a
    token costs, follow from two lengths.
    """
    short, long = _LENGTHS[0], min(_LENGTHS[1], longest)
    if long <= short:
        return _LEAST
    short_s, long_s = _fastest_s(run, short, clock), _fastest_s(run, long, clock)
    token_s = max((long_s - short_s) / (long - short), 1e-9)
    call_s = max(short_s - short * token_s, 0.0) + _AROUND_S
    return min(_MOST, max(_LEAST, round(_SAVED * call_s / token_s)))


def _fastest_s(run: Callable[[int], object], length: int, clock: Callable[[], float]) -> float:
    began_s = clock()
    fastest_s = float("inf")
    for _ in range(_TIMES):
        before_s = clock()
        run(length)
        after_s = clock()
        fastest_s = min(fastest_s, after_s - before_s)
        if after_s - began_s > _LONGEST_S:
            break
    return fastest_s
