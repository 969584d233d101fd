"""What validation reports: a network's figures on its validation split, with how they were measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import nn

from mindrepvgg.data.loaders import check_classes, loader_of, open_split
from mindrepvgg.data.source import spread
from mindrepvgg.evaluation.class_report import ClassReport
from mindrepvgg.evaluation.inference import ArrayFunction
from mindrepvgg.evaluation.loop import Evaluation, evaluate
from mindrepvgg.evaluation.metrics import ConfusionSum
from mindrepvgg.evaluation.mistakes import MistakeReport, MistakeSum
from mindrepvgg.models.qat import form_of
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.layers import set_grouped
from mindrepvgg.reparam.precision import check_precision, set_precision
from mindrepvgg.text import counted

_HALF = "float16"


@dataclass(frozen=True)
class EvalOptions:
    """How a network is validated.

    Attributes:
        limit: at most so many images, spread over the classes; None: all.
        flip: take the mean of an image's logits and its mirror image's.
        amp_level: "O2" and "O3" compute in float16, see `reparam.precision.set_precision`.
        engine: "mindspore", or "onnxruntime" or "openvino", which compute the deploy form on the CPU.
        by_class: count for each class too.
        precision: of the engine's arithmetic.
        mistakes: keep the worst mistakes too, with their pictures.
    """

    limit: int | None = None
    flip: bool = False
    amp_level: str = "O0"
    engine: str = "mindspore"
    by_class: bool = False
    precision: str = "float32"
    mistakes: bool = False


@dataclass(frozen=True)
class Validation:
    """What validation found.

    Attributes:
        model, form, dataset, device: names of what was used; form is "train" or "deploy".
        processes: those that shared the work.
        options: how the network was validated.
        split_images: images of the validation split.
        chosen_images: images that `options.limit` leaves of them, readable or not.
        evaluation: the figures.
        classes: what became of each class; None where that was not asked for.
        mistakes: the worst ones; None where they were not asked for.
    """

    model: str
    form: str
    dataset: str
    device: str
    processes: int
    options: EvalOptions
    split_images: int
    chosen_images: int
    evaluation: Evaluation
    classes: ClassReport | None
    mistakes: MistakeReport | None = None

    @property
    def title(self) -> str:
        """What was validated on what."""
        return f"{self.model} on {self.dataset}"

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            **{name: getattr(self, name) for name in ("model", "form", "dataset", "device", "processes")},
            **{name: getattr(self.options, name) for name in ("engine", "precision", "amp_level", "flip")},
            "split_images": self.split_images,
            **vars(self.evaluation),
            **({"worst_classes": [result._asdict() for result in self.classes.worst()]} if self.classes else {}),
            **({"mistakes": [mistake._asdict() for mistake in self.mistakes.mistakes]} if self.mistakes else {}),
        }

    def format(self) -> str:
        """A few lines for people."""
        found = self.evaluation
        return "\n".join(
            [
                *self.headlines(),
                f"top-1 {found.top1:.2f}%  top-5 {found.top5:.2f}%  loss {found.loss:.4f}",
                f"{found.images_per_second:.0f} images/s on {self.device}"
                + (f", {self.processes} processes" if self.processes > 1 else ""),
                *([self.classes.format()] if self.classes else []),
            ]
        )

    def headlines(self) -> list[str]:
        """What was validated on what, and in which way where it is not the usual one: one line or two."""
        found, options = self.evaluation, self.options
        images = counted(found.num_images, "image")
        if self.chosen_images < self.split_images:
            images = f"{self.chosen_images:,} of {counted(self.split_images, 'image')}, spread over all classes"
        fused = ", fused to deploy form" if self.form == "train" else ""
        inside = f" in {options.precision}" if options.precision != "float32" else ""
        special = [
            *([f"computed by {options.engine}{inside}{fused}"] if options.engine != "mindspore" else []),
            *([f"computed in {_HALF} ({options.amp_level})"] if options.amp_level != "O0" else []),
            *(["logits averaged over each image and its mirror image"] if options.flip else []),
        ]
        first = f"{self.model} in {self.form} form on {self.dataset}: {images}{found.not_counted}"
        return [first, *(["; ".join(special)] if special else [])]


def run_validation(
    net,
    overrides: Mapping,
    options: EvalOptions,
    device: str,
    ranks,
    engine_of: Callable[..., ArrayFunction] | None = None,
    show_progress: bool = False,
) -> Validation:
    """Validate a network on the split that its checkpoint tells.

    Args:
        net: a network that was not called yet, because a graph that it has compiled would keep its precision; it
            stays in the precision of the options. Or an exported file, see `deployment.exported.ExportedNetwork`.
        overrides: recipe keys of the command line, see `recipe.network.recipe_of`.
        options: how to validate it.
        device: the one in use.
        ranks: the `Ranks` that share the work; all get the same figures.
        engine_of: makes of the network a function of arrays, which computes in its place. None: the network computes.
        show_progress: draw a progress bar on a terminal.

    Raises:
        UserError: network, data and options do not go together, or a package is missing.
    """
    check_precision(options.amp_level, _HALF, device)
    recipe = recipe_of(net, overrides)
    is_network = isinstance(net, nn.Cell)
    if is_network:
        set_grouped(net, recipe.grouped)
    source = open_split(recipe, "val")
    check_classes(net, source)
    as_uint8 = engine_of is None if is_network else net.preprocesses
    loader = loader_of(recipe, spread(source, options.limit), ranks, as_uint8)
    if options.amp_level != "O0":
        set_precision(net, options.amp_level, _HALF)
    run = engine_of(net) if engine_of else net
    confusion = ConfusionSum.of(net.num_classes) if options.by_class else None
    mistakes = MistakeSum() if options.mistakes else None
    found = evaluate(run, loader, show_progress and ranks.is_first, ranks, options.flip, confusion, mistakes)
    return Validation(
        model=recipe.model if net.variant else net.name,
        form=form_of(net) if is_network else net.form,
        dataset=source.title,
        device=device,
        processes=ranks.size,
        options=options,
        split_images=len(source),
        chosen_images=len(loader.source),
        evaluation=found,
        classes=ClassReport(source.class_names, confusion) if confusion else None,
        mistakes=mistakes.report(loader.source, functools.partial(_pixels, recipe)) if mistakes else None,
    )


def _pixels(recipe, source) -> np.ndarray:
    """The pictures (n, H, W, C) uint8 of a small source, as a network of the recipe sees them."""
    batches = loader_of(recipe, source, as_uint8=True)
    return np.concatenate([images[valid] for images, _, valid in batches])
