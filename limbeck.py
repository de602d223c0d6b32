"""The front door: one command, whose sub-commands import what they need only when they run."""

import functools
import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console

from bulk.command import classify
from bulk.diff_command import diff
from limbeck_errors import reported

if TYPE_CHECKING:
    pass

P = ParamSpec("P")

app = typer.Typer(
    help="Compress a text classifier into a small ONNX bundle, prove what was kept, and serve it over HTTP.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("limbeck"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _reporting(command: Callable[P, None], stopped: str = "stopped") -> Callable[P, None]:
    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with reported(stopped):
            command(*args, **kwargs)

    return run


if find_spec("compress") is not None:  # the service's image has neither the offline half nor the load generator
    from compress import command as compression

    _AGAIN = "stopped; give the same command again to go on"
    app.command()(_reporting(compression.compress, f"{_AGAIN} from the last checkpoint"))
    app.command()(_reporting(compression.tune, _AGAIN))
    app.command()(_reporting(compression.pack, "stopped; nothing was written"))


@app.command()
def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Folders of bundles.  [default: LIMBECK_BUNDLES]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [default: 8000]")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes behind the port.  [default: one a CPU; one where there is a GPU]")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant to serve.  [default: the fastest exact one that passed]")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or tensorrt.  [default: CUDA where it works, else the CPU]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one inference call.  [default: 1]")] = None,
    sessions: Annotated[int | None, typer.Option(help="Inference calls side by side.  [default: one a core]")] = None,
) -> None:
    """Answer classification requests over HTTP until stopped.

    Every other setting is an environment variable LIMBECK_…; docs/configuration.md lists them. SIGTERM finishes what
    was accepted and stops.

    Example: `limbeck serve runs/movie-reviews/bundle --port 8000`, then open http://127.0.0.1:8000/docs
    """
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": workers,
        "variant": variant,
        "provider": provider,
        "threads": threads,
        "sessions": sessions,
    }
    with reported():
        from pydantic import ValidationError

        from service.server import serve as run
        from service.settings import Settings, describe_settings_error

        options = {name: value for name, value in given.items() if value is not None}
        if bundles:
            options |= {"bundles": bundles, "model_folder": None}  # what is named here is all that is served
        try:
            settings = Settings(**options)
        except ValidationError as error:
            raise typer.BadParameter(describe_settings_error(error)) from error
        raise typer.Exit(run(settings))


@app.command()
def inspect(
    bundle: BundleArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show what a bundle is: labels, variants, sizes, metrics, lineage.

    Example: `limbeck inspect runs/movie-reviews/bundle --json | jq .labels`
    """
    with reported():
        from bundle import open_bundle
        from compress.card import print_card

        opened = open_bundle(bundle)
        if as_json:
            typer.echo(json.dumps(opened.manifest.model_dump(mode="json"), indent=2, ensure_ascii=False))
        else:
            print_card(opened)


@app.command()
def verify(bundle: BundleArgument) -> None:
    """Check a bundle: every hash, then every variant's golden inputs on this machine.

    Example: `limbeck verify runs/movie-reviews/bundle`
    """
    with reported():
        from bundle import open_bundle
        from service.engine.session import available_providers
        from service.golden import verify_variant

        opened = open_bundle(bundle)
        console = Console(highlight=False)
        console.print(f"hashes: {len(opened.manifest.files)} files hold")
        for variant in opened.manifest.variants:
            if not set(variant.execution_providers) & set(available_providers()):
                needed = ", ".join(variant.execution_providers)
                console.print(f"golden, {variant.name}: not checked; it runs on {needed}, which is not here")
                continue
            report = verify_variant(opened, variant.name)
            console.print(
                f"golden, {variant.name}: {report.inputs} inputs hold; largest difference "
                f"{report.largest_difference:.1e}, tolerance {report.tolerance:g}"
            )


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="ID", help="What logs and metrics call the key, e.g. search-team.")],
) -> None:
    """Make an API key: the key itself, to be given away, and its entry for the file of LIMBECK_KEYS_FILE.

    The file holds only a hash; the key is shown once.

    Example: `limbeck key search-team >> keys.toml` adds the entry and shows the key.
    """
    from service.keys import make_key

    try:
        secret, entry = make_key(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"the key, which is not shown again: {secret}", err=True)
    typer.echo(entry)


app.command()(_reporting(classify))
if find_spec("loadtest") is not None:
    from loadtest import command as loadtest

    loadtest_app = typer.Typer(
        help="Put a server under load, whichever it is, and say how long its users wait.", no_args_is_help=True
    )
    loadtest_app.command()(_reporting(loadtest.run))
    loadtest_app.command()(_reporting(loadtest.compare))
    app.add_typer(loadtest_app, name="loadtest")
app.command()(_reporting(diff))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
