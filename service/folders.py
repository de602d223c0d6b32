"""Which folders are bundles to serve."""

import os
from pathlib import Path

from bundle import LAYOUT
from service.errors import StartupError
from service.settings import Settings


def find_bundles(settings: Settings) -> list[Path]:
    """Return the bundle folders that the settings name; raises StartupError when a folder of models has none."""
    folders = list(settings.bundles)
    if settings.model_folder is not None:
        try:
            folders += _bundles_in(settings.model_folder)
        except OSError as error:
            raise StartupError(
                f"model_folder {settings.model_folder}: cannot be read: {error.strerror}; "
                f"the service runs as user id {os.getuid()}, which needs to read it"
            ) from error
    return folders


def _bundles_in(root: Path) -> list[Path]:
    if not root.is_dir():
        raise StartupError(f"model_folder {root}: expected a folder, found {'a file' if root.exists() else 'none'}")
    if (root / LAYOUT.manifest).exists():
        return [root]
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise StartupError(
            f"model_folder {root}: no bundle in it; expected {LAYOUT.manifest}, or sub-folders that hold one"
        )
    return found
