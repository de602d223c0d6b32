"""Decides which variant of a bundle runs on which execution provider; touches no device."""

from collections.abc import Sequence
from dataclasses import dataclass

from bundle import Manifest, Variant
from service.errors import StartupError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
AUTO = "auto"

# Fastest first. ONNX Runtime's CUDA provider has no kernels for dynamically quantised graphs, so int8 never goes there.
_CPU_DTYPES = ("int8", "float32")
_CUDA_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Choice:
    """A variant and the provider it is sent to."""

    variant: Variant
    provider: str


def choose_variant(manifest: Manifest, wanted: str, providers: Sequence[str]) -> Choice:
    """Choose for a machine with these ONNX Runtime `providers`.

    `wanted` is a variant's name, or `auto`: on CUDA where a variant is made for it, else on CPU the fastest variant
    whose scores are exact whatever its batch mates. Raises StartupError when nothing fits.
    """
    if wanted != AUTO:
        return _named(manifest, wanted, providers)
    if CUDA in providers:
        for dtype in _CUDA_DTYPES:
            for variant in manifest.variants:
                if variant.dtype == dtype and CUDA in variant.execution_providers and variant.servable:
                    return Choice(variant, CUDA)
    for dtype in _CPU_DTYPES:
        for variant in manifest.variants:
            exact = variant.servable and variant.batch_invariant
            if variant.dtype == dtype and CPU in variant.execution_providers and exact:
                return Choice(variant, CPU)
    raise StartupError(
        f"bundle {manifest.name} {manifest.version}: no variant fits this machine ({', '.join(providers)}); it has "
        + "; ".join(_describe(variant) for variant in manifest.variants)
        + ". Name one with LIMBECK_VARIANT, or compress again"
    )


def _named(manifest: Manifest, wanted: str, providers: Sequence[str]) -> Choice:
    bundle = f"bundle {manifest.name} {manifest.version}"
    try:
        variant = manifest.variant(wanted)
    except KeyError as error:
        names = ", ".join(variant.name for variant in manifest.variants)
        raise StartupError(f"{bundle}: no variant {wanted!r}; expected auto or one of: {names}") from error
    if not variant.servable:
        raise StartupError(f"{bundle}: variant {wanted!r} did not pass its quality gate; choose another, or auto")
    for provider in (CUDA, CPU):
        allowed = variant.dtype != "int8" or provider != CUDA
        if provider in providers and provider in variant.execution_providers and allowed:
            return Choice(variant, provider)
    raise StartupError(
        f"{bundle}: variant {wanted!r} runs on {', '.join(variant.execution_providers)}, but this machine has "
        f"{', '.join(providers)}; choose another, or auto"
    )


def _describe(variant: Variant) -> str:
    gate = "passed its gate" if variant.gate_passed else "did not pass its gate"
    exact = "exact" if variant.batch_invariant else "not exact over batch mates"
    return f"{variant.name} ({variant.dtype}, {', '.join(variant.execution_providers)}, {gate}, {exact})"
