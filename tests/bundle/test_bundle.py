"""The bundle contract: what is written can be read, and nothing bad can."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from bundle import LAYOUT, Bundle, errors, open_bundle, write_bundle
from tests.support.bundles import tiny_manifest


def reseal(folder: Path, change: Callable[[dict], None] | None = None, raw: bytes | None = None) -> None:
    """Rewrite manifest.json and its hash, as somebody who forges a bundle would."""
    path = folder / LAYOUT.manifest
    if raw is None:
        document = json.loads(path.read_bytes())
        change(document)
        raw = json.dumps(document).encode()
    path.write_bytes(raw)
    (folder / LAYOUT.manifest_hash).write_text(f"{hashlib.sha256(raw).hexdigest()}  {LAYOUT.manifest}\n")


def test_a_written_bundle_opens_with_every_hash_that_sha256sum_would_give(tiny_bundle: Bundle) -> None:
    opened = open_bundle(tiny_bundle.folder)
    assert opened.manifest == tiny_bundle.manifest
    for name, entry in opened.manifest.files.items():
        content = (tiny_bundle.folder / name).read_bytes()
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert entry.size_bytes == len(content)
    recorded = (tiny_bundle.folder / LAYOUT.manifest_hash).read_text().split()
    assert recorded == [
        hashlib.sha256((tiny_bundle.folder / LAYOUT.manifest).read_bytes()).hexdigest(),
        LAYOUT.manifest,
    ]


def test_golden_inputs_have_a_score_for_every_label(tiny_bundle: Bundle) -> None:
    for golden in tiny_bundle.golden():
        assert sum(golden.scores["fp32"]) == pytest.approx(1)
        assert len(golden.scores["fp32"]) == len(tiny_bundle.manifest.labels)


def test_missing_file(tiny_bundle: Bundle) -> None:
    tiny_bundle.path("model.fp32.onnx").unlink()
    with pytest.raises(errors.MissingFileError, match=r"model\.fp32\.onnx"):
        open_bundle(tiny_bundle.folder)


def test_missing_folder_and_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFileError, match="not a folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(errors.MissingFileError, match=r"manifest\.json"):
        open_bundle(tmp_path)


def test_truncated_file(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path("tokenizer.json")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.TruncatedFileError, match=r"tokenizer\.json: found \d+ bytes, expected \d+"):
        open_bundle(tiny_bundle.folder)


@pytest.mark.parametrize("name", ["model.fp32.onnx", "tokenizer.json", "golden.jsonl", "manifest.json", "README.md"])
def test_flipped_byte_in_any_file(tiny_bundle: Bundle, name: str) -> None:
    path = tiny_bundle.path(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.HashMismatchError, match=name.replace(".", r"\.")):
        open_bundle(tiny_bundle.folder)


def test_a_report_may_be_missing_and_is_verified_where_it_is_there(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Bundles that were made before there were reports are opened as they are."""
    files = {name: tiny_bundle.path(name) for name in tiny_bundle.manifest.files}
    assert LAYOUT.report not in files
    open_bundle(tiny_bundle.folder)
    bundle = write_bundle(tmp_path / "with", tiny_manifest(), files | {LAYOUT.report: b"<!doctype html>"})
    open_bundle(bundle.folder)
    bundle.path("report.html").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(errors.HashMismatchError, match=r"report\.html"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.0])
def test_unknown_format_version(tiny_bundle: Bundle, version: object) -> None:
    reseal(tiny_bundle.folder, lambda document: document.update(format_version=version))
    with pytest.raises(errors.UnknownFormatVersionError, match="expected 1"):
        open_bundle(tiny_bundle.folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..", "C:/secret", "..\\secret", ".", "", "x" * 300]
)
def test_path_escaping_the_folder(tiny_bundle: Bundle, name: str) -> None:
    (tiny_bundle.folder.parent / "secret").write_text("x")
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "size_bytes": 1}
    reseal(tiny_bundle.folder, lambda document: document["files"].update({name: entry}))
    with pytest.raises(errors.UnsafePathError):
        open_bundle(tiny_bundle.folder)


def test_symlinks_are_refused_even_to_the_right_bytes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tiny_bundle.path("model.fp32.onnx")
    elsewhere = tmp_path / "elsewhere.onnx"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(errors.SymlinkError, match=r"model\.fp32\.onnx"):
        open_bundle(tiny_bundle.folder)


def test_a_symlinked_folder_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle.folder)
    with pytest.raises(errors.SymlinkError):
        open_bundle(link)


@pytest.mark.parametrize("raw", [b"{", b"", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_invalid_json(tiny_bundle: Bundle, raw: bytes) -> None:
    reseal(tiny_bundle.folder, raw=raw)
    with pytest.raises(errors.InvalidManifestError):
        open_bundle(tiny_bundle.folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d.pop("labels"), "labels"),
        (lambda d: d.update(labels=["same", "same"]), "unique"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.update(name="../x"), "name"),
        (lambda d: d["files"].pop("tokenizer.json"), "tokenizer"),
        (lambda d: d["lineage"]["data"].update(test={}), "lineage.data.test.rows"),
        (lambda d: d["variants"][0].update(golden_tolerance=-1), "golden_tolerance"),
    ],
)
def test_a_manifest_that_breaks_the_schema_names_the_field(
    tiny_bundle: Bundle, change: Callable[[dict], None], field: str
) -> None:
    reseal(tiny_bundle.folder, change)
    with pytest.raises(errors.InvalidManifestError, match=field):
        open_bundle(tiny_bundle.folder)


def test_labels_not_matching_the_golden_scores(tiny_bundle: Bundle) -> None:
    reseal(tiny_bundle.folder, lambda document: document.update(labels=["a", "b", "c"]))
    with pytest.raises(errors.LabelMismatchError, match="3 labels"):
        open_bundle(tiny_bundle.folder).golden()


def test_a_bad_golden_line_is_named(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.path("golden.jsonl")
    raw = path.read_bytes() + b'{"text": 1}\n'
    path.write_bytes(raw)
    entry = {"sha256": hashlib.sha256(raw).hexdigest(), "size_bytes": len(raw)}
    reseal(tiny_bundle.folder, lambda document: document["files"].update({"golden.jsonl": entry}))
    with pytest.raises(errors.InvalidGoldenError, match=r"golden\.jsonl:6: text"):
        open_bundle(tiny_bundle.folder).golden()


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(tiny_bundle: Bundle, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tiny_bundle.folder.iterdir()}
    siblings = set(tiny_bundle.folder.parent.iterdir())
    with pytest.raises(FileNotFoundError):
        write_bundle(tiny_bundle.folder, tiny_manifest(), {"tokenizer.json": tmp_path / "not-there"})
    assert {path.name: path.read_bytes() for path in tiny_bundle.folder.iterdir()} == before
    assert set(tiny_bundle.folder.parent.iterdir()) == siblings


def test_a_bundle_that_would_not_open_is_never_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidManifestError):
        write_bundle(tmp_path / "new", tiny_manifest(), {"README.md": b"only this"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "precious.py").write_text("1")
    for target in (tmp_path / "src", tmp_path / "src" / "precious.py"):
        with pytest.raises(errors.OccupiedFolderError):
            write_bundle(target, tiny_manifest(), {})
    assert (tmp_path / "src" / "precious.py").read_text() == "1"


def test_writing_again_replaces_the_bundle(tiny_bundle: Bundle) -> None:
    files = {name: tiny_bundle.path(name) for name in tiny_bundle.manifest.files}
    copies = {name: path.read_bytes() for name, path in files.items()}
    again = write_bundle(tiny_bundle.folder, tiny_manifest(version="2"), copies)
    assert open_bundle(again.folder).manifest.version == "2"
    assert [path for path in tiny_bundle.folder.parent.iterdir() if path.name.startswith(".tiny.")] == []


def test_another_user_can_read_a_written_bundle(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.folder.stat().st_mode & 0o755 == 0o755


def test_manifests_are_immutable(tiny_bundle: Bundle) -> None:
    with pytest.raises(ValidationError):
        tiny_bundle.manifest.name = "other"


@pytest.mark.parametrize(("scores", "fits"), [([0.5] * 2, True), ([0.5] * 6, True), ([0.5] * 5, False), ([], False)])
def test_golden_scores_of_tokens_are_whole_rows(
    tiny_bundle: Bundle, tmp_path: Path, scores: list[float], fits: bool
) -> None:
    """Token classification: the scores of one token after those of another, each with one for every label."""
    line = json.dumps({"text": "a", "label": "O", "scores": {"fp32": scores}}).encode()
    files = {name: tiny_bundle.path(name) for name in tiny_bundle.manifest.files} | {LAYOUT.golden: line}
    bundle = write_bundle(tmp_path / "tags", tiny_manifest(task="token-classification"), files)
    if fits:
        assert len(bundle.golden()[0].scores["fp32"]) == len(scores)
    else:
        with pytest.raises(errors.LabelMismatchError, match=r"golden\.jsonl:1: \d scores of variant 'fp32'"):
            bundle.golden()


def test_a_variant_that_was_forced_may_be_served(tiny_bundle: Bundle) -> None:
    variant = tiny_bundle.manifest.variants[0]
    failed = variant.model_copy(update={"gate_passed": False, "gate_reason": "too big"})
    assert not failed.servable
    assert failed.model_copy(update={"forced": True}).servable
