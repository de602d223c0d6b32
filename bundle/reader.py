"""Open a bundle, believing nothing that its hashes do not prove."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import ValidationError

from bundle import errors
from bundle.layout import LAYOUT
from bundle.manifest import FORMAT_VERSION, GoldenInput, Manifest, Task

_LONGEST_NAME = 200
"""Characters; file systems take 255 bytes."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the path of a listed file."""
        return self.folder / name

    def golden(self) -> list[GoldenInput]:
        """Return the golden inputs; raises InvalidGoldenError or LabelMismatchError."""
        return read_golden(self.path(LAYOUT.golden), self.manifest)


def missing_bundle(folder: Path) -> str:
    """Say that there is no bundle in `folder`, and where there is one if it is the output folder of a run."""
    hint = f"; did you mean {folder / 'bundle'}?" if (folder / "bundle" / LAYOUT.manifest).is_file() else ""
    return f"{folder}: no bundle, because there is no {LAYOUT.manifest} in it{hint}"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_bundle(folder: Path) -> Bundle:
    """Read and verify the bundle in `folder`.

    Every listed file is checked for place, size and SHA-256; files that the manifest does not list are never
    read. Raises one of the errors of `bundle.errors`, each a BundleError.
    """
    if folder.is_symlink():
        raise errors.SymlinkError(f"{folder} is a symbolic link; give the bundle's own folder")
    if not folder.is_dir():
        raise errors.MissingFileError(f"{folder} is not a folder; expected one that holds {LAYOUT.manifest}")
    if not os.path.lexists(folder / LAYOUT.manifest):
        raise errors.MissingFileError(missing_bundle(folder))
    manifest = _read_manifest(folder)
    for required in (LAYOUT.tokenizer, LAYOUT.golden, *(variant.file for variant in manifest.variants)):
        if required not in manifest.files:
            raise errors.InvalidManifestError(
                f"{folder / LAYOUT.manifest}: files: {required!r} is needed but not listed"
            )
    for name, entry in manifest.files.items():
        path = _safe_path(folder, name)
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise errors.TruncatedFileError(
                f"{path}: found {size_bytes} bytes, expected {entry.size_bytes}; copy the bundle again"
            )
        digest = sha256_file(path)
        if digest != entry.sha256:
            raise errors.HashMismatchError(
                f"{path}: found SHA-256 {digest}, expected {entry.sha256}; copy the bundle again"
            )
    return Bundle(folder, manifest)


def read_golden(path: Path, manifest: Manifest) -> list[GoldenInput]:
    """Parse `golden.jsonl`, one JSON object a line, and hold its scores against the manifest's labels."""
    variants = {variant.name for variant in manifest.variants}
    inputs = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise errors.InvalidGoldenError(f"{path}: not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            golden = GoldenInput.model_validate_json(line)
        except ValidationError as error:
            raise errors.InvalidGoldenError(f"{path}:{number}: {_first_problem(error)}") from error
        if set(golden.scores) != variants:
            raise errors.InvalidGoldenError(
                f"{path}:{number}: scores for {sorted(golden.scores)}, expected {sorted(variants)}"
            )
        for variant, scores in golden.scores.items():
            per_token = manifest.task is Task.TOKEN_CLASSIFICATION and len(scores) > 0
            if len(scores) % len(manifest.labels) if per_token else len(scores) != len(manifest.labels):
                raise errors.LabelMismatchError(
                    f"{path}:{number}: {len(scores)} scores of variant {variant!r}, but the manifest has "
                    f"{len(manifest.labels)} labels"
                )
        inputs.append(golden)
    if not inputs:
        raise errors.InvalidGoldenError(f"{path}: no golden input; expected at least one line")
    return inputs


def _read_manifest(folder: Path) -> Manifest:
    path = _safe_path(folder, LAYOUT.manifest)
    raw = path.read_bytes()
    recorded = _safe_path(folder, LAYOUT.manifest_hash).read_text(encoding="ascii", errors="replace").split()
    digest = hashlib.sha256(raw).hexdigest()
    if recorded[:1] != [digest]:
        raise errors.HashMismatchError(
            f"{path}: found SHA-256 {digest}, expected {' '.join(recorded[:1]) or 'one'} "
            f"({LAYOUT.manifest_hash}); copy the bundle again"
        )
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidManifestError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise errors.InvalidManifestError(f"{path}: expected a JSON object, found {type(document).__name__}")
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise errors.UnknownFormatVersionError(
            f"{path}: format_version {version!r}, expected {FORMAT_VERSION}; "
            "use the Limbeck that wrote it, or compress again with this one"
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise errors.InvalidManifestError(f"{path}: {_first_problem(error)}") from error


def _safe_path(folder: Path, name: str) -> Path:
    """Return `folder/name` if it is a plain file inside the folder, reached through no link."""
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or "\\" in name or "\0" in name:
        raise errors.UnsafePathError(f"{name!r}: expected a relative path inside {folder}")
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or len(name) > _LONGEST_NAME:
        raise errors.UnsafePathError(f"{name!r} leaves the bundle's folder {folder}, or is too long for a file")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise errors.SymlinkError(f"{path} is a symbolic link; a bundle holds plain files only")
    if not path.is_file():
        raise errors.MissingFileError(f"{path}: expected a file; copy the bundle again")
    return path


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "(document)"
    return f"{field}: {problem['msg']}"
