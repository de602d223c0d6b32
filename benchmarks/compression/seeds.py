"""What several seeds say of ways to do one thing: each way's measures, and their differences from the first way's."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from compress.machine import describe_machine
from compress.report import markdown_table
from compress.stage import library_versions, write_atomic

Row = dict[str, float]
Results = dict[str, dict[str, Row]]
"""Seed (a key of JSON) -> way -> what was measured."""


@dataclass(frozen=True)
class Measure:
    """A column of the table, two where ways are `compared`."""

    title: str
    form: str
    """Of a number, as for format()."""
    compared: bool = False


def collect(
    path: Path,
    settings: Sequence[str],
    seeds: Sequence[int],
    ways: Sequence[str],
    measure: Callable[[int, str], Row],
) -> Results:
    """Measure every way under every seed; what `path` holds already is not measured again.

    Raises SystemExit where that was measured with other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": [*settings], "seeds": {}}
    if known["settings"] != [*settings]:
        raise SystemExit(f"{path}: found results of {known['settings']}, expected {[*settings]}; give another --out")
    results: Results = known["seeds"]
    for seed in seeds:
        for way in ways:
            done = results.setdefault(str(seed), {})
            if way not in done:
                done[way] = measure(seed, way)
                write_atomic(path, json.dumps(known, indent=2))
    return {str(seed): {way: results[str(seed)][way] for way in ways} for seed in seeds}


def show(results: Results, measures: Mapping[str, Measure]) -> None:
    """Print where it was measured, and a table with a row a way: mean ± standard deviation, and what is compared."""
    print(f"Machine: {describe_machine()}.")
    print(f"Versions: {', '.join(f'{name} {version}' for name, version in library_versions().items())}.")
    print(f"Seeds: {', '.join(results)}; mean ± standard deviation, and the difference under the same seeds.\n")
    ways = list(next(iter(results.values())))
    headings, rows = ["way"], [[way] for way in ways]
    for name, measure in measures.items():
        headings.append(measure.title)
        for cells in rows:
            cells.append(_spread([found[cells[0]][name] for found in results.values()], measure.form))
        if measure.compared:
            headings.append(f"against {ways[0]} [95 %]")
            for cells in rows:
                pairs = [found[cells[0]][name] - found[ways[0]][name] for found in results.values()]
                cells.append("" if cells[0] == ways[0] else _difference(pairs, measure.form))
    print("\n".join(markdown_table(headings, rows)))


def _spread(scores: Sequence[float], form: str) -> str:
    mean = f"{np.mean(scores):{form}}"
    return f"{mean} ± {np.std(scores, ddof=1):{form}}" if len(scores) > 1 else mean


def _difference(pairs: Sequence[float], form: str) -> str:
    """Return the mean difference under the same seeds, with Student's interval where there are several."""
    mean = float(np.mean(pairs))
    if len(pairs) == 1 or np.ptp(pairs) == 0:
        return f"{mean:+{form}}"
    low, high = stats.t.interval(0.95, len(pairs) - 1, loc=mean, scale=stats.sem(pairs))
    return f"{mean:+{form}} [{low:+{form}}, {high:+{form}}]"
