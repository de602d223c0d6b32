"""What a small model saves: texts per core-second and, at a stated price, money per million texts."""

from collections.abc import Sequence

from bundle import Manifest
from bundle.manifest import StageMetrics

HEADINGS = ("model", "texts per core-second", "core-hours per million texts", "cost per million texts")


def texts_per_core_second(row: StageMetrics) -> tuple[float, int] | None:
    """Return how many texts one core answers in a second, and the batch size that is best at it; None where not timed.

    Measured calls run on one thread, so a second of a call is a core-second.
    """
    if row.latency_ms is None:
        return None
    by_batch = {1: row.latency_ms.batch_1, 8: row.latency_ms.batch_8, 32: row.latency_ms.batch_32}
    return max((1000 * size / latency.median_ms, size) for size, latency in by_batch.items())


def cost_per_million_texts(row: StageMetrics, price_per_core_hour: float) -> float | None:
    """Return what a million texts cost, in the price's currency: 10⁶ / (texts per core-second) / 3600 · price."""
    found = texts_per_core_second(row)
    return None if found is None else 1e6 / found[0] / 3600 * price_per_core_hour


def price_of(manifest: Manifest) -> float | None:
    """Return the price that the recipe states, or None."""
    price: float | None = manifest.lineage.recipe.get("price_per_core_hour")
    return price


def savings_rows(manifest: Manifest, titles: dict[str, str]) -> list[list[str]]:
    """Return the cells under HEADINGS, a list a model that was timed, and one for a language model that labeled."""
    price = price_of(manifest)
    rows = []
    for row in manifest.metrics:
        found = texts_per_core_second(row)
        if found is None:
            continue
        speed, size = found
        cost = cost_per_million_texts(row, price) if price is not None else None
        rows.append(
            [
                titles.get(row.stage, row.stage),
                f"{speed:,.0f} (batch {size})",
                f"{1e6 / speed / 3600:.3g}",
                "no price stated" if cost is None else f"{cost:.4g}",
            ]
        )
    llm = manifest.lineage.teachers.get("llm") or {}
    if llm.get("cost_per_million_texts") is not None:
        rows.append([f"{llm['model']}, asked for labels", "", "", f"{llm['cost_per_million_texts']:.4g}"])
    return rows


def savings_line(metrics: Sequence[StageMetrics], price: float | None, reference: str) -> str | None:
    """Return one sentence that holds the served model against the reference, or None where either was not timed."""
    own = next((row for row in metrics if row.stage == "int8"), None)
    if not metrics or own is None:
        return None
    before, after = texts_per_core_second(metrics[0]), texts_per_core_second(own)
    if before is None or after is None:
        return None
    line = f"INT8 answers {after[0]:,.0f} texts per core-second, the {reference} in FP32 {before[0]:,.0f}"
    if price is None:
        return line
    costs = [cost_per_million_texts(row, price) for row in (own, metrics[0])]
    return f"{line}; at {price:g} a core-hour a million texts cost {costs[0]:.4g} instead of {costs[1]:.4g}"
