"""Makes the sessions that a model in service needs, out of its bundle and the settings."""

import logging
from collections.abc import Callable

from bundle import Bundle, Manifest
from service.engine.errors import SessionError
from service.engine.session import RUNTIME_VERSION, Session, available_providers
from service.engine.session_options import CPU, GPU_PROVIDERS, TENSORRT, SessionOptions
from service.engine.shapes import ShapeGrid, build_grid
from service.errors import StartupError
from service.settings import Settings, usable_cpus
from service.variants import AUTO, Choice, choose_variant

log = logging.getLogger(__name__)

_WARM_UP_LENGTHS = (16, 128, 512)  # tokens; those below max_length, and max_length itself
_GPU_CALLS = 2


def load_session(
    manifest: Manifest, variant: str, provider: str, make: Callable[[Choice], Session]
) -> tuple[Choice, Session]:
    """Choose a variant and a provider and `make` a session of them; under provider `auto` the CPU where a GPU fails.

    Raises StartupError when nothing fits or the provider asked for does not work here, and what `make` raises.
    """
    choice = choose_variant(manifest, variant, available_providers(), provider)
    try:
        return choice, make(choice)
    except SessionError as error:
        # onnxruntime-gpu lists CUDA on machines without a GPU too, and says no only here.
        if choice.provider not in GPU_PROVIDERS:
            raise
        if provider != AUTO:
            raise StartupError(
                f"provider (LIMBECK_PROVIDER): found {provider!r}, which does not work on this machine; "
                f"expected auto or cpu here: {error}"
            ) from error
        log.warning("%s; taking the CPU instead", error)
    choice = choose_variant(manifest, variant, [CPU])
    return choice, make(choice)


def make_session(bundle: Bundle, choice: Choice, pad_id: int, settings: Settings) -> Session:
    """Load a fresh session of what was chosen; raises SessionError or LabelMismatchError."""
    manifest, variant = bundle.manifest, choice.variant
    grid = cache = None
    if choice.provider in GPU_PROVIDERS:
        grid = build_grid(
            max_batch_size=settings.max_batch_size,
            max_batch_tokens=settings.max_batch_tokens,
            max_length=manifest.max_length,
            pad_id=pad_id,
        )
    if choice.provider == TENSORRT and settings.tensorrt_cache is not None:
        # An engine of another model, or of another ONNX Runtime, must not be taken for this one's.
        cache = settings.tensorrt_cache / f"{manifest.files[variant.file].sha256[:16]}-{RUNTIME_VERSION}"
        cache.mkdir(parents=True, exist_ok=True)
    return Session(
        bundle.path(variant.file),
        provider=choice.provider,
        labels=len(manifest.labels),
        options=SessionOptions(
            threads=settings.threads,
            spinning=settings.spinning,
            arena=settings.arena,
            grid=grid,
            cuda_graphs=settings.cuda_graphs,
            half=variant.dtype == "float16",
            input_names=manifest.input_names,
            tensorrt_cache=cache,
        ),
    )


def calls_side_by_side(settings: Settings, provider: str) -> int:
    """Return what `sessions` says, or where it is unset what suits the machine.

    On a GPU two: while one batch runs, another is padded and copied. On CPU as many as keep every CPU busy.
    """
    if settings.sessions is not None:
        return settings.sessions
    return _GPU_CALLS if provider in GPU_PROVIDERS else max(1, usable_cpus() // settings.threads)


def warm_up_shapes(grid: ShapeGrid | None, settings: Settings, longest: int) -> list[tuple[int, int]]:
    """Return the shapes (rows, length) to run before the first request, the largest first.

    All of a GPU's grid; on a CPU, where any shape runs, single texts and the largest batches.
    """
    if grid is not None:
        return sorted(grid.shapes, reverse=True)
    lengths = {min(length, longest) for length in (*_WARM_UP_LENGTHS, longest)}
    most = {length: max(1, min(settings.max_batch_size, settings.max_batch_tokens // length)) for length in lengths}
    return sorted({(rows, length) for length in lengths for rows in (1, most[length])}, reverse=True)
