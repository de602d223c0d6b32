"""What several seeds say of ways to do one thing: each way's scores, and its differences from the first way's."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from compress.stage import write_atomic

Row = dict[str, float]
Results = dict[str, dict[str, Row]]
"""Seed (a key of JSON) -> way -> what was measured."""


def collect(path: Path, seeds: Sequence[int], ways: Sequence[str], measure: Callable[[int, str], Row]) -> Results:
    """Measure every way under every seed, and return all; what `path` holds already is not measured again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for seed in seeds:
        for way in ways:
            done = results.setdefault(str(seed), {})
            if way not in done:
                done[way] = measure(seed, way)
                write_atomic(path, json.dumps(results, indent=2))
    return results


def values(results: Results, way: str, name: str) -> list[float]:
    """Return a measure of a way, seed by seed, where it was measured."""
    return [found[way][name] for found in results.values() if way in found]


def spread(scores: Sequence[float], form: str) -> str:
    """Return the mean, and the standard deviation between seeds where there are several."""
    mean = f"{np.mean(scores):{form}}"
    return f"{mean} ± {np.std(scores, ddof=1):{form}}" if len(scores) > 1 else mean


def difference(results: Results, way: str, base: str, name: str, form: str) -> str:
    """Return how far a way lies from `base` under the same seeds: the mean and Student's 95 % interval of it."""
    pairs = [found[way][name] - found[base][name] for found in results.values() if {way, base} <= found.keys()]
    if way == base or not pairs:
        return ""
    mean = float(np.mean(pairs))
    if len(pairs) == 1 or np.ptp(pairs) == 0:
        return f"{mean:+{form}}"
    low, high = stats.t.interval(0.95, len(pairs) - 1, loc=mean, scale=stats.sem(pairs))
    return f"{mean:+{form}} [{low:+{form}}, {high:+{form}}]"


def told(results: Results, titles: Mapping[str, tuple[str, str]], ways: Sequence[str]) -> list[list[str]]:
    """Return a row of cells a way: of each measure (name -> title, format) the spread, of the first the difference."""
    first, (_, form) = next(iter(titles.items()))
    return [
        [
            way,
            *(spread(values(results, way, name), form_) for name, (_, form_) in titles.items()),
            difference(results, way, ways[0], first, form),
        ]
        for way in ways
        if values(results, way, first)
    ]
