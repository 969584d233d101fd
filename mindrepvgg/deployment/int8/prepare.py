"""A checkpoint and its pictures, ready to be quantised: options, float file, pictures to calibrate and judge."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import nn

from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.loaders import check_classes, loader_of, open_split
from mindrepvgg.data.source import Source, spread
from mindrepvgg.deployment.export import Export, export_checkpoint
from mindrepvgg.deployment.graph import GraphOptions, require_onnx
from mindrepvgg.deployment.int8.calibration import (
    calibration_batches,
    calibration_source,
    halves,
    labelled_by,
    unlabelled_pictures,
)
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integer_targets import integer_target
from mindrepvgg.deployment.int8.integers import layer_nodes
from mindrepvgg.deployment.int8.progress import Progress
from mindrepvgg.deployment.int8.repairs import Builder
from mindrepvgg.errors import UserError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.text import nearest, quoted
from mindrepvgg.weights.load import load_weights, local_file

# Calibration holds all activations of a batch at once. Noise runs the network once for every two layers.
_BATCH, NOISE_IMAGES = 32, 8

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
        zero_dead: see `dead_channels.zero_dead`.
        split: the layers whose centre tap is a convolution of its own, see `splitting`; 'auto': those that are worth
            it.
        search: try the repairs one after the other, and then layers in float, by evaluating at most so many files.
            None: only what is asked for, and as many evaluations as the layers in float take.
        preprocess: the file takes uint8 pictures and normalises them.
        limit: evaluate on so many images, spread over the classes.
        target: what the file is for, a name of `integer_targets.INTEGER_TARGETS`.
        soc_version: the chip in the commands for Ascend's tools.
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
    zero_dead: bool = False
    split: tuple[str, ...] | str = ()
    search: int | None = None
    preprocess: bool = False
    limit: int | None = None
    target: str = "onnxruntime"
    soc_version: str = "Ascend310P3"

    def __post_init__(self):
        self.integers()
        if self.calibration_images < 1:
            raise UserError(f"calibration_images (={self.calibration_images}) must be at least 1")
        if not 0 <= self.target_drop <= 100:
            raise UserError(f"target_drop (={self.target_drop}) must be from 0 to 100 points of top-1")
        for name in ("limit", "search"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} (={value}) must be at least 1")

    def integers(self) -> IntegerOptions:
        """Return the options that concern numbers."""
        per_channel = integer_target(self.target).linear_per_channel
        return IntegerOptions(self.method, self.percentile, self.per_channel, self.weight_bits or 8, per_channel)


def split_settings(settings: dict) -> tuple[QuantizeOptions, dict]:
    """The settings that are fields of `QuantizeOptions`, and the others, which are keys of a recipe."""
    names = {field.name for field in dataclasses.fields(QuantizeOptions)}
    chosen = {name: value for name, value in settings.items() if name in names}
    return QuantizeOptions(**chosen), {name: value for name, value in settings.items() if name not in names}


class Prepared(NamedTuple):
    """A network and its pictures, ready to be quantised.

    Attributes:
        source: the checkpoint, as a local file.
        net: its network.
        exported: the float file.
        builder: makes INT8 files of it.
        validation: the pictures that accuracy is measured on.
        loader: loads them.
        float_logits: of each of its batches, where they were computed already.
        calibration: what the ranges are taken from, in words.
    """

    source: Path
    net: nn.Cell
    exported: Export
    builder: Builder
    validation: Source
    loader: EvalLoader
    float_logits: list[np.ndarray] | None
    calibration: str


@contextlib.contextmanager
def prepared(source, options: QuantizeOptions, overrides, weights, progress: Progress) -> Iterator[Prepared]:
    """Export a checkpoint to a temporary folder, and find the pictures; the arguments are `quantize_checkpoint`'s."""
    overrides = dict(overrides or {})
    require_onnx()
    source, weights = local_file(source, weights)
    net = load_weights(source, weights)
    layout = net.variant.deploy_layout("INT8")  # first: what has none needs no data
    recipe = recipe_of(net, overrides)
    layers = layer_nodes(layout, GraphOptions().output)
    check_keep_float(options.keep_float, layers)
    check_split(options.split, layout)
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
        progress.phase("float file")
        exported = export_checkpoint(
            source,
            Path(folder, "float.onnx"),
            GraphOptions(opset=integer_target(options.target).opset),
            preprocess=options.preprocess,
            weights=weights,
            overrides=preparation,
            brief=True,
        )
        batched = dataclasses.replace(recipe, batch_size=_BATCH)
        batches = calibration_batches(loader_of(batched, calibration, as_uint8=options.preprocess))
        count = sum(map(len, batches))
        loader = loader_of(recipe, spread(validation, options.limit), as_uint8=options.preprocess)
        float_logits = None
        if unlabelled is not None:
            labelled, float_logits = labelled_by(exported.destination, loader)
            loader = loader_of(recipe, labelled, as_uint8=options.preprocess)
        arrays = network_arrays(net if net.deploy else to_deploy(net))
        builder = Builder(layout, exported, arrays, batches, options.integers(), folder, progress)
        yield Prepared(source, net, exported, builder, validation, loader, float_logits, f"{count} {origin}")


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


def check_split(split: tuple[str, ...] | str, layout):
    """Raise UserError for layers that have no centre tap to split."""
    if split == "auto":
        return
    if isinstance(split, str):
        raise UserError(f"split (={quoted(split)}) must be 'auto' or names of layers")
    possible = [spec.name for spec in layout.block_specs() if spec.kernel_size > 1]
    for name in split:
        if name not in possible:
            near = nearest(name, possible)
            hint = f"did you mean {near}? " if near else ""
            raise UserError(f"split: no layer {quoted(name)} has a centre tap; {hint}they are {', '.join(possible)}")
