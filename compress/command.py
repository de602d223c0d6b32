"""`limbeck compress`, `limbeck tune` and `limbeck pack`: what they are given; the work is imported when they run."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from bundle import Bundle


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
        str | None,
        typer.Option(
            metavar="N|A,B,…", help="Make N students, the last at the recipe's target, or one for each target."
        ),
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
    than the one before, the last at the target, and --pareto 12,25,50 one for each of these targets, in the unit of
    the recipe's; bundles are in DIR/pareto/1/bundle and so on.

    Example: `limbeck compress examples/movie-reviews/recipe.yaml --out runs/movie-reviews`
    """
    console = Console(highlight=False)
    if pareto is not None and num_processes > 1:
        raise typer.BadParameter("--pareto makes its students in one process; leave --num-processes out")
    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        from compress.launch import launch

        raise typer.Exit(launch(sys.argv[1:], num_processes))
    if pareto is not None:
        from compress.pareto import pareto as several

        for point in several(recipe, overrides or [], out, console, _wanted(pareto), force, tensorboard):
            console.print(f"bundle: {point.folder}", markup=False, soft_wrap=True)
        return
    from compress.pipeline import compress as run

    bundle = run(recipe, overrides or [], out, console, force, tensorboard)
    if bundle is not None:
        print_next(bundle, console)


def _wanted(pareto: str) -> list[float] | int:
    """Return the targets that --pareto names, or how many; raises BadParameter."""
    try:
        if "," in pareto:
            return [float(part) for part in pareto.split(",")]
        if (number := int(pareto)) >= 2:
            return number
    except ValueError:
        pass
    raise typer.BadParameter(
        f"--pareto: found {pareto!r}; expected how many students (2 or more), or targets: 12,25,50"
    )


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
    from compress.tune import tune as run

    best = run(recipe, overrides or [], out, console, trials)
    words = " ".join(f"--set {shlex.quote(word)}" for word in (*(overrides or []), *best["set"]))
    target = "" if out is None else f" --out {shlex.quote(str(out))}"
    console.print(f"\nbest validation score {best['score']:.4f}; make its bundle with:", soft_wrap=True)
    console.print(f"limbeck compress {shlex.quote(str(recipe))}{target} {words}", markup=False, soft_wrap=True)


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
    print_next(bundle, console)


def print_next(bundle: "Bundle", console: Console) -> None:
    """Say what to do with a bundle that was made."""
    from bundle import Task

    verb = "Check" if bundle.manifest.task is Task.TOKEN_CLASSIFICATION else "Serve"
    command = "verify" if verb == "Check" else "serve"
    console.print(f"\n{verb} the bundle with: limbeck {command} {bundle.folder}", markup=False, soft_wrap=True)
