"""The names of the files in a bundle."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """File names, relative to the bundle's folder."""

    manifest: str = "manifest.json"
    manifest_hash: str = "manifest.sha256"
    tokenizer: str = "tokenizer.json"
    golden: str = "golden.jsonl"
    card: str = "README.md"
    report: str = "report.html"

    def model(self, variant: str) -> str:
        """Return the ONNX file of a variant."""
        return f"model.{variant}.onnx"


LAYOUT = Layout()
