"""Options for execution providers, held against the names in ONNX Runtime's pages and in its 1.31.1 libraries."""

from pathlib import Path

from service.engine.session_options import CPU, CUDA, TENSORRT, SessionOptions, provider_list
from service.engine.shapes import build_grid

# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#configuration-options
CUDA_OPTIONS = {
    "device_id",
    "user_compute_stream",
    "do_copy_in_default_stream",
    "use_ep_level_unified_stream",
    "gpu_mem_limit",
    "arena_extend_strategy",
    "enable_cuda_graph",
    "enable_skip_layer_norm_strict_mode",
    "use_tf32",
    "prefer_nhwc",
    "tunable_op_enable",
    "sdpa_kernel",
    "fuse_conv_bias",
}
# https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#execution-provider-options
TENSORRT_OPTIONS = {
    "device_id",
    "trt_max_workspace_size",
    "trt_fp16_enable",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
    "trt_cuda_graph_enable",
}
GRID = build_grid(max_batch_size=16, max_batch_tokens=1024, max_length=128)


def test_the_cpu_has_no_options():
    assert provider_list(CPU, SessionOptions()) == [(CPU, {})]


def test_cuda_is_told_to_grow_by_what_is_asked_and_to_keep_float32():
    ((name, options),) = provider_list(CUDA, SessionOptions(grid=GRID))
    assert name == CUDA
    assert set(options) <= CUDA_OPTIONS
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["use_tf32"] == "0"
    assert options["enable_cuda_graph"] == "0"


def test_cuda_graphs_are_on_only_where_asked_for():
    ((_, options),) = provider_list(CUDA, SessionOptions(grid=GRID, cuda_graphs=True))
    assert options["enable_cuda_graph"] == "1"


def test_tensorrt_gets_the_range_of_shapes_and_its_cache_and_cuda_behind_it(tmp_path: Path):
    options = SessionOptions(
        grid=GRID, half=True, input_names=("input_ids", "attention_mask"), tensorrt_cache=tmp_path / "engines"
    )
    (name, first), (behind, second) = provider_list(TENSORRT, options)
    assert (name, behind) == (TENSORRT, CUDA)
    assert set(first) <= TENSORRT_OPTIONS
    assert set(second) <= CUDA_OPTIONS
    assert first["trt_fp16_enable"] == "True"
    assert first["trt_profile_min_shapes"] == "input_ids:1x16,attention_mask:1x16"
    assert first["trt_profile_max_shapes"] == "input_ids:16x128,attention_mask:16x128"
    assert first["trt_engine_cache_path"] == str(tmp_path / "engines")


def test_tensorrt_without_a_cache_folder_writes_nothing():
    (_, first), _ = provider_list(TENSORRT, SessionOptions(grid=GRID, input_names=("input_ids",)))
    assert not {name for name in first if "cache" in name}
    assert first["trt_fp16_enable"] == "False"
