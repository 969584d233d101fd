"""A checkpoint as an INT8 ONNX file: post-training quantisation, checked against the float file on labelled images."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrepvgg.data.loaders import check_classes, loader_of, open_split
from mindrepvgg.data.source import spread
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.export import Export, check_destination, export_checkpoint
from mindrepvgg.deployment.graph import GraphOptions, build_onnx, set_metadata
from mindrepvgg.deployment.int8.calibration import (
    calibration_batches,
    calibration_source,
    halves,
    labelled_by,
    unlabelled_pictures,
)
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.deployment.int8.integers import IntegerOptions, Quantizer, layer_nodes, quantization_tools
from mindrepvgg.deployment.int8.noise import KernelNoise, kernel_noise, layer_noise, noise_alone
from mindrepvgg.deployment.int8.report import FileFigures, LayerNoise, Quantization, latencies
from mindrepvgg.deployment.int8.search import Attempt, Evaluator, Search
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.evaluation.crosscheck import cross_check
from mindrepvgg.files import atomic_path, write_json
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.text import nearest, quoted
from mindrepvgg.weights.load import load_weights, local_file

# What equalising may change the logits by, over the largest of them: float32's rounding and no more.
_EXACT = 1e-5

# Calibration holds all activations of a batch at once. Noise by layer holds those of two files.
_BATCH, _NOISE_IMAGES = 32, 16

# The recipe's keys that an export needs, which has pictures of its own.
_PREPARATION = ("image_resize", "crop_pct", "interpolation", "mean", "std", "resize_backend")


@dataclass(frozen=True)
class QuantizeOptions:
    """How a checkpoint becomes an INT8 file.

    Attributes:
        method, percentile, per_channel: see `IntegerOptions`.
        weight_bits: 7 or 8; None: 8, or 7 where 8 bits saturate in the int8 kernels of this machine.
        calibration, calibration_images: see `calibration_source`.
        keep_float: the layers that stay in float, or how many of the worst; None: as few of the worst as keep the
            target.
        target_drop: points of top-1 that INT8 may lose.
        allow_drop: write the best file that was found where none keeps the target.
        equalize: see `equalize.equalize`.
        bias_correction: see `integers.correct_biases`.
        preprocess: the file takes uint8 pictures and normalises them.
        limit: evaluate on so many images, spread over the classes.
    """

    method: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    weight_bits: int | None = None
    calibration: str | None = None
    calibration_images: int = 256
    keep_float: tuple[str, ...] | int | None = None
    target_drop: float = 0.5
    allow_drop: bool = False
    equalize: bool = False
    bias_correction: bool = False
    preprocess: bool = False
    limit: int | None = None

    def __post_init__(self):
        self.integers()
        if self.calibration_images < 1:
            raise UserError(f"calibration_images (={self.calibration_images}) must be at least 1")
        if not 0 <= self.target_drop <= 100:
            raise UserError(f"target_drop (={self.target_drop}) must be from 0 to 100 points of top-1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit (={self.limit}) must be at least 1")

    def integers(self) -> IntegerOptions:
        """Return the options that concern numbers."""
        return IntegerOptions(self.method, self.percentile, self.per_channel, self.weight_bits or 8)


def quantize_checkpoint(
    source,
    destination,
    options: QuantizeOptions | None = None,
    *,
    overrides: dict | None = None,
    weights: str = "raw",
    report=None,
    show_progress: bool = False,
) -> Quantization:
    """Write the deploy form of a checkpoint of any project as an INT8 ONNX file, and measure what it lost.

    Accuracy is measured on the validation split. The layers that stay in float are chosen by it too. In a folder of
    pictures without classes, the class that float32 gives counts as right; without other pictures to calibrate on,
    every second one is taken for that.

    Args:
        source: the checkpoint.
        destination: the file to write, .onnx.
        options: how; the defaults if None.
        overrides: recipe keys that stand above what the checkpoint says, see `recipe_of`.
        weights: 'raw', or 'ema' for the averaged copy in the checkpoint.
        report: a path for the measurements as JSON, written whether the target is kept or not.
        show_progress: whether to show bars on a terminal.

    Returns:
        What was read, written and measured.

    Raises:
        EquivalenceError: the target is not kept and `allow_drop` is off, or equalisation changed the logits. No ONNX
            file is written.
        UserError: checkpoint, data and options do not go together, or a package is missing.
    """
    destination = Path(destination)
    options, overrides = options or QuantizeOptions(), dict(overrides or {})
    check_destination(Path(source), destination, GraphOptions())
    if destination.suffix != ".onnx":
        raise UserError(f"{destination} must end in .onnx: INT8 is written in no other format")
    quantization_tools()
    source, weights = local_file(source, weights)
    net = load_weights(source, weights)
    layout = net.variant.deploy_layout("INT8")  # first: what has none needs no data
    recipe = recipe_of(net, overrides)
    layers = layer_nodes(layout, GraphOptions().output)
    check_keep_float(options.keep_float, layers)
    unlabelled = unlabelled_pictures(recipe)
    if unlabelled is not None and options.calibration is None:
        calibration, validation = halves(unlabelled, options.calibration_images)
        origin = "others of the same folder"
    else:
        validation = open_split(recipe, "val") if unlabelled is None else unlabelled
        if unlabelled is None:
            check_classes(net, validation)
        calibration, origin = calibration_source(recipe, options.calibration, options.calibration_images, validation)
    with tempfile.TemporaryDirectory(prefix="mindrepvgg-quantize.") as folder:
        preparation = {key: value for key, value in overrides.items() if key in _PREPARATION}
        exported = export_checkpoint(
            source, Path(folder, "float.onnx"), preprocess=options.preprocess, weights=weights, overrides=preparation
        )
        batched = dataclasses.replace(recipe, batch_size=_BATCH)
        batches = calibration_batches(loader_of(batched, calibration, as_uint8=options.preprocess))
        path, largest_scale = exported.destination, None
        if options.equalize:
            path, largest_scale = _equalized(net, exported, Path(folder, "equalized.onnx"), batches[0])
        loader = loader_of(recipe, spread(validation, options.limit), as_uint8=options.preprocess)
        if unlabelled is not None:
            loader = loader_of(recipe, labelled_by(exported.destination, loader), as_uint8=options.preprocess)
        evaluator = Evaluator(exported.destination, loader, show_progress)
        with Quantizer(path, layers, batches, options.integers()) as quantizer:
            best = _best(quantizer, evaluator, options, folder, show_progress)
        facts = _facts(options, best, f"{sum(map(len, batches))} {origin}")
        _finish(best.attempt.path, {**exported.metadata, "precision": "int8", "quantization": facts})
        float32, int8 = _figures(exported, evaluator, best.attempt, batches[0][:1])
        found = Quantization(
            source=source,
            destination=destination,
            model=net.variant.name,
            dataset=validation.title,
            images=evaluator.reference.num_images,
            unreadable=evaluator.reference.unreadable,
            facts=facts,
            float32=float32,
            int8=int8,
            drop=best.attempt.drop,
            agreement=best.attempt.agreement,
            target_drop=options.target_drop,
            layers=best.layers,
            attempts=best.attempts,
            kernels=best.kernels,
            largest_scale=largest_scale,
            written=best.attempt.drop <= options.target_drop or options.allow_drop,
        )
        if report:
            write_json(report, found.to_dict())
        _write(found, best.attempt)
    return found


def check_keep_float(keep_float: tuple[str, ...] | int | None, layers):
    """Raise UserError for layers that the network lacks, and where every layer would stay in float."""
    if keep_float is None:
        return
    if isinstance(keep_float, int):
        if not 0 <= keep_float < len(layers):
            raise UserError(f"keep_float (={keep_float}) must be from 0 to {len(layers) - 1}: one layer becomes INT8")
        return
    for name in keep_float:
        if name not in layers:
            near = nearest(name, layers)
            hint = f"did you mean {near}? " if near else ""
            raise UserError(f"keep_float: there is no layer {quoted(name)}; {hint}they are {', '.join(layers)}")
    if len(set(keep_float)) == len(layers):
        raise UserError("keep_float names every layer: mindrepvgg export writes the float file")


class _Best(NamedTuple):
    """The INT8 file that was chosen, and what was found on the way; see `Quantization`."""

    attempt: Attempt
    bits: int
    kernels: dict[int, KernelNoise]
    layers: tuple[LayerNoise, ...]
    attempts: tuple[Attempt, ...]


def _best(quantizer, evaluator, options, folder, show_progress) -> _Best:
    """Settle the weights' bits, find which layers disturb the logits, and which of them have to stay in float."""
    images = quantizer.batches[0]
    kernels = _choose_bits(quantizer, options, images, Path(folder, "bits.onnx"))
    alone = noise_alone(quantizer, images, show_progress)
    worst_first = sorted(alone, key=alone.__getitem__)
    search = Search(quantizer, evaluator, folder, options.bias_correction)
    if options.keep_float is None:
        best = search.fewest(worst_first, options.target_drop)
    elif isinstance(options.keep_float, int):
        best = search.keep(worst_first[: options.keep_float])
    else:
        best = search.keep(options.keep_float)
    noise = layer_noise(quantizer.path, best.path, quantizer.layers, images[:_NOISE_IMAGES])
    layers = tuple(
        LayerNoise(name, **noise[name], alone=alone[name], kept=name in best.kept) for name in quantizer.layers
    )
    return _Best(best, quantizer.options.weight_bits, kernels, layers, tuple(search.attempts))


def _choose_bits(quantizer, options, images, path) -> dict[int, KernelNoise]:
    """Settle the weights' bits in the quantizer's options; returns weight bits that were tried -> `KernelNoise`."""
    found = {}
    for bits in [options.weight_bits] if options.weight_bits else [8, 7]:
        quantizer.options = dataclasses.replace(quantizer.options, weight_bits=bits)
        quantizer.write(path, quantizer.layers)
        found[bits] = kernel_noise(quantizer.path, path, images)
        if not found[bits].saturates:
            break
    return found


def _equalized(net, exported: Export, path, images):
    """Write the equalised network.

    Returns:
        Its path, and the largest factor that a channel was scaled by.

    Raises:
        EquivalenceError: its logits are not those of the exported file.
    """
    layout = net.variant.deploy_layout("INT8")
    found = equalize(layout, network_arrays(net if net.deploy else to_deploy(net)))
    path.write_bytes(build_onnx(layout, found.arrays, exported.options, exported.metadata).SerializeToString())
    batch = images, None, np.ones(len(images), bool)
    check = cross_check(OnnxEngine(path), OnnxEngine(exported.destination), [batch], _EXACT)
    if not check.passed:
        raise EquivalenceError(
            f"equalising changed the logits by {check.max_rel:.1e} of the largest, more than {_EXACT:g}", check
        )
    return path, found.largest


def _facts(options, best, calibration) -> dict:
    """Return how a file was quantised, for its metadata."""
    return {
        "method": options.method,
        **({"percentile": options.percentile} if options.method == "percentile" else {}),
        "weights": f"int8, {'per channel' if options.per_channel else 'per tensor'}, {best.bits} bits",
        "activations": "uint8",
        "float_layers": list(best.attempt.kept),
        "equalized": options.equalize,
        "bias_corrected": options.bias_correction,
        "calibration": calibration,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }


def _finish(path, metadata):
    """Give an INT8 file its metadata and check that it is valid."""
    import onnx

    model = onnx.load(str(path))
    set_metadata(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _figures(exported, evaluator, attempt, image) -> tuple[FileFigures, FileFigures]:
    """Return accuracy, size and speed of the float file and of the INT8 file."""
    paths = exported.destination, attempt.path
    milliseconds = latencies([OnnxEngine(path) for path in paths], image)
    top1 = evaluator.reference.top1, attempt.top1
    float32, int8 = (
        FileFigures(accuracy, path.stat().st_size, time)
        for accuracy, path, time in zip(top1, paths, milliseconds, strict=True)
    )
    return float32, int8


def _write(found: Quantization, attempt):
    """Copy the file to its destination, or raise EquivalenceError where it lost too much."""
    if not found.written:
        raise EquivalenceError(
            f"{found.destination} was not written: INT8 lost {found.drop:.2f} points of top-1 at best (with "
            f"{attempt.describe()}), more than target_drop ({found.target_drop:g}); --equalize, --bias_correction "
            "or another --method may help, and --allow_drop writes it all the same",
            found,
        )
    with atomic_path(found.destination) as temporary:
        temporary.write_bytes(attempt.path.read_bytes())
