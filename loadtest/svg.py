"""Line charts as inline SVG: no script, no outside request, colors from the page's style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 44
COLORS = 6
"""Classes s0 to s5 of the page's style."""


@dataclass(frozen=True)
class Axis:
    """What one direction shows. On a logarithmic axis there is nothing at or below 0."""

    label: str
    log: bool = False
    ticks: Sequence[tuple[float, str]] | None = None
    """Where given, instead of round numbers."""


@dataclass(frozen=True)
class Series:
    """One line; a point without a value interrupts it."""

    name: str
    points: Sequence[tuple[float, float | None]]
    bars: Sequence[tuple[float, float, float]] = ()
    """Intervals: where, from, to."""
    marks: bool = False
    """Whether points are drawn as dots."""


def line_chart(series: Sequence[Series], x: Axis, y: Axis, label: str, limit: float | None = None) -> str:
    """Return the chart; `limit` is drawn as a dashed line over the whole width."""
    given_x = [px for one in series for px, py in one.points if py is not None]
    given_y = [py for one in series for _, py in one.points if py is not None and (not y.log or py > 0)]
    given_y += [end for one in series for _, *ends in one.bars for end in ends if not y.log or end > 0]
    if limit is not None:
        given_y.append(limit)
    if not given_x or not given_y:
        return f'<p class="empty">{escape(label)}: nothing to show</p>'
    across = _Scale(given_x, x, _LEFT, _WIDTH - _RIGHT)
    upward = _Scale(given_y, y, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_grid(across, upward, x, y),
        *_legend([one.name for one in series]),
    ]
    if limit is not None:
        at = upward(limit)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for number, one in enumerate(series):
        parts += _line(one, number % COLORS, across, upward)
    return "\n".join([*parts, "</svg>"])


class _Scale:
    """From values to positions."""

    def __init__(self, values: Sequence[float], axis: Axis, begin: float, end: float) -> None:
        self.log = axis.log
        low, high = min(values), max(values)
        self.ticks = list(axis.ticks or (_log_ticks(low, high) if axis.log else _ticks(high)))
        known = [tick for tick, _ in self.ticks]
        if axis.ticks is not None:
            self.ticks = [tick for tick in self.ticks if low <= tick[0] <= high]
        else:
            low, high = min(low, *known), max(high, *known)
        self._low, self._high = self._of(low), self._of(high)
        self._begin, self._end = begin, end

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        """Return the position."""
        span = self._high - self._low or 1.0
        return self._begin + (self._of(value) - self._low) / span * (self._end - self._begin)


def _ticks(high: float) -> list[tuple[float, str]]:
    """Return round numbers from 0 to above the highest value."""
    high = high or 1.0
    step = 10 ** math.floor(math.log10(high))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if high / (step * part) <= 6)
    return [(number * step, f"{number * step:,.6g}") for number in range(math.ceil(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return 1, 2 and 5 of each power of ten, from below the lowest to above the highest value."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    each = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    values = [part * 10.0**power for power in powers for part in each]
    first = max((value for value in values if value <= low * 1.0001), default=low)
    last = min((value for value in values if value >= high * 0.9999), default=high)
    return [(value, f"{value:,.6g}") for value in values if first <= value <= last]


def _grid(across: _Scale, upward: _Scale, x: Axis, y: Axis) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value, name in upward.ticks:
        at = upward(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{at + 4:.1f}">{escape(name)}</text>')
    for value, name in across.ticks:
        at = across(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="middle" x="{at:.1f}" y="{bottom + 16}">{escape(name)}</text>')
    parts.append(f'<text class="middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}">{escape(x.label)}</text>')
    parts.append(f'<text x="4" y="14">{escape(y.label)}</text>')
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    at = _WIDTH - _RIGHT - sum(_width(name) for name in names)
    for number, name in enumerate(names):
        parts.append(f'<rect class="s{number % COLORS} swatch" x="{at}" y="6" width="10" height="10"/>')
        parts.append(f'<text x="{at + 14}" y="15">{escape(name)}</text>')
        at += _width(name)
    return parts


def _width(name: str) -> int:
    return 28 + 7 * len(name)


def _line(one: Series, color: int, across: _Scale, upward: _Scale) -> list[str]:
    parts = []
    run: list[str] = []
    runs = [run]
    for px, py in one.points:
        if py is None or (upward.log and py <= 0):
            run = []
            runs.append(run)
            continue
        run.append(f"{across(px):.1f},{upward(py):.1f}")
        if one.marks:
            title = escape(f"{one.name}: {py:,.4g} at {px:,.4g}")
            parts.append(
                f'<circle class="s{color} dot" cx="{across(px):.1f}" cy="{upward(py):.1f}" r="3.5">'
                f"<title>{title}</title></circle>"
            )
    for px, low, high in one.bars:
        at = across(px)
        if not upward.log or low > 0:
            ends = f'y1="{upward(low):.1f}" y2="{upward(high):.1f}"'
            parts.append(f'<line class="s{color} bar" x1="{at:.1f}" x2="{at:.1f}" {ends}/>')
    parts += [f'<polyline class="s{color} line" points="{" ".join(each)}"/>' for each in runs if len(each) > 1]
    parts += [
        f'<circle class="s{color} dot" cx="{each[0].split(",")[0]}" cy="{each[0].split(",")[1]}" r="2"/>'
        for each in runs
        if len(each) == 1 and not one.marks
    ]
    return parts
