"""Two files on the same images, each a checkpoint or an exported file: the accuracy of both, and their differences."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from mindspore import nn
from tqdm import tqdm

from mindrepvgg.data.loaders import check_classes, loader_of, open_split
from mindrepvgg.data.source import spread
from mindrepvgg.deployment import export
from mindrepvgg.deployment.engine import is_exported
from mindrepvgg.deployment.exported import Computing, ExportedNetwork
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.crosscheck import cross_check
from mindrepvgg.evaluation.inference import as_function
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.layers import set_grouped
from mindrepvgg.runtime import device
from mindrepvgg.runtime.device import inference_mode
from mindrepvgg.text import counted, plain, quoted, table

# What the outputs may differ by, over the largest, where the less exact side has this precision. INT8 has none: what
# it may lose is accuracy.
TOLERANCES = {**export.TOLERANCES, "bfloat16": 1e-1}

_PREPARATION = ("image_size", "crop_pct", "interpolation", "mean", "std")
_OPTIONS = {"image_size": "image_resize"}


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        file: its path.
        engine: what computed it.
        precision: of its weights, or of the arithmetic where that is less exact; "" where it is not known.
        top1, top5, loss: its accuracies in percent, and its mean cross-entropy.
    """

    file: str
    engine: str
    precision: str
    top1: float
    top5: float
    loss: float


@dataclass(frozen=True)
class Comparison:
    """What two files made of the same images.

    Attributes:
        sides: the file that was judged, and the one it was judged against.
        images: what they are, in words.
        outputs: what `max_abs` and `max_rel` are of: "probabilities" where a side gives nothing else, or "logits".
        max_abs, max_rel: the largest difference, and the same over the largest output of the second side.
        same_class, same_top5: share of the images with the same first class, and the same first five.
        num_images: images compared.
        rtol: the largest `max_rel` that passes; None: any.
    """

    sides: tuple[Side, Side]
    images: str
    outputs: str
    max_abs: float
    max_rel: float
    same_class: float
    same_top5: float
    num_images: int
    rtol: float | None

    @property
    def passed(self) -> bool:
        """Whether the difference is a number, and within the tolerance where there is one."""
        return self.max_rel <= (sys.float_info.max if self.rtol is None else self.rtol)

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {**asdict(self), "passed": self.passed}

    def format(self) -> str:
        """One table for people, and what it is of."""
        rows: list[tuple] = [("", "precision", "engine", "top-1", "top-5", "loss")]
        rows += [
            (
                side.file,
                side.precision or "?",
                side.engine,
                f"{side.top1:.2f}%",
                f"{side.top5:.2f}%",
                f"{side.loss:.4f}",
            )
            for side in self.sides
        ]
        own, other = self.sides
        gained = [f"{getattr(own, key) - getattr(other, key):+.2f}" for key in ("top1", "top5")]
        rows.append(("difference", "", "", *gained, f"{own.loss - other.loss:+.4f}"))
        judged = "not judged: INT8" if self.rtol is None else f"tolerance {self.rtol:g}"
        lines = [
            f"on {self.images}:",
            table(rows, align="<<<>"),
            f"same class on {self.same_class:.2%}, same first five on {self.same_top5:.2%} of "
            f"{counted(self.num_images, 'image')}",
            f"{self.outputs} differ by at most {self.max_abs:.2e}, {self.max_rel:.2e} of the largest ({judged})",
        ]
        return "\n".join(lines if self.passed else [*lines, "the two DIFFER"])


def compare(
    checkpoint,
    against,
    *,
    weights: str = "raw",
    limit: int | None = None,
    engine: str | None = None,
    precision: str = "float32",
    num_threads: int | None = None,
    rtol: float | None = None,
    device_target: str = "auto",
    mode: int = 0,
    show_progress: bool = False,
    **overrides: Any,
) -> Comparison:
    """Judge two files on the same images: the accuracy of both, and how far apart they are.

    Args:
        checkpoint, against: each a checkpoint or an exported file, see `api.validate`.
        weights: "raw" or "ema", of the checkpoints.
        limit: at most so many images, spread over the classes; None: all.
        engine, precision, num_threads: what computes `checkpoint`; `against` is computed in float32 by the engine that
            None gives it.
        rtol: the largest difference over the largest output of `against` that passes; None: by the precisions of both,
            see TOLERANCES.
        device_target: of mindspore: "CPU", "Ascend", or "auto": Ascend where the machine has one.
        mode: of mindspore: 0: graph mode; 1: PyNative mode.
        show_progress: draw a progress bar on a terminal.
        **overrides: recipe keys, such as `data_dir` or `batch_size`, which replace what both files say.

    Raises:
        UserError: the files, the data and the options do not go together, or a package is missing.
    """
    path, computing = checkpoint, Computing.of(checkpoint, engine, num_threads, precision)
    others = Computing.of(against)
    if is_exported(path) and is_exported(against):
        computing.check(path, overrides, weights=weights, mode=mode, device_target=device_target)
    device.setup(device_target, mode)
    nets, runs = _open(((path, computing), (against, others)), overrides, weights)
    own, other = nets
    for name in ("num_classes", "in_channels"):
        if getattr(own, name) != getattr(other, name):
            raise UserError(
                f"{path} has {name} {getattr(own, name)}, {against} {getattr(other, name)}: they do not compare"
            )
    # A checkpoint knows more of its data set than an exported file.
    known = next((net for net in nets if isinstance(net, nn.Cell)), other if own.variant is None else own)
    recipe = recipe_of(known, overrides)
    _check_preparation(recipe, nets, (path, against), overrides)
    source = open_split(recipe, "val")
    for net in nets:
        check_classes(net, source)
    loader = loader_of(recipe, spread(source, limit), as_uint8=True)
    gives_probabilities = any(getattr(net, "gives_probabilities", False) for net in nets)
    precisions = [_precision(net, of) for net, of in zip(nets, (computing, others), strict=True)]
    if rtol is None and "int8" not in precisions:
        rtol = max(TOLERANCES.get(precision, TOLERANCES["float32"]) for precision in precisions)
    hidden = not (show_progress and sys.stderr.isatty())
    batches = tqdm(loader, total=loader.steps, unit="batch", desc="compare", leave=False, disable=hidden)
    functions = [_of_pixels(net, run, recipe) for net, run in zip(nets, runs, strict=True)]
    with inference_mode(*(net for net in nets if isinstance(net, nn.Cell))):
        found = cross_check(functions[0], functions[1], batches, rtol or 0.0, gives_probabilities)
    images = f"{counted(len(loader.source), 'image')} of {source.title}"
    return Comparison(
        sides=(
            _side(path, computing, precisions[0], found.ours),
            _side(against, others, precisions[1], found.reference),
        ),
        images=images,
        outputs="probabilities" if gives_probabilities else "logits",
        max_abs=found.max_abs,
        max_rel=found.max_rel,
        same_class=found.top1_agreement,
        same_top5=found.top5_agreement,
        num_images=found.num_images,
        rtol=rtol,
    )


def _open(files, overrides, weights):
    """Both networks, and what computes each.

    A file that has lost its description is prepared as the other one is.
    """
    nets: list = [None, None]
    runs: list = [None, None]
    lost = {}
    for index, (path, computing) in enumerate(files):
        if not is_exported(path):
            net, make = computing.open(path, overrides, weights)
            if "grouped" in overrides:
                set_grouped(net, overrides["grouped"])
            nets[index], runs[index] = net, make(net) if make else net
            continue
        engine, run = computing.open_engine(path)
        if engine.description is None:
            lost[index] = engine, run
        else:
            nets[index] = runs[index] = ExportedNetwork(engine, run, overrides)
    for index, (engine, run) in lost.items():
        nets[index] = runs[index] = ExportedNetwork(engine, run, overrides, nets[1 - index])
    return nets, runs


def _check_preparation(recipe, nets, paths, overrides):
    """Raise UserError where the two prepare pictures differently: another crop would be compared."""
    for net, path in zip(nets, paths, strict=True):
        own = recipe_of(net, overrides)
        for name in _PREPARATION:
            if getattr(own, name) != getattr(recipe, name):
                values = " and ".join(quoted(plain(getattr(one, name))) for one in (own, recipe))
                option = _OPTIONS.get(name, name)
                raise UserError(
                    f"the two prepare pictures differently: {name} is {values} ({path}'s first); give --{option}"
                )


def _precision(net, computing) -> str:
    """The least exact precision that a side has."""
    own = getattr(net, "precision", "float32")
    return own if own in ("int8", "float16") or computing.precision == "float32" else computing.precision


def _of_pixels(net, run, recipe):
    """A function of uint8 images (N, H, W, C) that gives logits."""
    if run is net and isinstance(net, nn.Cell):
        return as_function(net, recipe.preprocessing)
    if getattr(net, "preprocesses", False):
        return run
    gain, bias = recipe.preprocessing.gain_and_bias()
    return lambda pixels: run(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) * gain + bias)


def _side(path, computing, precision, accuracies) -> Side:
    return Side(str(path), computing.engine, precision, *(accuracies[key] for key in ("top1", "top5", "loss")))
