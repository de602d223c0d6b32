"""Ranges of activations, measured on texts in constant memory, for INT8 with constant scales.

Two passes over the texts: the first finds each activation's smallest and largest value, the second counts its values in
a fixed number of bins. Memory is one text's activations and one histogram each, however many texts there are. Texts run
one at a time, so padding is never counted. `quantize_model(activation_ranges=…)` uses the result.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compress.errors import QuantizeError
from compress.graph import Graph
from compress.quantize import Range, scale_of
from service.engine.session import Session
from service.engine.tokenization import Encoding, pad

Method = Literal["minmax", "percentile", "mse"]

BINS = 2048
PERCENTILE = 99.99
"""Share of the values, in percent, that `percentile` keeps; half of the rest is cut at each end."""
_CANDIDATES = np.linspace(1.0, 0.1, 91)  # shares of the range that `mse` tries
_VALUES = "observed_values"


def calibrate(
    model: onnx.ModelProto,
    activations: Sequence[str],
    encodings: Sequence[Encoding],
    pad_id: int,
    *,
    method: Method = "mse",
    scratch: Path | None = None,
    advance: Callable[[int, str], None] | None = None,
) -> dict[str, Range]:
    """Return the range of each activation of the float `model` over texts; the argument is not changed.

    `minmax` takes all values in, `percentile` cuts off the rarest, `mse` takes the range whose uint8 rounding and
    clipping give the smallest mean squared error (Nagel et al. 2021, "A White Paper on Neural Network Quantization",
    section 3.1). `advance(1, "")` is called 2 · len(encodings) times. Raises QuantizeError when there are no texts or
    a value is not finite.
    """
    if not encodings or not activations:
        raise QuantizeError(
            f"found {len(encodings)} texts and {len(activations)} activations to calibrate; expected some"
        )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "observed.onnx"
        onnx.save(_observed(model, activations), path)
        session = Session(path)

        def run(use: Callable[[int, NDArray[np.float32]], None]) -> None:
            for encoding in encodings:
                for index, values in enumerate(_split(session.run(pad([encoding], pad_id)), len(activations))):
                    use(index, values)
                if advance is not None:
                    advance(1, "")

        bounds = [(0.0, 0.0)] * len(activations)

        def widen(index: int, values: NDArray[np.float32]) -> None:
            low, high = float(values.min()), float(values.max())
            if not np.isfinite(high - low):
                raise QuantizeError(f"activation {activations[index]} holds NaN or infinity; training went wrong")
            bounds[index] = (min(bounds[index][0], low), max(bounds[index][1], high))

        run(widen)
        if method != "minmax":
            histograms = [Histogram.empty(low, high) for low, high in bounds]
            run(lambda index, values: histograms[index].add(values))
            choose = percentile_range if method == "percentile" else mse_range
            bounds = [choose(histogram) for histogram in histograms]
    return {name: (float(low), float(high)) for name, (low, high) in zip(activations, bounds, strict=True)}


@dataclass
class Histogram:
    """How many values fell into each of `BINS` equal bins between `low` and `high`."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, low: float, high: float) -> "Histogram":
        """Return one without values; a range of no width is given some."""
        return cls(low, high if high > low else low + 1e-12, np.zeros(BINS, dtype=np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Count float32 values of any shape; those outside the range go to the outermost bins."""
        place = (values.ravel() - np.float32(self.low)) * np.float32(BINS / (self.high - self.low))
        bins = np.clip(place, 0, BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=BINS)

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin (BINS,)."""
        width = (self.high - self.low) / BINS
        return self.low + width * (np.arange(BINS, dtype=np.float64) + 0.5)


def percentile_range(histogram: Histogram, percentile: float = PERCENTILE) -> Range:
    """Return the range between the outer percentiles, to within the width of a bin."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (100 - percentile) / 200
    width = (histogram.high - histogram.low) / BINS
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1 - tail))
    return histogram.low + first * width, histogram.low + (min(last, BINS - 1) + 1) * width


def mse_range(histogram: Histogram) -> Range:
    """Return the range with the smallest mean squared error of uint8 values; low and high are cut in turns."""
    low, high = histogram.low, histogram.high
    for _ in range(2):
        high = min((histogram.high * share for share in _CANDIDATES), key=lambda end: _error(histogram, (low, end)))
        low = min((histogram.low * share for share in _CANDIDATES), key=lambda end: _error(histogram, (end, high)))
    return low, high


def _error(histogram: Histogram, bounds: Range) -> float:
    """Return the summed squared error of the counted values in uint8."""
    step, zero_point = scale_of(bounds)
    values = histogram.centers
    restored = (np.clip(np.rint(values / step) + zero_point, 0, 255) - zero_point) * step
    return float((histogram.counts * (values - restored) ** 2).sum())


def _observed(model: onnx.ModelProto, activations: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose one output (n + values,) float32 is the size of each activation, then all their values.

    One output, because that is what a Session gives.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    flat = graph.add_weight("observed_shape", np.array([-1], dtype=np.int64))
    sizes, values = [], []
    for index, name in enumerate(activations):
        sizes.append(f"observed_size_{index}")
        values.append(f"observed_values_{index}")
        graph.nodes += [
            graph.node("Reshape", [name, flat], values[-1]),
            graph.node("Shape", [values[-1]], f"observed_length_{index}"),  # (1,)
            graph.node("Cast", [f"observed_length_{index}"], sizes[-1], to=TensorProto.FLOAT),
        ]
    graph.nodes.append(graph.node("Concat", [*sizes, *values], _VALUES, axis=0))
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(_VALUES, TensorProto.FLOAT, [None]))
    return graph.finish()


def _split(values: NDArray[np.float32], count: int) -> list[NDArray[np.float32]]:
    # a text's activation has at most some millions of values, so its size is exact in float32
    sizes = values[:count].astype(np.int64)
    return np.split(values[count:], np.cumsum(sizes)[:-1])
