"""Documents that state facts of the code are compared with it."""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from bundle import errors
from bundle.manifest import Manifest, Variant
from compress.recipe import Recipe
from compress.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]


def part_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        part = part_of(field.annotation)
        if part is not None:
            yield from keys(part, f"{prefix}{name}.")
        elif field.is_required():
            yield prefix + name, "required"
        else:
            default = field.get_default(call_default_factory=True)
            yield prefix + name, "none" if default is None else f"`{getattr(default, 'value', default)}`"


def test_the_recipe_table_has_every_key_with_its_default() -> None:
    table = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+) \|$", (ROOT / "docs/recipe.md").read_text(), re.MULTILINE)
    documented = {key: default for key, default, _ in table}
    assert documented == dict(keys(Recipe))
    assert all(len(meaning) > 3 for _, _, meaning in table)


def test_the_recipe_in_the_document_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipe.md").read_text(), re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    assert load_recipe(tmp_path / "recipe.yaml").name == yaml.safe_load(block)["name"]


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples").rglob("recipe*.yaml")), ids=lambda path: path.parent.name)
def test_every_example_is_valid(recipe: Path) -> None:
    load_recipe(recipe)


def test_the_bundle_document_names_every_key_and_every_error() -> None:
    document = (ROOT / "docs/bundle-format.md").read_text()
    for name in (*Manifest.model_fields, *Variant.model_fields):
        assert f"`{name}`" in document, name
    leaves = [e for e in vars(errors).values() if isinstance(e, type) and not e.__subclasses__()]
    for error in leaves:
        assert f"`{error.__name__}`" in document, error
    assert len(leaves) >= 10


def test_the_readme_names_every_top_level_folder_and_make_target() -> None:
    readme = (ROOT / "README.md").read_text()
    ignored = {"runs", "build", "dist", "tests.egg-info", "limbeck.egg-info"}
    for path in ROOT.iterdir():
        if path.is_dir() and not path.name.startswith((".", "_")) and path.name not in ignored:
            assert f"{path.name}/" in readme, path.name
    for target in ("demo", "test", "lint", "serve", "clean"):
        assert f"make {target}" in readme, target
