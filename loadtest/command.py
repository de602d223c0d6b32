"""The commands `limbeck loadtest run` and `compare`: their options, and what they say."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from loadtest.arrivals import Arrivals
from loadtest.dialects import DIALECTS

if TYPE_CHECKING:
    from loadtest.result import Result

OBJECTIVE_MISSED = 3
"""Exit code when the objective was not held, or no rate holds it."""


def run(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://localhost:8000.")],
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Requests a second; with --find-max the first rate to try.  [default: 50]"),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, max=65536, metavar="N", help="Instead: a closed loop; N clients wait for their answers."),
    ] = None,
    duration: Annotated[
        int, typer.Option(min=1, max=86400, metavar="S", help="Seconds that are measured, after the warm-up.")
    ] = 30,
    warm_up: Annotated[float, typer.Option(min=0, max=3600, metavar="S", help="Seconds before, not measured.")] = 2.0,
    slo: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Objective, such as 'p99<50ms' or 'p99<50ms,p50<9ms,errors<1%'."),
    ] = None,
    find_max: Annotated[
        bool, typer.Option("--find-max", help="Search for the highest rate that holds the objective.")
    ] = False,
    want_rate: Annotated[
        float | None, typer.Option(metavar="R", help="With --find-max: say how many replicas hold this rate.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="P", help="With --find-max: of a replica; say what a million texts cost.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your texts: .jsonl, .csv or .txt.  [default: a small built-in sample]"),
    ] = None,
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column that holds the text.")] = "text",
    text_pair_column: Annotated[
        str, typer.Option(metavar="NAME", help="Column that holds the second text.")
    ] = "text_pair",
    pairs: Annotated[bool, typer.Option("--pairs", help="Send pairs of texts, for a model that compares two.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Texts in each request.")] = 1,
    dialect: Annotated[str, typer.Option(help=f"How to ask: {', '.join(DIALECTS)} (docs/api.md).")] = "native",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model to ask.  [default: the server's]")] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Sent as `Authorization: Bearer`.")] = None,
    arrivals: Annotated[
        str, typer.Option(help="poisson, as from many users, or constant, at equal distances.")
    ] = "poisson",
    reuse: Annotated[
        bool, typer.Option("--reuse/--no-reuse", help="Keep connections, or open one for every request.")
    ] = True,
    max_connections: Annotated[
        int, typer.Option(min=1, max=65536, metavar="N", help="At the same time, of each process.")
    ] = 1024,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="S", help="A request without an answer by then is an error.")
    ] = 10.0,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, metavar="N", help="That send.  [default: as many as it takes]")
    ] = None,
    metrics_path: Annotated[str, typer.Option(metavar="PATH", help="The server's own metrics.")] = "/metrics",
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, and of the order of texts.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report here.")] = None,
) -> None:
    """Put a server under load and say how long its users wait.

    Requests leave at times that are fixed before, whether or not earlier ones were answered, and latencies count from
    those times: a server that stalls is charged for everyone who would have waited. Says so when the load generator,
    and not the server, was the limit. Exit code 3: the objective was not held, or no rate holds it.

    Examples: `limbeck loadtest run http://localhost:8000 --rate 200 --html report.html`,
    `limbeck loadtest run http://localhost:8000 --find-max --slo 'p99<50ms' --want-rate 5000 --html report.html`
    """
    if dialect not in DIALECTS:
        raise typer.BadParameter(f"--dialect: found {dialect!r}, expected one of {', '.join(DIALECTS)}")
    if arrivals not in list(Arrivals):
        raise typer.BadParameter(f"--arrivals: found {arrivals!r}, expected one of {', '.join(Arrivals)}")
    _check_load(rate, clients, find_max, slo)
    for name, number in (("--rate", rate), ("--want-rate", want_rate), ("--price-per-hour", price_per_hour)):
        if number is not None and not 0 < number <= 1e7:
            raise typer.BadParameter(f"{name}: found {number:g}, expected a number above 0")
    if not find_max and (want_rate is not None or price_per_hour is not None):
        raise typer.BadParameter(
            "--want-rate and --price-per-hour go with --find-max, which finds what one replica holds"
        )
    _check_files(json_file, html_file)

    from loadtest.html import write_report
    from loadtest.result import write_result
    from loadtest.run import Options
    from loadtest.run import run as run_test
    from loadtest.tables import print_result, widened

    options = Options(
        url=url,
        rate=rate,
        clients=clients,
        seconds=duration,
        warm_up_s=warm_up,
        slo=slo,
        find_max=find_max,
        texts=texts,
        text_column=text_column,
        text_pair_column=text_pair_column,
        pairs=pairs,
        texts_a_request=batch,
        dialect=dialect,
        model=model,
        api_key_file=api_key_file,
        arrivals=Arrivals(arrivals),
        reuse=reuse,
        max_connections=max_connections,
        timeout_s=timeout,
        processes=processes,
        metrics_path=metrics_path,
        want_rate=want_rate,
        price_per_hour=price_per_hour,
        seed=seed,
    )
    console = Console(stderr=True, highlight=False)
    result = run_test(options, console)
    print_result(result, widened(Console(highlight=False)))
    for file, write in ((json_file, write_result), (html_file, write_report)):
        if file is not None:
            write(result, file)
            console.print(f"→ {file}", markup=False, soft_wrap=True)
    if _missed(result):
        raise typer.Exit(OBJECTIVE_MISSED)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A result of `run --json`.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
) -> None:
    """Show two results side by side, and which differences are more than noise.

    Compared are the steps at the highest rate that both were asked. A difference is B minus A, with its 95 % interval;
    where that holds 0 it is within noise. What differs from run to run on one machine the interval does not know:
    repeat both before a small difference is believed.

    Example: `limbeck loadtest compare before.json after.json`
    """
    from loadtest.compare import compare as compare_results
    from loadtest.result import read_result
    from loadtest.tables import print_comparison, widened

    comparison = compare_results(read_result(first), read_result(second))
    names = (first.stem, second.stem) if first.stem != second.stem else (str(first), str(second))
    print_comparison(comparison, names, widened(Console(highlight=False)))


def _check_load(rate: float | None, clients: int | None, find_max: bool, slo: str | None) -> None:
    if find_max:
        if slo is None:
            raise typer.BadParameter("--find-max needs an objective, such as --slo 'p99<50ms'")
        if clients is not None:
            raise typer.BadParameter("--find-max needs an open loop: it goes with no --clients")
    elif (rate is None) == (clients is None):
        raise typer.BadParameter("give one of --rate (requests a second) and --clients (closed loop), or --find-max")


def _check_files(*files: Path | None) -> None:
    """Say before the test, not after it, that its result has no place."""
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise typer.BadParameter(
                f"{file}: there is no folder {file.absolute().parent}" if not file.is_dir() else f"{file}: is a folder"
            )


def _missed(result: "Result") -> bool:
    if result.maximum is not None:
        return result.maximum.rate is None
    verdict = result.steps[-1].verdict
    return verdict is not None and not verdict.held
