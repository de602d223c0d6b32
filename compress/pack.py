"""From a fine-tuned classifier to a bundle without training, in one go and with nothing left behind when it fails."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from torch import nn

from bundle import Bundle, Task, check_target
from bundle.manifest import Lineage, StageMetrics
from compress import evaluate, export, search
from compress.calibrate import fit
from compress.errors import GateError, ModelError, RecipeError
from compress.evidence import gather
from compress.gate import failures_table
from compress.machine import describe_machine
from compress.measure import STUDENT, TEACHER, Answers, Ruler, Subject, answers, decide, measure
from compress.models import check_vocabulary_size, load_tokenizer, model_identity, resolve_model, save_tokenizer
from compress.original import labels_of, length_of, load_original, read_config, set_padding, task_of
from compress.outputs import rows_alone
from compress.pack_settings import Settings, default_name, read_settings
from compress.pack_texts import SEED, Texts, find_texts, holds_pairs
from compress.package import all_checks, assemble, drawn, judged, refusal
from compress.pipeline import quiet_libraries, show
from compress.recipe import Export
from compress.reference import MOST_TEXTS
from compress.report import PACKED
from compress.stage import library_versions
from compress.story import Story
from compress.tasks import SPECS, TaskSpec
from service.engine.tokenization import Tokenizer

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Original:
    """The fine-tuned classifier, loaded."""

    model: nn.Module
    tokenizer: Tokenizer
    tokenizer_path: Path
    max_length: int
    labels: list[str]
    spec: TaskSpec
    lineage: dict[str, Any]
    """Where it came from."""


def pack(
    reference: str,
    data: Path | None,
    out: Path | None,
    console: Console,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> Bundle:
    """Make a bundle of a fine-tuned classifier and return it; nothing is trained.

    `task`, `labels` (new names, in the model's order) and `max_length` are read from the model where they are None.
    `out` is by default `bundles/NAME` under the current folder. Raises CompressError (GateError when no variant kept
    enough, unless `force`), and BundleError when the bundle cannot be written.
    """
    quiet_libraries()
    location = resolve_model(reference)
    settings = read_settings(default_name(reference), overrides, labeled=data is not None)
    target = out or Path("bundles") / settings.name
    check_target(target)
    with _workplace(target) as work:
        original = _open(reference, location, work / _TOKENIZER, _task(task), labels, max_length, data)
        if original.spec.multi_label and settings.calibrate.abstention_precision is not None:
            raise RecipeError("--set calibrate.abstention_precision: needs one label a text; found task multi-label")
        texts = find_texts(original.spec, original.labels, data)
        _introduce(original, settings, texts, console)
        ruler = Ruler(original.spec, original.labels, settings.evaluate, SEED, console)
        _export(original, work, console)
        subjects, tried = _quantize(original, settings, texts, ruler, work)
        console.print("[bold]evaluate[/bold]")
        said = {name: answers(ruler, PACKED.titles[name], subject, texts.test) for name, subject in subjects.items()}
        mates = texts.mates(settings.evaluate.invariance_texts)
        metrics = measure(ruler, subjects, said, texts.test, mates)
        found = {name: gather(ruler, subjects[name], said[name], said[TEACHER], texts.test) for name in subjects}
        story = Story(found, tried, settings.report.texts)
        bundle = _package(target, original, settings, texts, subjects, metrics, story, force=force)
    show(bundle, console, "test split" if texts.given else "sample texts")
    if not texts.given:
        console.print(
            "No data was given: quality was not measured, the golden inputs are unlabeled, and flips are of sample "
            "texts; --data FILE measures your own and holds the gate against them",
            soft_wrap=True,
        )
    return bundle


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that goes on every way out, with the folders above that were made for it."""
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.work.", dir=target.parent) as folder:
            yield Path(folder)
    finally:
        for parent in made:
            with suppress(OSError):  # it holds the bundle
                parent.rmdir()


def _open(
    reference: str,
    location: str,
    tokenizer_path: Path,
    wanted: Task | None,
    names: Sequence[str] | None,
    max_length: int | None,
    data: Path | None,
) -> Original:
    config = read_config(reference, location)
    spec = SPECS[task_of(config, reference, wanted, lambda: data is not None and holds_pairs(data))]
    labels = labels_of(config, reference, names, spec)
    tokenizer = load_tokenizer(location)
    model = load_original(reference, location, spec, labels)
    set_padding(model, tokenizer, reference)
    length = length_of(model, tokenizer, reference, max_length)
    save_tokenizer(tokenizer, tokenizer_path)
    own = Tokenizer(tokenizer_path, length)
    check_vocabulary_size(model, own, reference)
    lineage = {"model": reference, "files": model_identity(reference, Path())}
    return Original(model, own, tokenizer_path, length, labels, spec, lineage)


def _introduce(original: Original, settings: Settings, texts: Texts, console: Console) -> None:
    rows = f"{len(texts.validation)} validation, {len(texts.test)} test rows" if texts.given else "no data given"
    console.print(
        f"{settings.name}: {original.spec.task.value}, {len(original.labels)} labels, at most {original.max_length} "
        f"tokens; {rows}",
        soft_wrap=True,
        markup=False,
    )


def _export(original: Original, work: Path, console: Console) -> None:
    """Write the original as the exporter makes it, and fused."""
    console.print("[bold]export[/bold]")
    model, labels, length = original.model, len(original.labels), original.max_length
    plain, fused = work / export.TEACHER, work / export.STUDENT
    onnx.save(export.export_model(model, original.spec.exporter_task, Export().opset, work), plain)
    parity = export.check_parity(model, plain, labels, length)
    shutil.copyfile(plain, fused)
    done = export.fuse(model, fused, labels, length)
    console.print(
        f"  largest difference from torch {parity:.1e}; fused, {done['fused_attentions']} attentions: "
        f"{done.get('parity', parity):.1e}",
        soft_wrap=True,
    )


def _quantize(
    original: Original, settings: Settings, texts: Texts, ruler: Ruler, work: Path
) -> tuple[dict[str, Subject], dict[str, Any]]:
    """Write the variants; return all models, the original first, and what was tried."""
    ruler.console.print("[bold]quantize[/bold]")
    teacher, of_teacher = _validated(TEACHER, work / export.TEACHER, original, settings, texts, ruler)
    student, of_student = _validated(STUDENT, work / export.STUDENT, original, settings, texts, ruler)
    held = search.Held(ruler, settings.gate, texts.validation, of_teacher, of_student, student)
    inputs = [example.input for example in texts.validation[: settings.quantize.calibration_texts]]
    tried = search.write_variants(work, settings.quantize, held, original.tokenizer.encode(inputs))
    subjects = {TEACHER: teacher, STUDENT: student, evaluate.INT8: replace(student, path=work / search.MODEL)}
    if settings.quantize.fp16:
        subjects[evaluate.FP16] = replace(student, path=work / search.HALF_MODEL, timed=False)
    return subjects, tried


def _validated(
    name: str, path: Path, original: Original, settings: Settings, texts: Texts, ruler: Ruler
) -> tuple[Subject, Answers]:
    """Return a model with what was fitted on the validation texts, and what it says of them."""
    tokenizer, spec = original.tokenizer, original.spec
    encoded = spec.encode(tokenizer, texts.validation, original.labels)
    rows = rows_alone(path, encoded, tokenizer.pad_id, ruler.console, f"validating {PACKED.titles[name]}")
    subject = Subject(path, tokenizer, fit(rows, encoded.targets, spec, settings.calibrate))
    return subject, decide(ruler, subject, texts.validation, rows)


def _package(
    target: Path,
    original: Original,
    settings: Settings,
    texts: Texts,
    subjects: Mapping[str, Subject],
    metrics: Sequence[StageMetrics],
    story: Story,
    *,
    force: bool,
) -> Bundle:
    spec = original.spec
    variants = judged(metrics, settings.gate, spec, force=force)
    if not any(variant.servable for variant in variants):
        table = failures_table(all_checks(metrics, settings.gate, spec))
        raise GateError(refusal(variants, target, "Loosen the gate (--set gate.KEY=VALUE)"), table)
    stages = {"float32": STUDENT, "int8": evaluate.INT8, "float16": evaluate.FP16}
    own = {"task": spec.task.value, "seed": SEED, "data": {"max_length": original.max_length}}
    return assemble(
        target,
        spec,
        name=settings.name,
        version=settings.version,
        labels=original.labels,
        models={variant.name: subjects[stages[variant.dtype]].path for variant in variants},
        variants=variants,
        fitted=subjects[STUDENT].fitted,
        tokenizer=original.tokenizer_path,
        max_length=original.max_length,
        golden=drawn(texts.test, settings.evaluate.golden_inputs, SEED),
        reference=drawn(texts.test, MOST_TEXTS, SEED),
        metrics=metrics,
        baselines=[],
        lineage=Lineage(
            recipe={"packed": original.lineage, **own, **settings.model_dump(mode="json")},
            data=texts.fingerprints(original.labels),
            overlap=texts.overlap(),
            seeds={"seed": SEED},
            library_versions=library_versions(),
            machine=describe_machine(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        story=story,
    )


def _task(name: str | None) -> Task | None:
    try:
        return None if name is None else Task(name)
    except ValueError as error:
        raise ModelError(f"--task is {name!r}; expected one of {', '.join(Task)}") from error
