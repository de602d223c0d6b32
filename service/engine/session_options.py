"""How a session is set up: what may be chosen, and ONNX Runtime's names for it; pure data.

Names and values are those of ONNX Runtime's pages on its CUDA and TensorRT execution providers.
"""

from dataclasses import dataclass
from pathlib import Path

from service.engine.shapes import ShapeGrid

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPU_PROVIDERS = (CUDA, TENSORRT)

ProviderList = list[tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class SessionOptions:
    """What a session can be told beside its file; the defaults are right for a CPU.

    `threads` are ONNX Runtime's intra-op threads for one call, `spinning` lets them burn CPU while they wait, `arena`
    keeps freed memory of the CPU for the next call. On a GPU `grid` is what batches are padded up to; without one
    every shape runs as it comes, through copies that ONNX Runtime makes itself. `cuda_graphs` records each shape of
    the grid once and replays it. TensorRT needs the model's `input_names` for its range of shapes, builds in half
    precision where `half` is set, and keeps what it built in `tensorrt_cache`.
    """

    threads: int = 1
    spinning: bool = False
    arena: bool = True
    grid: ShapeGrid | None = None
    cuda_graphs: bool = False
    half: bool = False
    input_names: tuple[str, ...] = ()
    tensorrt_cache: Path | None = None


def provider_list(provider: str, options: SessionOptions) -> ProviderList:
    """Return what `onnxruntime.InferenceSession` takes as `providers`, first choice first."""
    if provider == TENSORRT:  # operators that TensorRT lacks go to CUDA
        return [(TENSORRT, _tensorrt(options)), (CUDA, _cuda(options))]
    if provider == CUDA:
        return [(CUDA, _cuda(options))]
    return [(provider, {})]


def _cuda(options: SessionOptions) -> dict[str, str]:
    return {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",  # the grid's shapes are all met at load: no room for growth needed
        "use_tf32": "0",  # 10 bits of mantissa would make a float32 variant miss its golden scores
        "enable_cuda_graph": "1" if options.cuda_graphs else "0",
    }


def _tensorrt(options: SessionOptions) -> dict[str, str]:
    found = {"device_id": "0", "trt_fp16_enable": str(options.half)}
    if options.grid is not None:
        smallest, largest = options.grid.shapes[0], (options.grid.rows[-1], options.grid.lengths[-1])
        found["trt_profile_min_shapes"] = _profile(options.input_names, smallest)
        found["trt_profile_opt_shapes"] = _profile(options.input_names, options.grid.shapes[-1])
        found["trt_profile_max_shapes"] = _profile(options.input_names, largest)
    if options.tensorrt_cache is not None:
        found |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(options.tensorrt_cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(options.tensorrt_cache),
        }
    return found


def _profile(names: tuple[str, ...], shape: tuple[int, int]) -> str:
    """Return TensorRT's spelling of one shape for every input: `input_ids:1x16,attention_mask:1x16`."""
    return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in names)
