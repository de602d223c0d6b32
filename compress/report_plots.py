"""The plots of the report, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bundle.manifest import Calibration, CalibrationBin
from compress.report_svg import GRID, PAPER, SERIES, SOFT, inline, styled

_WIDE = 7.6  # inches; the page stretches it
_MARKERS = "osD^vP"
_FAR_APART = 5
"""Times; from here on a linear axis would press the cheap models together."""
_LEAST_SPAN = 4.0
"""Points of quality on the vertical axis, at least."""
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Point:
    """A model where its quality and its time are known."""

    name: str
    cost: float
    """On the horizontal axis."""
    quality: float
    low: float | None = None
    """The 95 % interval of `quality`; None where there is none."""
    high: float | None = None
    refused: bool = False
    beside: bool = False
    """Not one of the bundle's models: something to compare with."""


def trade_off(points: Sequence[Point], metric: str, cost: str, name: str, label: str) -> Markup:
    """Return quality against cost, on a logarithmic axis where costs are far apart."""
    with styled():
        figure = Figure((_WIDE, 3.3 + 0.16 * ((len(points) + 1) // 2)), layout="constrained")
        axes = figure.add_subplot()
        for number, point in enumerate(points):
            color = SERIES[number % len(SERIES)]
            bar = None
            if point.low is not None and point.high is not None:
                bar = [[100 * (point.quality - point.low)], [100 * (point.high - point.quality)]]
            axes.errorbar(
                [point.cost],
                [100 * point.quality],
                yerr=bar,
                fmt="x" if point.refused else _MARKERS[number % len(_MARKERS)],
                color=color,
                markerfacecolor=PAPER if point.beside else color,
                markersize=7,
                capsize=3,
                elinewidth=1.2,
                label=f"{point.name} (refused)" if point.refused else point.name,
            )
        costs = [point.cost for point in points]
        if max(costs) > _FAR_APART * min(costs):
            axes.set_xscale("log")
            _plain_numbers(axes.xaxis)
            axes.margins(x=0.12)
        else:
            axes.set_xlim(0, 1.1 * max(costs))
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:  # what is a few texts must not look like a gulf
            axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)
        axes.set_xlabel(cost)
        axes.set_ylabel(f"{metric}, %")
        figure.legend(loc="outside lower center", ncols=2, columnspacing=2)
        return inline(figure, name, label)


def reliability(after: Calibration, before: Calibration | None, label: str) -> Markup:
    """Return accuracy against confidence, and below it how many decisions have that confidence."""
    with styled():
        figure = Figure((_WIDE, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":", label="perfect")
        if before is not None:
            _reliability_line(upper, before.bins, SERIES[1], "--", "s", f"as trained, ECE {before.expected_error:.3f}")
        told = "" if before is None else "after temperature, "
        _reliability_line(upper, after.bins, SERIES[0], "-", "o", f"{told}ECE {after.expected_error:.3f}")
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("share that is right")
        upper.legend(loc="upper left")
        lows, widths = [one.low for one in after.bins], [one.high - one.low for one in after.bins]
        counts = [one.count for one in after.bins]
        lower.bar(lows, counts, widths, align="edge", color=SERIES[0], edgecolor=GRID, linewidth=0.5, alpha=0.7)
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        lower.set_ylabel("decisions")
        lower.set_xlabel("confidence")
        return inline(figure, "reliability", label)


def training(curves: Mapping[str, Sequence[float]], metric: str, label: str) -> Markup:
    """Return the validation metric after each epoch of everything that was trained."""
    with styled():
        figure = Figure((_WIDE, 3.2 + 0.16 * ((len(curves) + 1) // 2)), layout="constrained")
        axes = figure.add_subplot()
        for number, (title, scores) in enumerate(curves.items()):
            axes.plot(
                range(1, len(scores) + 1),
                [100 * score for score in scores],
                color=SERIES[number % len(SERIES)],
                linestyle=_LINES[number // len(SERIES) % len(_LINES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                label=title,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {metric}, %")
        figure.legend(loc="outside lower center", ncols=2, columnspacing=2)
        return inline(figure, "training", label)


def _reliability_line(
    axes: Axes, bins: Sequence[CalibrationBin], color: str, line: str, marker: str, label: str
) -> None:
    known = [(one.mean_confidence, one.accuracy) for one in bins if one.count]
    axes.plot(*zip(*known, strict=True), color=color, linestyle=line, marker=marker, markersize=5, label=label)


def _plain_numbers(axis: Axis) -> None:
    """Write 2 and 20 rather than powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
