"""The keys of a recipe that `limbeck pack` reads, and what they are unless the user says otherwise."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.manifest import Name
from compress.errors import RecipeError
from compress.recipe import Calibrate, Evaluate, Gate, Quantize, Report

# A model is unsure of texts that it was not made for: a film classifier whose INT8 lost nothing on film reviews flipped
# 10 % of the sample texts. So flips there only guard against an INT8 that is broken, and their latency is but a hint.
_UNLABELED = {"gate.max_label_flips": 0.2, "evaluate.latency_texts": 16, "evaluate.latency_rounds": 3}
_NEED_LABELS = ("max_quality_drop", "max_recall_drop", "max_slice_drop", "min_slice_texts", "max_calibration_error")


class Settings(BaseModel):
    """The keys of a recipe that a pack reads, and what they are unless the user says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    version: Name = "1"
    quantize: Quantize = Quantize(candidates=("per-token",))
    calibrate: Calibrate = Calibrate(temperature=False, thresholds=False)
    evaluate: Evaluate = Evaluate(baselines=False, latency_texts=32, latency_rounds=5)
    gate: Gate = Gate()
    report: Report = Report()
    price_per_core_hour: float | None = Field(default=None, gt=0)


def default_name(reference: str) -> str:
    """Return the last part of a model's folder or hub id, made to fit a bundle's name."""
    folder = Path(reference)
    last = folder.resolve().name if folder.is_dir() else re.split("[/:]", reference)[-1]
    return re.sub("[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:64] or "model"


def read_settings(name: str, overrides: Sequence[str], *, labeled: bool) -> Settings:
    """Return the settings with `key=value` overrides, whose values are read as YAML; raises RecipeError.

    `labeled` says whether there is data for those that need it.
    """
    document = Settings(name=name).model_dump()
    parts = [key for key, value in document.items() if isinstance(value, dict)]
    for key, value in () if labeled else _UNLABELED.items():
        part, _, field = key.partition(".")
        document[part][field] = value
    for override in overrides:
        key, equals, raw = override.partition("=")
        part, _, field = key.partition(".")
        if not equals or not key:
            raise RecipeError(f"--set {override!r}: expected key=value, for example gate.max_quality_drop=0.01")
        if key in document and key not in parts:
            document[key] = raw.strip()
        elif part in parts and field:
            try:
                document[part][field] = yaml.safe_load(raw)
            except yaml.YAMLError as error:
                raise RecipeError(f"--set {override!r}: the value is not YAML: {error}") from error
        else:
            keys = [key for key in document if key not in parts] + [f"{part}.*" for part in parts]
            raise RecipeError(f"--set {override!r}: pack does not read that key; expected one of {', '.join(keys)}")
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        raise RecipeError("\n".join(_problems(error))) from error
    _check_usable(settings, {override.partition("=")[0] for override in overrides}, labeled=labeled)
    return settings


def _check_usable(settings: Settings, given: set[str], *, labeled: bool) -> None:
    """Raise RecipeError for settings that would be read and then do nothing."""
    if settings.evaluate.baselines:
        raise RecipeError("--set evaluate.baselines: pack trains nothing, so there are no baselines; use a recipe")
    if labeled:
        return
    idle = [f"calibrate.{key}" for key, value in settings.calibrate if value]
    idle += sorted(given & {f"gate.{key}" for key in _NEED_LABELS})
    if idle:
        raise RecipeError(f"--set {idle[0]}: needs labeled rows; give them with --data")
    if "static" in settings.quantize.candidates:
        raise RecipeError("--set quantize.candidates: static takes its scales from your texts; give them with --data")


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            part = Settings.model_fields[str(problem["loc"][0])].annotation
            yield f"--set {key}: unknown key; expected one of {', '.join(getattr(part, 'model_fields', {}))}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"--set {key}: {message} (found {problem['input']!r})"
