"""A float file's activations on pictures: each channel's extremes, and the ranges that a method makes of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable

import numpy as np

from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.sessions import Parts, session_of
from mindrepvgg.runtime.optional import import_optional

# Bins of the histograms by method: those of onnxruntime's own calibrators.
_BINS = {"entropy": 128, "percentile": 2048}
_QUANTIZED_BINS = 128

Extremes = dict[str, tuple[np.ndarray, np.ndarray]]


def observe(model, tensors, batches: Iterable[np.ndarray], options: IntegerOptions, step: Callable[[int], None]):
    """Run a float model over pictures.

    Args:
        model: an `onnx.ModelProto`.
        tensors: names of what to look at; the model's input may be one.
        batches: arrays as the model takes them.
        options: the method, and its percentile.
        step: is called with the number of pictures after each batch.

    Returns:
        Tensor -> (lowest, highest) of each channel, two arrays (channels,); and tensor -> (lowest, highest) that the
        integers shall span.
    """
    inner = [name for name in tensors if name != INPUT]
    session = session_of(Parts(model).between(INPUT, inner))
    lows: dict[str, np.ndarray] = {}
    highs: dict[str, np.ndarray] = {}
    collector = _collector(options)
    for batch in batches:
        arrays = dict(zip(inner, session.run(inner, {INPUT: batch}), strict=True))
        if len(inner) < len(tensors):
            arrays[INPUT] = batch
        for name, array in arrays.items():
            axes = (0, *range(2, array.ndim))
            low, high = array.min(axes), array.max(axes)
            lows[name] = np.minimum(lows.get(name, low), low)
            highs[name] = np.maximum(highs.get(name, high), high)
        if collector:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
                collector.collect({name: [array] for name, array in arrays.items()})
        step(len(batch))
    extremes = {name: (lows[name], highs[name]) for name in tensors}
    return extremes, _ranges(extremes, collector)


def _collector(options):
    """Onnxruntime's collector of histograms; None for minmax, which needs none."""
    if options.method == "minmax":
        return None
    calibrate = import_optional("onnxruntime.quantization.calibrate", "onnx", "INT8")
    return calibrate.HistogramCollector(
        method=options.method,
        symmetric=False,
        num_bins=_BINS[options.method],
        num_quantized_bins=_QUANTIZED_BINS,
        percentile=options.percentile,
        scenario="same",
    )


def _ranges(extremes: Extremes, collector) -> dict[str, tuple[float, float]]:
    if collector is None:
        return {name: (float(low.min()), float(high.max())) for name, (low, high) in extremes.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        found = collector.compute_collection_result()
    return {name: (float(value[0]), float(value[1])) for name, value in found.items()}
