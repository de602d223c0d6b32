"""The front door: one command, whose sub-commands import what they need only when they run."""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console

from bulk.command import classify
from bulk.diff_command import diff
from limbeck_errors import reported
from loadtest import command as loadtest

if TYPE_CHECKING:
    from bundle import Bundle

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


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; docs/recipe.md lists every key.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set distill.epochs=2. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where work/ and bundle/ go.  [default: runs/NAME]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write the bundle although its gate failed; it is marked as forced.")
    ] = False,
    num_processes: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes that train together: one a GPU, or shares of the CPU.")
    ] = 1,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write loss, rate and validation score for TensorBoard.")
    ] = None,
    pareto: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Make N students, the last of them at the recipe's target.")
    ] = None,
) -> None:
    """Distil, export, quantize, evaluate and package a classifier.

    Stages: teacher, targets, distill, vocabulary, prune, export, calibrate, quantize, baselines, evaluate, package
    (vocabulary and prune where the recipe asks for them: `vocabulary`, `target`). A run that was killed
    goes on where it was when the same command is given again; a stage runs anew only when something it reads has
    changed. Exit code 3: no variant kept what the recipe's gate demands; no bundle is written without --force.

    With --num-processes N (or under `accelerate launch -m limbeck compress …`) every batch is shared between N
    processes; if one dies, all stop, and the same command goes on. A recipe with teacher.others or teacher.llm has the
    stages teacher-2 … and label, too.

    With a target the student is pruned until its INT8 variant meets it: --set 'target={speedup: 20}', {latency_ms: 2}
    (of a text of 32 tokens) or {size_mb: 8}. --pareto 5 makes five students, each of the same ratio faster (or smaller)
    than the one before, the last at the target; bundles are in DIR/pareto/1/bundle and so on.

    Example: `limbeck compress examples/movie-reviews/recipe.yaml --out runs/movie-reviews`
    """
    console = Console(highlight=False)
    with reported("stopped; give the same command again to go on from the last checkpoint"):
        if pareto is not None and num_processes > 1:
            raise typer.BadParameter("--pareto makes its students in one process; leave --num-processes out")
        if num_processes > 1 and "WORLD_SIZE" not in os.environ:
            from compress.launch import launch

            raise typer.Exit(launch(sys.argv[1:], num_processes))
        if pareto is not None:
            from compress.pareto import pareto as several

            for point in several(recipe, overrides or [], out, console, pareto, force):
                console.print(f"bundle: {point.folder}", markup=False, soft_wrap=True)
            return
        from compress.pipeline import compress as run

        bundle = run(recipe, overrides or [], out, console, force, tensorboard)
        if bundle is not None:
            _print_next(bundle, console)


@app.command()
def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file with tune.space; docs/recipe.md.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of an interrupted search counted.")] = 20,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key for every trial. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where work/ and tune.json go.  [default: runs/NAME]")
    ] = None,
) -> None:
    """Search over keys of a recipe for the student that is best on the validation split.

    A trial teaches a student with other values of the keys in `tune.space`; what they do not change, such as the
    teacher, is kept. The test split is not looked at. Give the same command again after a kill, or with more --trials,
    to go on.

    Example: `limbeck tune recipe.yaml --trials 20 --out runs/mine`, with
    `tune: {space: {distill.learning_rate: {low: 2e-5, high: 5e-4, log: true}, distill.loss: [mse, kl]}}`
    """
    console = Console(highlight=False)
    with reported("stopped; give the same command again to go on"):
        from compress.tune import tune as run

        best = run(recipe, overrides or [], out, console, trials)
        words = " ".join(f"--set {shlex.quote(word)}" for word in (*(overrides or []), *best["set"]))
        target = "" if out is None else f" --out {shlex.quote(str(out))}"
        console.print(f"\nbest validation score {best['score']:.4f}; make its bundle with:", soft_wrap=True)
        console.print(f"limbeck compress {shlex.quote(str(recipe))}{target} {words}", markup=False, soft_wrap=True)


@app.command()
def pack(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A fine-tuned classifier: a folder, a hub id or package:NAME.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labeled rows (.jsonl, .csv, .parquet) to measure quality on; columns as docs/recipe.md names them.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the bundle goes.  [default: bundles/NAME]")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="single-label, multi-label, pair or token-classification.  [default: its config]")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names for the model's labels in its order, with commas between them.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens; longer texts are cut.  [default: up to 512]")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A key of a recipe's gate, evaluate, calibrate or quantize, or name, version, price_per_core_hour.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write the bundle although its gate failed; it is marked as forced.")
    ] = False,
) -> None:
    """Make a bundle of any fine-tuned classifier, without training: export, per-token INT8, golden inputs.

    With --data the same evaluation and gate as in `limbeck compress`: a third of the rows is for choosing, the rest
    for measuring. Without, the bundle says what was not measured. Exit code 3: the gate failed; no bundle is written.

    Example: `limbeck pack ./my-classifier --data held-out.jsonl --out bundles/mine`
    """
    console = Console(highlight=False)
    with reported("stopped; nothing was written"):
        from compress.pack import pack as run

        names = None if labels is None else [name.strip() for name in labels.split(",")]
        bundle = run(
            model,
            data,
            out,
            console,
            task=task,
            labels=names,
            max_length=max_length,
            overrides=overrides or [],
            force=force,
        )
        _print_next(bundle, console)


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


def _print_next(bundle: "Bundle", console: Console) -> None:
    from bundle import Task

    verb = "Check" if bundle.manifest.task is Task.TOKEN_CLASSIFICATION else "Serve"
    command = "verify" if verb == "Check" else "serve"
    console.print(f"\n{verb} the bundle with: limbeck {command} {bundle.folder}", markup=False, soft_wrap=True)


def _reporting(command: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with reported():
            command(*args, **kwargs)

    return run


app.command()(_reporting(classify))
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
