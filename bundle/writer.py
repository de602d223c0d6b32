"""Write a bundle so that a reader sees all of it or none of it."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bundle.errors import OccupiedFolderError
from bundle.layout import LAYOUT
from bundle.manifest import FileEntry, Manifest
from bundle.reader import Bundle, open_bundle, sha256_file


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> Bundle:
    """Write `files` (name in the bundle -> source path or content) and the manifest to `folder`.

    Everything is written to a temporary folder beside the target, flushed to disk, verified by opening it, and
    renamed; an older bundle in `folder` is replaced only then. `manifest.files` is filled in here. Raises OSError
    when the disk refuses and BundleError when what was written would not open.
    """
    check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        entries = {name: _write_file(temporary / name, source) for name, source in sorted(files.items())}
        text = manifest.model_copy(update={"files": entries}).model_dump_json(indent=2) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        _write_file(temporary / LAYOUT.manifest, text.encode())
        _write_file(temporary / LAYOUT.manifest_hash, f"{digest}  {LAYOUT.manifest}\n".encode())
        temporary.chmod(0o755)  # mkdtemp makes it private; a service under another user must read it
        _sync_folder(temporary)
        verified = open_bundle(temporary)
        _replace(folder, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Bundle(folder, verified.manifest)


def check_target(folder: Path) -> None:
    """Raise OccupiedFolderError if `folder` is neither free nor an older bundle."""
    if folder.is_symlink() or folder.is_file():
        raise OccupiedFolderError(f"{folder} is not a folder; expected a free place for the bundle")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LAYOUT.manifest).is_file():
        raise OccupiedFolderError(f"{folder} holds files but no {LAYOUT.manifest}; give another place for the bundle")


def _write_file(path: Path, source: Path | bytes) -> FileEntry:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        if isinstance(source, bytes):
            target.write(source)
        else:
            with source.open("rb") as original:
                shutil.copyfileobj(original, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
    path.chmod(0o644)  # whatever the umask: a service under another user must read it
    return FileEntry(sha256=sha256_file(path), size_bytes=path.stat().st_size)


def _replace(folder: Path, temporary: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        folder.rename(old / folder.name)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
