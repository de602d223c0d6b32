"""Every way a bundle can be bad has a name.

BundleError
├── ManifestError                  manifest.json cannot be trusted
│   ├── InvalidManifestError       not JSON, or JSON that breaks the schema
│   └── UnknownFormatVersionError  written by a newer (or foreign) Limbeck
├── FileError                      a file of the bundle cannot be trusted
│   ├── MissingFileError           listed but not there
│   ├── TruncatedFileError         its size is not the manifest's
│   ├── HashMismatchError          right size, different bytes
│   ├── UnsafePathError            a path that leaves the folder
│   └── SymlinkError               a link where a plain file is expected
├── OccupiedFolderError            a bundle would replace a folder that is not a bundle
├── InvalidGoldenError             golden.jsonl cannot be read
├── LabelMismatchError             labels and the model's outputs differ in number
└── GoldenMismatchError            this machine's scores differ from the recorded ones
"""


class BundleError(Exception):
    """A bundle that must not be served; the message says what was found, what was expected and what to do."""


class ManifestError(BundleError):
    """`manifest.json` cannot be trusted."""


class InvalidManifestError(ManifestError):
    """`manifest.json` is not JSON, or breaks the schema of docs/bundle-format.md."""


class UnknownFormatVersionError(ManifestError):
    """`format_version` is not one this Limbeck reads."""


class FileError(BundleError):
    """A file of the bundle cannot be trusted."""


class MissingFileError(FileError):
    """A file is listed (or required by the layout) but not there."""


class TruncatedFileError(FileError):
    """A file's size differs from the manifest's."""


class HashMismatchError(FileError):
    """A file has the right size but not the recorded SHA-256."""


class UnsafePathError(FileError):
    """A path in the manifest is absolute or leaves the bundle's folder."""


class SymlinkError(FileError):
    """A symbolic link stands where a plain file or folder is expected."""


class OccupiedFolderError(BundleError):
    """A bundle is to be written where something else is, which would be lost."""


class InvalidGoldenError(BundleError):
    """`golden.jsonl` is not one JSON object a line with the recorded scores."""


class LabelMismatchError(BundleError):
    """The number of labels differs from the number of the model's outputs."""


class GoldenMismatchError(BundleError):
    """Scores computed on this machine differ from the recorded ones by more than the tolerance."""
