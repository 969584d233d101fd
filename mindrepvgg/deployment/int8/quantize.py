"""A checkpoint as an INT8 ONNX file: post-training quantisation, checked against the float file on labelled images."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindrepvgg.data.datasets import DATASETS, open_source
from mindrepvgg.data.inputs import InputFiles
from mindrepvgg.data.loaders import check_classes, loader_of, val_source
from mindrepvgg.data.source import Source, spread
from mindrepvgg.deployment.engine import OnnxEngine, import_onnxruntime
from mindrepvgg.deployment.export import check_destination, export_checkpoint
from mindrepvgg.deployment.graph import GraphOptions, build_onnx, import_onnx, set_metadata
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.deployment.int8.integers import IntegerOptions, Quantizer, import_tools, layer_nodes
from mindrepvgg.deployment.int8.noise import kernel_noise, layer_noise, noise_alone
from mindrepvgg.deployment.int8.report import Judged, LayerNoise, Quantization, interleaved_latency
from mindrepvgg.deployment.int8.search import Judge, Search
from mindrepvgg.errors import DataError, EquivalenceError, UserError
from mindrepvgg.evaluation.crosscheck import cross_check
from mindrepvgg.files import atomic_path, write_json
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.text import nearest
from mindrepvgg.weights.checkpoint import network_arrays
from mindrepvgg.weights.load import load_weights

# What equalising may change the logits by, over the largest of them: float32's rounding and no more.
_EXACT = 1e-5

# Calibration holds all activations of a batch at once, and so does noise by layer, of two files.
_BATCH, _NOISE_IMAGES = 32, 16

# What export, which has its own pictures, needs of the recipe's keys.
_PREPARATION = ("image_resize", "crop_pct", "interpolation", "mean", "std", "resize_backend")


@dataclass(frozen=True)
class QuantizeOptions:
    """How a checkpoint becomes an INT8 file.

    method, percentile, per_channel, weight_bits: see `IntegerOptions`; weight_bits None: 8, or 7 where the kernels of
    this machine saturate with 8.
    calibration: a data set's name, for its training split, or a folder of pictures, with or without classes; None: the
    training split of the data judged on. calibration_images: how many, spread over the classes.
    keep_float: layers to leave in float, or how many of the worst; None: as few of the worst as keep the target.
    target_drop: points of top-1 that INT8 may lose. allow_drop: write the best that was found where none keeps it.
    equalize, bias_correction: see `equalize.equalize` and `post_training.correct_biases`.
    preprocess: the graph normalises uint8 pictures. limit: judge on so many images, spread over the classes.
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
        """The part that concerns numbers."""
        return IntegerOptions(self.method, self.percentile, self.per_channel, self.weight_bits or 8)


def quantize_checkpoint(
    source, destination, options=None, *, overrides=None, weights="raw", report=None, show_progress=False
) -> Quantization:
    """Write the deploy form of a checkpoint of any project as an INT8 ONNX file, and measure what it lost.

    overrides: recipe keys of the command line, see `evaluate.recipe_of`. report: a path for the measurements as JSON,
    which is written whether the target is kept or not.
    Accuracy is measured on the validation split; the layers that stay in float are chosen by it too.
    Raises EquivalenceError, and writes no ONNX file, when the target is not kept (unless allowed) or equalisation
    changed the logits; UserError when checkpoint, data and options do not go together or a package is missing.
    """
    source, destination = Path(source), Path(destination)
    options, overrides = options or QuantizeOptions(), dict(overrides or {})
    check_destination(source, destination, GraphOptions())
    if destination.suffix != ".onnx":
        raise UserError(f"{destination} must end in .onnx: INT8 is written in no other format")
    import_tools()
    net = load_weights(source, weights)
    layers = layer_nodes(net.variant, GraphOptions().output)
    check_keep_float(options.keep_float, layers)
    recipe = recipe_of(net, overrides)
    validation = val_source(recipe)
    check_classes(net, validation)
    calibration, origin = calibration_source(recipe, options, validation)
    with tempfile.TemporaryDirectory(prefix="mindrepvgg-quantize.") as folder:
        exported = export_checkpoint(
            source,
            Path(folder, "float.onnx"),
            preprocess=options.preprocess,
            weights=weights,
            overrides={key: value for key, value in overrides.items() if key in _PREPARATION},
        )
        batched = dataclasses.replace(recipe, batch_size=_BATCH)
        batches = pictures_of(loader_of(batched, calibration, as_uint8=options.preprocess))
        images = batches[0]
        path, largest = exported.destination, None
        if options.equalize:
            path, largest = _equalized(net, exported, Path(folder, "equalized.onnx"), images)
        loader = loader_of(recipe, spread(validation, options.limit), as_uint8=options.preprocess)
        judge = Judge(exported.destination, loader, show_progress)
        with Quantizer(path, layers, batches, options.integers()) as quantizer:
            kernels = _choose_bits(quantizer, options, images, Path(folder, "bits.onnx"))
            alone = noise_alone(quantizer, images, show_progress)
            search = Search(quantizer, judge, folder, options.bias_correction)
            best = _search(search, sorted(alone, key=alone.get), options)
            noise = layer_noise(quantizer.path, best.path, layers, images[:_NOISE_IMAGES])
            bits = quantizer.options.weight_bits
        facts = {
            "method": options.method,
            **({"percentile": options.percentile} if options.method == "percentile" else {}),
            "weights": f"int8, {'per channel' if options.per_channel else 'per tensor'}, {bits} bits",
            "activations": "uint8",
            "float_layers": list(best.kept),
            "equalized": options.equalize,
            "bias_corrected": options.bias_correction,
            "calibration": f"{sum(map(len, batches))} {origin}",
            "onnxruntime": import_onnxruntime().__version__,
        }
        _finish(best.path, {**exported.metadata, "precision": "int8", "quantization": facts})
        engines = OnnxEngine(exported.destination), OnnxEngine(best.path)
        milliseconds = interleaved_latency(engines, images[:1])
        found = Quantization(
            source=source,
            destination=destination,
            model=net.variant.name,
            dataset=recipe.dataset,
            images=judge.reference.num_images,
            unreadable=judge.reference.unreadable,
            facts=facts,
            float32=Judged(judge.reference.top1, exported.destination.stat().st_size, milliseconds[0]),
            int8=Judged(best.top1, best.path.stat().st_size, milliseconds[1]),
            drop=best.drop,
            agreement=best.agreement,
            target_drop=options.target_drop,
            layers=tuple(LayerNoise(name, **noise[name], alone=alone[name], kept=name in best.kept) for name in layers),
            attempts=tuple(search.attempts),
            kernels=kernels,
            largest_scale=largest,
            written=best.drop <= options.target_drop or options.allow_drop,
        )
        if report:
            write_json(report, found.to_dict())
        if not found.written:
            raise EquivalenceError(
                f"{destination} was not written: INT8 lost {best.drop:.2f} points of top-1 at best (with "
                f"{best.describe()}), more than target_drop ({options.target_drop:g}); --equalize, --bias_correction "
                "or another --method may help, and --allow_drop writes it all the same",
                found,
            )
        with atomic_path(destination) as temporary:
            temporary.write_bytes(best.path.read_bytes())
    return found


def check_keep_float(keep_float, layers):
    """Refuse layers that are not there, and to keep all of them."""
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
            raise UserError(f"keep_float: there is no layer {name!r}; {hint}they are {', '.join(layers)}")
    if len(set(keep_float)) == len(layers):
        raise UserError("keep_float names every layer: tools/export.py writes the float file")


def calibration_source(recipe, options, validation) -> tuple[Source, str]:
    """Pictures to calibrate on, spread over their classes and mixed, and what they are in words.

    Of a folder a picture's class is the folder it lies in, which spreads them and has no other use. Raises DataError
    when there are none, or when they are among `validation`, the pictures accuracy is measured on.
    """
    given = options.calibration
    if given is None or (given in DATASETS and not Path(given).is_dir()):
        name = given or recipe.dataset
        data_dir = recipe.data_dir if name == recipe.dataset else None
        source, what = open_source(name, data_dir, "train", None, recipe.val_share), f"training images of {name}"
    elif Path(given).is_dir():
        files = InputFiles([given])
        folders, labels = np.unique([os.path.dirname(path) for path in files.paths], return_inverse=True)
        names = tuple(folders.tolist())
        source, what = Source("pictures", names, labels.astype(np.int32), files=files), f"images of {given}"
    else:
        raise DataError(f"calibration (={given!r}) is neither a folder nor a data set: {', '.join(DATASETS)}")
    if source.files is not None and validation.files is not None:
        judged = {os.path.realpath(validation.name(index)) for index in range(len(validation))}
        both = [name for name in map(source.name, range(len(source))) if os.path.realpath(name) in judged]
        if both:
            raise DataError(
                f"{len(both)} calibration pictures are among those accuracy is measured on, {both[0]} the first; give "
                "others"
            )
    chosen = spread(source, options.calibration_images)
    # Every batch, and the first alone, shows what all of them do.
    return chosen.take(np.random.default_rng(0).permutation(len(chosen))), what


def pictures_of(loader) -> list[np.ndarray]:
    """A loader's pictures in batches, without the filling. Raises DataError when none can be read."""
    batches = [images[valid] for images, _, valid in loader if valid.any()]
    if not batches:
        raise DataError(f"none of the {loader.num_images} calibration pictures can be read")
    return batches


def _equalized(net, exported, path, images):
    """Write the equalised network; gives its path and the largest scale. Raises EquivalenceError if it differs."""
    found = equalize(net.variant, network_arrays(net if net.deploy else to_deploy(net)))
    path.write_bytes(build_onnx(net.variant, found.arrays, exported.options, exported.metadata).SerializeToString())
    batch = images, None, np.ones(len(images), bool)
    check = cross_check(OnnxEngine(path), OnnxEngine(exported.destination), [batch], _EXACT)
    if not check.passed:
        raise EquivalenceError(
            f"equalising changed the logits by {check.max_rel:.1e} of the largest, more than {_EXACT:g}", check
        )
    return path, found.largest


def _choose_bits(quantizer, options, images, path):
    """Settle the weights' bits; gives bits tried -> `KernelNoise`."""
    found = {}
    for bits in [options.weight_bits] if options.weight_bits else [8, 7]:
        quantizer.options = dataclasses.replace(quantizer.options, weight_bits=bits)
        quantizer.write(path, quantizer.layers)
        found[bits] = kernel_noise(quantizer.path, path, images)
        if not found[bits].saturates:
            break
    return found


def _search(search, worst_first, options):
    """The attempt with the layers in float that were asked for, or with the fewest that keep the target."""
    if options.keep_float is None:
        return search.fewest(worst_first, options.target_drop)
    if isinstance(options.keep_float, int):
        return search.keep(worst_first[: options.keep_float])
    return search.keep(options.keep_float)


def _finish(path, metadata):
    """Give an INT8 file its metadata and check that it is valid."""
    onnx = import_onnx()
    model = onnx.load(str(path))
    set_metadata(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
