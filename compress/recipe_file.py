"""A recipe's YAML file, read into the models of `compress.recipe`, with errors that say what was meant."""

import difflib
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from compress.errors import RecipeError
from compress.recipe import Data, Recipe


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; `overrides` are `dotted.key=value` pairs whose values are read as YAML.

    Raises RecipeError.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: expected a mapping of keys, found {type(document).__name__}")
    for override in overrides or []:
        _apply(document, override)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {problem}" for problem in _problems(error))) from error


def located(data: Data, folder: Path) -> Data:
    """Return `data` with its paths taken from `folder`, the recipe's own; a recipe keeps no machine's paths."""
    fields = ("folder", "train", "validation", "test", "unlabeled", "file")
    values = {name: getattr(data, name) for name in fields}
    return data.model_copy(update={name: folder / value for name, value in values.items() if value is not None})


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: expected key=value, for example distill.epochs=2")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {parent} holds {child!r}, not a mapping of keys")
        target = child
    target[last] = value


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            problems.append(_unknown_key(location))
        else:
            found = "" if problem["type"] in ("missing", "value_error") else f" (found {problem['input']!r})"
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{'.'.join(location) or 'recipe'}: {message}{found}")
    return problems


def _unknown_key(location: list[str]) -> str:
    model: type[BaseModel] | None = Recipe
    for part in (part for part in location[:-1] if not part.isdigit()):  # places in a list
        model = _model_of(model.model_fields[part].annotation) if model and part in model.model_fields else None
    known = list(model.model_fields) if model else []
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{'.'.join(location)}: unknown key; {hint}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return next((model for option in get_args(annotation) if (model := _model_of(option))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
