"""What the report shows of labels: what is taken for what, and quality by label and by slice."""

from typing import Any

from bundle.manifest import StageMetrics
from compress.evidence import Confusion, Evidence
from compress.report import percent

LONGEST_NAME = 80
"""Characters of a label that are shown."""
_LARGEST_MATRIX = 25
"""Labels; more are told as pairs."""
_MOST_PAIRS, _MOST_CLASSES = 30, 200


def labels(row: StageMetrics, evidence: Evidence) -> dict[str, Any]:
    """Return what is taken for what, and the tables by label and by slice."""
    quality, confusion = row.quality, evidence.confusion
    by_label = evidence.label_counts or {}
    small = confusion is not None and len(confusion.names) <= _LARGEST_MATRIX
    classes = quality.per_class if quality else {}
    most = sorted(classes, key=lambda name: -classes[name].support)[:_MOST_CLASSES]
    return {
        "matrix": _matrix(confusion) if confusion is not None and small else None,
        "confused": _confused(confusion) if confusion is not None and not small else None,
        "label_counts": [
            (cut(name, LONGEST_NAME), one.both, one.given_only, one.true_only, one.neither)
            for name, one in by_label.items()
            if name in most
        ],
        "per_class": [
            (cut(name, LONGEST_NAME), f"{m.precision:.3f}", f"{m.recall:.3f}", f"{m.f1:.3f}", m.support)
            for name, m in classes.items()
            if name in most
        ],
        "classes": len(classes),
        "slices": [
            (
                cut(name, LONGEST_NAME),
                part.texts,
                f"{100 * part.value:.1f}",
                percent(part.drop) if part.drop else "",
            )
            for name, part in (quality.slices if quality else {}).items()
        ],
    }


def _matrix(confusion: Confusion) -> dict[str, Any]:
    """Return the rows of the matrix: each cell with its share of the row and whether it is on the diagonal."""
    counts = {(true, given): count for true, given, count in confusion.cells}
    rows = []
    for true, name in enumerate(confusion.names):
        values = [counts.get((true, given), 0) for given in range(len(confusion.names))]
        total = max(1, sum(values))
        rows.append((name, [(value, value / total, given == true) for given, value in enumerate(values)]))
    return {"names": confusion.names, "rows": rows}


def _confused(confusion: Confusion) -> list[tuple[str, str, int]]:
    worst = sorted((cell for cell in confusion.cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:_MOST_PAIRS]
    names = [cut(name, LONGEST_NAME) for name in confusion.names]
    return [(names[true], names[given], count) for true, given, count in worst]


def cut(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
