"""Classify without HTTP: a class for programs and notebooks, and files from end to end."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bulk.classifier import Classifier, Result

__all__ = ["Classifier", "Result"]


def __getattr__(name: str) -> Any:
    # ONNX Runtime loads when a Classifier is asked for, not when the command line looks for this room's errors
    if name in __all__:
        from bulk import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module 'bulk' has no attribute {name!r}")
