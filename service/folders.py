"""Which folders are bundles to serve."""

import json
import os
from pathlib import Path
from typing import TypeAlias

from bundle import LAYOUT
from service.errors import StartupError
from service.settings import Settings

Identity: TypeAlias = tuple[tuple[str, int, int], ...]


def find_bundles(settings: Settings, *, perhaps_none: bool = False) -> list[Path]:
    """Return the bundle folders that the settings name.

    Raises StartupError when the folder of models cannot be read or, unless `perhaps_none`, has no bundle.
    """
    folders = list(settings.bundles)
    if settings.model_folder is not None:
        try:
            folders += _bundles_in(settings.model_folder, perhaps_none=perhaps_none)
        except OSError as error:
            raise StartupError(
                f"model_folder {settings.model_folder}: cannot be read: {error.strerror}; "
                f"the service runs as user id {os.getuid()}, which needs to read it"
            ) from error
    return folders


def _bundles_in(root: Path, *, perhaps_none: bool) -> list[Path]:
    if not root.is_dir():
        raise StartupError(f"model_folder {root}: expected a folder, found {'a file' if root.exists() else 'none'}")
    if (root / LAYOUT.manifest).exists():
        return [root]
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found and not perhaps_none:
        raise StartupError(
            f"model_folder {root}: no bundle in it; expected {LAYOUT.manifest}, or sub-folders that hold one"
        )
    return found


def bundle_name(folder: Path) -> str:
    """Return the name in a bundle's manifest, or its folder's where that cannot be read."""
    try:
        name = json.loads((folder / LAYOUT.manifest).read_bytes())["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return folder.name
    return name if isinstance(name, str) else folder.name


def identity_of(folder: Path) -> Identity:
    """Return what changes when the files in a folder do: of each its name, size in bytes and time in nanoseconds."""
    try:
        with os.scandir(folder) as files:
            found = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))
