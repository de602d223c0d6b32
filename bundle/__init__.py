"""The bundle: the one thing that passes between `compress` and `service`."""

from bundle.errors import BundleError
from bundle.layout import LAYOUT
from bundle.manifest import Activation, GoldenInput, Manifest, Task, Variant
from bundle.reader import Bundle, open_bundle, sha256_file
from bundle.writer import check_target, write_bundle

__all__ = [
    "LAYOUT",
    "Activation",
    "Bundle",
    "BundleError",
    "GoldenInput",
    "Manifest",
    "Task",
    "Variant",
    "check_target",
    "open_bundle",
    "sha256_file",
    "write_bundle",
]
