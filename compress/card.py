"""What a bundle is, for people; needs nothing that compressing needs."""

from rich.console import Console
from rich.table import Table

from bundle import LAYOUT, Bundle
from compress.report import stage_table, wording, worth_lines


def print_card(bundle: Bundle) -> None:
    """Print labels, variants, sizes, metrics and lineage."""
    # labels, paths and names may hold what rich takes for markup
    manifest, console = bundle.manifest, Console(highlight=False, markup=False)
    console.print(f"{manifest.name} {manifest.version} · {manifest.task} · {bundle.folder}")
    console.print(f"labels: {', '.join(manifest.labels)} ({manifest.activation}, at most {manifest.max_length} tokens)")
    variants = Table("variant", "dtype", "MB", "batch-invariant", "gate", "runs on", title="Variants")
    for variant in manifest.variants:
        size = manifest.files[variant.file].size_bytes
        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in variant.execution_providers)
        gate = "passed" if variant.gate_passed else "failed, forced" if variant.forced else "failed"
        exact = "yes" if variant.batch_invariant else "no"
        variants.add_row(variant.name, variant.dtype, f"{size / 1e6:.1f}", exact, gate, providers)
    console.print(variants)
    for variant in manifest.variants:
        if not variant.gate_passed:
            consequence = "was shipped by order" if variant.forced else "is not served"
            console.print(f"{variant.name} {consequence}: {variant.gate_reason}", soft_wrap=True)
    total = sum(entry.size_bytes for entry in manifest.files.values())
    tokenizer = manifest.files[LAYOUT.tokenizer].size_bytes
    console.print(f"tokenizer {tokenizer / 1e6:.1f} MB, whole bundle {total / 1e6:.1f} MB")
    if LAYOUT.report in manifest.files:
        console.print(f"report: {bundle.path(LAYOUT.report)}", soft_wrap=True)
    if manifest.metrics:
        title = "Test split" if "test" in manifest.lineage.data else "Sample texts"
        console.print(stage_table(manifest.metrics, title, wording(manifest)))
        for line in worth_lines(manifest.baselines):
            console.print(line, soft_wrap=True)
    lineage = manifest.lineage
    seeds = ", ".join(f"{name} {value}" for name, value in lineage.seeds.items())
    console.print(f"made {lineage.created_at} on {lineage.machine}, {seeds}", soft_wrap=True)
    for name, split in lineage.data.items():
        console.print(f"  {name}: {split.rows} rows, sha256 {split.sha256[:12]}…")
    console.print(
        "  " + ", ".join(f"{name} {version}" for name, version in lineage.library_versions.items()), soft_wrap=True
    )
