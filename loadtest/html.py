"""The report of a load test as one HTML file: no script, no outside request."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from loadtest import objective
from loadtest.compare import load
from loadtest.outcome import curve
from loadtest.result import Result, StepResult, whole_file
from loadtest.server_metrics import ServerMoment
from loadtest.svg import COLORS, Axis, Series, line_chart
from loadtest.tables import interval, number, remarks

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #fff; --grid: #e3e6ea;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #8a6d00; --c5: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --paper: #14171a; --grid: #2c3238;
  --c0: #56b4e9; --c1: #ff9d52; --c2: #35c99b; --c3: #e79fc7; --c4: #d9bd4a; --c5: #8ecdf2; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; } p { margin: .3rem 0; }
.soft, figcaption { color: var(--soft); } .warn { color: var(--c1); font-weight: 600; }
.answer { font-size: 1.15rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .7rem .15rem 0; white-space: nowrap; border-bottom: 1px solid var(--grid); }
td.text, th.text { text-align: left; white-space: normal; min-width: 12rem; }
figure { margin: .5rem 0 1rem; } svg { width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--grid); } .limit { stroke: var(--c1); stroke-dasharray: 6 4; }
.line { fill: none; stroke-width: 2; } .bar { stroke-width: 2; opacity: .6; }
"""
_PERCENTILES = [(share, name) for share, name in ((1.0, "0"), (2.0, "50"), (10.0, "90"), (100.0, "99"))]
_PERCENTILES += [(1e3, "99.9"), (1e4, "99.99"), (1e5, "99.999")]
_CURVE = [1 - 10 ** (-place / 15) for place in range(76)]
_MOST_CURVES = COLORS


def write_report(result: Result, path: Path) -> None:
    """Write the report, whole or not at all; raises OSError."""
    with whole_file(path) as file:
        file.write(report(result).encode())


def report(result: Result) -> str:
    """Return the page."""
    asking = result.asking
    what = f"dialect {asking.dialect}" + (f", model {asking.model}" if asking.model else "")
    how = f"{asking.texts_a_request} {'pair' if asking.pairs else 'text'}{'s' if asking.texts_a_request > 1 else ''}"
    arrivals = f"open loop, {asking.arrivals} arrivals" if asking.arrivals else "closed loop"
    reuse = "connections are kept" if asking.reuse else "a new connection for every request"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Load test of {escape(asking.url)}</title><style>{_STYLE}{_colors()}</style></head><body>",
        f"<h1>Load test of {escape(asking.url)}</h1>",
        f'<p class="soft">{escape(result.began)} · Limbeck {escape(result.version)} · {escape(what)} · {how} a request '
        f"· {arrivals} · {reuse} · {asking.warm_up_s:g} s of warm-up left out</p>",
        f'<p class="soft">{escape(asking.texts)}: {escape(str(asking.mix))}</p>',
        *_remarks(result),
        "<h2>Steps</h2>",
        _steps(result),
        *_against_rate(result),
        *_curves(result),
        *_time_line(result.main_step),
        "<h2>How to read this</h2>",
        "<p>A latency counts from the time its request was scheduled for, whether or not the server had answered the "
        "ones before: a server that stalls is charged for all who would have waited. Latencies are those of good "
        "answers and of requests that had none in time; other errors are counted and not timed. Square brackets are "
        "95 % intervals within this run; they do not know what differs from one run to the next.</p>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _colors() -> str:
    return "\n".join(
        f".s{n}.line, .s{n}.bar {{ stroke: var(--c{n}); }} .s{n}.dot, .s{n}.swatch {{ fill: var(--c{n}); }}"
        for n in range(COLORS)
    )


def _remarks(result: Result) -> list[str]:
    parts = []
    for line in remarks(result):
        loud = line.startswith(("NOT A", "errors", "no rate"))
        kind = ' class="answer"' if line.startswith("highest rate") else ' class="warn"' if loud else ""
        parts.append(f"<p{kind}>{escape(line)}</p>")
    return parts


def _steps(result: Result) -> str:
    names = [
        "asked /s",
        "achieved /s [95 %]",
        "p50 ms [95 %]",
        "p90",
        "p99 [95 %]",
        "p99.9",
        "max",
        "errors",
        "sent late",
    ]
    rows = []
    for step in result.steps:
        outcome = step.outcome
        latency = outcome.latency_ms
        errors = ", ".join(f"{count:,} × {kind}" for kind, count in outcome.errors.items()) or "0"
        cells = [
            load(outcome) if outcome.rate_asked is None else f"{outcome.rate_asked:g}",
            f"{number(outcome.rate.value)} {_ends(interval(outcome.rate))}",
            f"{number(latency['p50'].value)} {_ends(interval(latency['p50']))}",
            number(latency["p90"].value),
            f"{number(latency['p99'].value)} {_ends(interval(latency['p99']))}",
            number(latency["p99.9"].value),
            number(outcome.max_ms),
            errors,
            number(outcome.lag_p99_ms),
        ]
        told = "" if step.verdict is None else str(step.verdict)
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr>{row}<td>{outcome.samples:,}</td><td class="text">{escape(told)}</td></tr>')
    head = "".join(f"<th>{name}</th>" for name in [*names, "samples"])
    return (
        f'<div class="wide"><table><tr>{head}<th class="text">objective</th></tr>{"".join(rows)}</table></div>'
        '<p class="soft">Sent late: how long after its time a request left for the load generator’s own reasons, p99 '
        "in milliseconds.</p>"
    )


def _ends(text: str) -> str:
    return text.replace("\\", "")


def _against_rate(result: Result) -> list[str]:
    """Latency against rate, which takes more than one rate."""
    steps = sorted(
        (step.outcome for step in result.steps if step.outcome.rate_asked is not None),
        key=lambda one: one.rate_asked or 0,
    )
    if len({one.rate_asked for one in steps}) < 2:
        return []
    series = []
    for name in ("p50", "p99"):
        points = [(one.rate_asked or 0.0, one.latency_ms[name].value) for one in steps]
        bars = [
            (one.rate_asked or 0.0, found.low, found.high)
            for one in steps
            if (found := one.latency_ms[name]).low is not None and found.high is not None
        ]
        series.append(Series(name, points, bars, marks=True))
    limits = {} if result.objective is None else objective.parse(result.objective).limits_ms
    chart = line_chart(
        series,
        Axis("requests a second that were asked", log=True),
        Axis("latency, ms", log=True),
        "Latency against rate",
        limit=limits.get(0.99),
    )
    return [
        "<h2>Latency against rate</h2>",
        _figure(chart, "Bars are 95 % intervals; the dashed line is the objective."),
    ]


def _curves(result: Result) -> list[str]:
    """Percentile curves of the highest rates; of a rate that was repeated, the last."""
    latest = {load(step.outcome): step.outcome for step in result.steps if step.outcome.samples}
    chosen = sorted(latest.values(), key=lambda one: one.rate_asked or 0.0)
    if len(chosen) > _MOST_CURVES:
        places = [round(place * (len(chosen) - 1) / (_MOST_CURVES - 1)) for place in range(_MOST_CURVES)]
        chosen = [chosen[place] for place in places]
    series = [
        Series(
            f"{one.rate_asked:g}/s" if one.rate_asked is not None else load(one),
            [(1 / (1 - share), ms) for share, ms in curve(one, _CURVE)],
        )
        for one in chosen
    ]
    chart = line_chart(
        series, Axis("percentile", log=True, ticks=_PERCENTILES), Axis("latency, ms", log=True), "Percentile curves"
    )
    return ["<h2>Percentile curves</h2>", _figure(chart, "Each is drawn as far as its samples reach.")]


def _time_line(step: StepResult) -> list[str]:
    outcome, moments = step.outcome, step.outcome.timeline
    time = Axis("seconds")
    latency: list[tuple[str, list[float | None]]] = [
        ("p50", [one.p50_ms for one in moments]),
        ("p99", [one.p99_ms for one in moments]),
        ("max", [one.max_ms for one in moments]),
    ]
    at = [one.at_s for one in moments]
    charts = [
        line_chart(
            [Series(name, list(zip(at, values, strict=True))) for name, values in latency],
            time,
            Axis("latency of the answers that came, ms", log=True),
            "Latency over time",
        ),
        line_chart(
            [
                Series(
                    "good answers /s", [(one.at_s, one.answers_per_s) for one in moments if one.at_s < outcome.seconds]
                ),
                Series("errors", [(one.at_s, float(one.errors)) for one in moments]),
            ],
            time,
            Axis("answers"),
            "Answers over time",
        ),
    ]
    parts = [f"<h2>Time line at {escape(load(outcome))}</h2>", *(_figure(chart, "") for chart in charts)]
    if not step.server:
        return [*parts, '<p class="soft">The server’s own metrics were not found, or not read during this step.</p>']
    return [*parts, "<h2>What the server said meanwhile</h2>", *(_figure(chart, "") for chart in _server(step.server))]


def _server(moments: Sequence[ServerMoment]) -> list[str]:
    def series(name: str, value: Callable[[ServerMoment], float | None]) -> Series:
        return Series(name, [(one.at_s, value(one)) for one in moments])

    time = Axis("seconds")
    times_taken = [
        series("waiting in the queue", lambda one: one.queue_wait_ms),
        series("inference, a batch", lambda one: one.inference_ms),
        series("tokenization, a call", lambda one: one.tokenization_ms),
    ]
    return [
        line_chart(times_taken, time, Axis("mean, ms"), "Where the server’s time goes"),
        line_chart([series("entries", lambda one: one.queue_entries)], time, Axis("waiting entries"), "Queue"),
        line_chart([series("entries", lambda one: one.batch_size)], time, Axis("mean batch"), "Batch size"),
    ]


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
