"""A network judged on its validation split in one of several ways, and what came out, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mindrepvgg.data.loaders import check_classes, loader_of, open_split
from mindrepvgg.data.source import spread
from mindrepvgg.evaluation.classes import ClassReport
from mindrepvgg.evaluation.evaluate import Evaluation, evaluate
from mindrepvgg.evaluation.metrics import ConfusionSum
from mindrepvgg.models.qat import form_of
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.precision import check_precision, set_precision

_HALF = "float16"


class Way(NamedTuple):
    """How a network is judged.

    limit: at most so many images, spread over the classes; None: all. flip: by the mean of an image's logits and its
    mirror image's. amp_level: 'O2' and 'O3' compute in float16, see `precision.set_precision`. engine: 'mindspore', or
    'onnxruntime', which computes the deploy form in float32 on the CPU.
    """

    limit: int | None = None
    flip: bool = False
    amp_level: str = "O0"
    engine: str = "mindspore"


@dataclass(frozen=True)
class Validation:
    """What came out: the network, the way it was judged, the `Evaluation`, and its classes' where they were asked for.

    split_images: the images of the validation split, chosen_images: those the way leaves of them, readable or not.
    processes: those that shared the work.
    """

    model: str
    form: str
    dataset: str
    device: str
    processes: int
    way: Way
    split_images: int
    chosen_images: int
    evaluation: Evaluation
    classes: ClassReport | None

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            **{name: getattr(self, name) for name in ("model", "form", "dataset", "device", "processes")},
            **{name: getattr(self.way, name) for name in ("engine", "amp_level", "flip")},
            "split_images": self.split_images,
            **vars(self.evaluation),
            **({"worst_classes": [result._asdict() for result in self.classes.worst()]} if self.classes else {}),
        }

    def format(self) -> str:
        """A few lines for people."""
        found, way = self.evaluation, self.way
        images = f"{found.num_images} images"
        if self.chosen_images < self.split_images:
            images = f"{self.chosen_images} of {self.split_images} images, spread over all classes"
        fused = ", fused to deploy form" if self.form == "train" else ""
        special = [
            *([f"computed by onnxruntime{fused}"] if way.engine == "onnxruntime" else []),
            *([f"computed in {_HALF} ({way.amp_level})"] if way.amp_level != "O0" else []),
            *(["logits averaged over each image and its mirror image"] if way.flip else []),
        ]
        return "\n".join(
            [
                f"{self.model} in {self.form} form on {self.dataset}: {images}{found.not_counted}",
                *(["; ".join(special)] if special else []),
                f"top-1 {found.top1:.2f}%  top-5 {found.top5:.2f}%  loss {found.loss:.4f}",
                f"{found.images_per_second:.0f} images/s on {self.device}"
                + (f", {self.processes} processes" if self.processes > 1 else ""),
                *([self.classes.format()] if self.classes else []),
            ]
        )


def validate(net, overrides, device, ranks, way, by_class=False, show_progress=False, engine=None) -> Validation:
    """Judge a network on the validation split its checkpoint tells of; all ranks get the same.

    net: not called yet, as a graph it has compiled would keep its precision; it stays in the way's. overrides: recipe
    keys of the command line, see `evaluate.recipe_of`. device: the one in use. by_class: count for each class too.
    engine: makes of the network a function of arrays that computes in its place, as `deployment.engine.engine_of`; the
    way names it.
    Raises UserError when network, data and way do not go together, or a package is missing.
    """
    check_precision(way.amp_level, _HALF, device)
    recipe = recipe_of(net, overrides)
    source = open_split(recipe, "val")
    check_classes(net, source)
    loader = loader_of(recipe, spread(source, way.limit), ranks, as_uint8=not engine)
    if way.amp_level != "O0":
        set_precision(net, way.amp_level, _HALF)
    run = engine(net) if engine else net
    confusion = ConfusionSum.of(net.num_classes) if by_class else None
    found = evaluate(run, loader, show_progress and ranks.is_first, ranks, way.flip, confusion)
    return Validation(
        model=recipe.model,
        form=form_of(net),
        dataset=recipe.dataset,
        device=device,
        processes=ranks.size,
        way=way,
        split_images=len(source),
        chosen_images=len(loader.source),
        evaluation=found,
        classes=ClassReport(source.class_names, confusion) if confusion else None,
    )
