"""Decides which variant of a bundle runs on which execution provider; touches no device."""

from collections.abc import Sequence
from dataclasses import dataclass

from bundle import Manifest, Variant
from service.engine.session_options import CPU, CUDA, TENSORRT
from service.errors import StartupError

AUTO = "auto"

_PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
"""The setting `provider` in ONNX Runtime's words."""

# Fastest first. ONNX Runtime's CUDA provider has no kernels for dynamically quantised graphs, so int8 never goes to a
# GPU. On CPU only exact variants are taken unasked.
_DTYPES = {CPU: ("int8", "float32"), CUDA: ("float16", "float32"), TENSORRT: ("float16", "float32")}


@dataclass(frozen=True)
class Choice:
    """A variant and the provider it is sent to."""

    variant: Variant
    provider: str


def choose_variant(manifest: Manifest, wanted: str, available: Sequence[str], provider: str = AUTO) -> Choice:
    """Choose for a machine whose ONNX Runtime has the providers `available`.

    `wanted` is a variant's name, or `auto`: the fastest that passed its gate and, on CPU, is exact whatever its batch
    mates. `provider` is `cpu`, `cuda` or `tensorrt`, which is taken or refused, or `auto`: CUDA where a variant is made
    for it, else the CPU. Raises StartupError when nothing fits.
    """
    allowed = _allowed(available, provider)
    if wanted != AUTO:
        return _named(manifest, wanted, allowed)
    for candidate in allowed:
        for dtype in _DTYPES[candidate]:
            for variant in manifest.variants:
                exact = variant.batch_invariant or candidate != CPU
                if variant.dtype == dtype and variant.servable and exact and _runs_on(variant, candidate):
                    return Choice(variant, candidate)
    raise StartupError(
        f"bundle {manifest.name} {manifest.version}: no variant fits {', '.join(allowed)}; it has "
        + "; ".join(_describe(variant) for variant in manifest.variants)
        + ". Name one with LIMBECK_VARIANT, or compress again"
    )


def _allowed(available: Sequence[str], provider: str) -> list[str]:
    """Return the providers that may be taken, best first."""
    if provider == AUTO:
        return [name for name in (CUDA, CPU) if name in available]
    name = _PROVIDERS[provider]
    if name not in available:
        raise StartupError(
            f"provider (LIMBECK_PROVIDER): found {provider!r}, but this ONNX Runtime has only {', '.join(available)}; "
            "install limbeck[gpu] in place of limbeck[cpu], or expect auto or cpu to work"
        )
    return [name]


def _named(manifest: Manifest, wanted: str, allowed: Sequence[str]) -> Choice:
    bundle = f"bundle {manifest.name} {manifest.version}"
    try:
        variant = manifest.variant(wanted)
    except KeyError as error:
        names = ", ".join(variant.name for variant in manifest.variants)
        raise StartupError(f"{bundle}: no variant {wanted!r}; expected auto or one of: {names}") from error
    if not variant.servable:
        raise StartupError(f"{bundle}: variant {wanted!r} did not pass its quality gate; choose another, or auto")
    for candidate in allowed:
        if _runs_on(variant, candidate):
            return Choice(variant, candidate)
    never = " (int8 is never sent to a GPU)" if variant.dtype == "int8" else ""
    raise StartupError(
        f"{bundle}: variant {wanted!r} runs on {', '.join(variant.execution_providers)}{never}, expected one that runs "
        f"on {' or '.join(allowed)}; choose another, or auto"
    )


def _runs_on(variant: Variant, provider: str) -> bool:
    """Whether a variant may be sent to a provider; what runs on CUDA may be given to TensorRT."""
    if variant.dtype == "int8" and provider != CPU:
        return False
    return provider in variant.execution_providers or (provider == TENSORRT and CUDA in variant.execution_providers)


def _describe(variant: Variant) -> str:
    gate = "passed its gate" if variant.gate_passed else "did not pass its gate"
    exact = "exact" if variant.batch_invariant else "not exact over batch mates"
    return f"{variant.name} ({variant.dtype}, {', '.join(variant.execution_providers)}, {gate}, {exact})"
