"""Calibrated ranges against numpy over all values at once, and static INT8 against the formula and against itself."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import QuantizeError
from compress.outputs import batch_invariance
from compress.quantize import quantizable_activations, quantize_model, scale_of
from compress.quantize_static import BINS, Histogram, calibrate, mse_range, percentile_range
from compress.recipe import Quantize
from service.engine.session import Session
from service.engine.tokenization import pad
from tests.compress.test_quantize import copy, linear_model, run, texts
from tests.support.models import tiny_classifier, tiny_encoder

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return tiny_encoder()


def histogram_of(values: np.ndarray, parts: int = 7) -> Histogram:
    histogram = Histogram.empty(float(values.min()), float(values.max()))
    for part in np.array_split(values, parts):
        histogram.add(part)
    return histogram


def test_a_streamed_histogram_counts_what_numpy_counts() -> None:
    values = RNG.normal(size=100_000).astype(np.float32)
    expected, _ = np.histogram(values, bins=BINS, range=(float(values.min()), float(values.max())))
    found = histogram_of(values).counts
    assert found.sum() == len(values)
    # float32 may put a value at the edge of a bin into its neighbour
    assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= 20


def test_percentiles_are_numpys_to_within_a_bin() -> None:
    values = RNG.standard_t(df=3, size=200_000).astype(np.float32)
    width = (values.max() - values.min()) / BINS
    found = percentile_range(histogram_of(values), 99.0)
    assert np.abs(np.array(found) - np.percentile(values, [0.5, 99.5])).max() <= 1.01 * width


def uint8_error(values: np.ndarray, bounds: tuple[float, float]) -> float:
    step, zero_point = scale_of(bounds)
    restored = (np.clip(np.rint(values / step) + zero_point, 0, 255) - zero_point) * step
    return float(((values - restored) ** 2).mean())


def test_mse_clips_outliers_and_no_range_of_a_fine_search_is_much_better() -> None:
    values = np.concatenate([RNG.normal(size=200_000), [40.0, -25.0]]).astype(np.float32)
    found = mse_range(histogram_of(values))
    assert found[1] < 30
    by_search = min(uint8_error(values, (-a, a)) for a in np.linspace(2, 40, 200))
    assert uint8_error(values, found) <= 1.05 * by_search
    assert uint8_error(values, found) < 0.75 * uint8_error(values, (-25, 40))


def test_calibration_sees_every_activation_and_no_padding(encoder: onnx.ModelProto) -> None:
    """The first activation is the normalised embedding, which torch can tell."""
    import torch

    names = quantizable_activations(encoder)
    found = texts(20, seed=4)
    ranges = calibrate(encoder, names, found, pad_id=0, method="minmax")
    assert list(ranges) == names
    embeddings = tiny_classifier(layers=2).bert.embeddings
    with torch.inference_mode():
        values = [embeddings(torch.tensor([encoding.ids])).numpy() for encoding in found]
    expected = min(v.min() for v in values), max(v.max() for v in values)
    assert np.allclose(ranges[names[0]], expected, atol=1e-5)


def test_the_calls_of_advance_add_up(encoder: onnx.ModelProto) -> None:
    calls: list[int] = []
    names = quantizable_activations(encoder)[:1]
    calibrate(encoder, names, texts(5, seed=4), 0, method="mse", advance=lambda units, _: calls.append(units))
    assert sum(calls) == 10


def test_calibration_without_texts_is_refused(encoder: onnx.ModelProto) -> None:
    with pytest.raises(QuantizeError, match="found 0 texts"):
        calibrate(encoder, quantizable_activations(encoder), [], 0)


@pytest.mark.parametrize("gemm", [False, True])
def test_a_constant_scale_computes_the_formula(tmp_path: Path, gemm: bool) -> None:
    weight = RNG.normal(size=(288, 256)).astype(np.float32)
    bias = RNG.normal(size=256).astype(np.float32) if gemm else None
    x = RNG.normal(size=(9, 288)).astype(np.float32)
    bounds = (-1.5, 2.5)  # narrower than the values: clipping is part of the formula
    model, _ = quantize_model(linear_model(weight, bias), Quantize(), activation_ranges={"x": bounds})
    found = run(model, x, tmp_path)
    step, zero_point = scale_of(bounds)
    x8 = np.clip(np.rint(x.astype(np.float64) / step) + zero_point, 0, 255) - zero_point
    scale = np.abs(weight).max(axis=0) / 127
    expected = step * (x8 @ np.rint(weight.astype(np.float64) / scale)) * scale + (0 if bias is None else bias)
    assert np.abs(found - expected).max() <= 1.01 * step * np.abs(weight).max()  # one value at a half
    assert np.abs(found - expected).mean() <= 1e-4


@pytest.mark.parametrize("normalized_only", [False, True])
def test_scores_do_not_depend_on_batch_mates(encoder: onnx.ModelProto, tmp_path: Path, normalized_only: bool) -> None:
    names = quantizable_activations(encoder, normalized_only=normalized_only)
    assert len(names) == (5 if normalized_only else 9)
    ranges = calibrate(encoder, names, texts(30, seed=4), 0)
    quantized, counts = quantize_model(copy(encoder), Quantize(), activation_ranges=ranges)
    assert counts.matrices == 12
    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("ReduceMax") == 9 - len(names)
    onnx.save(quantized, tmp_path / "static.onnx")
    onnx.save(encoder, tmp_path / "float.onnx")
    session = Session(tmp_path / "static.onnx")
    report = batch_invariance(session.path, texts(200, seed=1), pad_id=0, seed=2)
    assert report.bit_equal
    batch = pad(texts(100, seed=3), 0)
    exact = Session(tmp_path / "float.onnx").run(batch)
    assert np.abs(session.run(batch) - exact).mean() < 0.1 * exact.std()


def test_ranges_that_are_not_finite_or_not_known_are_refused() -> None:
    weight = np.ones((80, 80), dtype=np.float32)
    with pytest.raises(QuantizeError, match="expected finite bounds"):
        quantize_model(linear_model(weight), Quantize(), activation_ranges={"x": (0.0, float("inf"))})
    with pytest.raises(QuantizeError, match="no quantisable matrix or activation called nothing"):
        quantize_model(linear_model(weight), Quantize(), activation_ranges={"nothing": (0.0, 1.0)})
