"""The comparison of an exported features network with the network it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mindrepvgg.reparam.compare import check_tolerance, difference, largest, relative
from mindrepvgg.text import counted


@dataclass(frozen=True)
class MapsCheck:
    """How far the maps of two networks lie apart.

    Attributes:
        by_output: the name of each output, and its largest difference over the reference's largest value.
        num_images: images compared.
        rtol: the largest difference that passes.
    """

    by_output: dict[str, float]
    num_images: int
    rtol: float

    @property
    def max_rel(self) -> float:
        """The worst of the outputs; NaN where one is."""
        return float(np.max([*self.by_output.values()]))

    @property
    def passed(self) -> bool:
        """Whether all maps agree within the tolerance; NaN does not."""
        return self.max_rel <= self.rtol

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {**asdict(self), "max_rel": self.max_rel, "passed": self.passed}

    def format(self) -> str:
        """A few lines for people."""
        lines = [f"{name} differs by at most {worst:.2e} of its largest" for name, worst in self.by_output.items()]
        lines.append(f"{counted(self.num_images, 'image')}, tolerance {self.rtol:g}")
        lines.append("the two agree" if self.passed else "the two DIFFER")
        return "\n".join(lines)


def check_maps(
    ours: Callable, reference: Callable, batches: Iterable[np.ndarray], names: Sequence[str], rtol: float
) -> MapsCheck:
    """Run two functions over the same batches and compare what they give, output by output.

    Args:
        ours, reference: an array of images -> a tuple of arrays.
        batches: arrays of images.
        names: of the outputs.
        rtol: the largest difference, over the reference's largest value of an output, that passes.

    Raises:
        UserError: `rtol` is negative, infinite or NaN.
        ValueError: the two give another number of outputs, or other shapes.
    """
    check_tolerance(rtol)
    apart, scales, num_images = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), 0
    for images in batches:
        num_images += len(images)
        for name, one, truth in zip(names, ours(images), reference(images), strict=True):
            if one.shape != truth.shape:
                raise ValueError(f"{name} has the shapes {one.shape} and {truth.shape}: they do not compare")
            # np.maximum keeps a NaN, where max() would lose it.
            apart[name] = float(np.maximum(apart[name], difference(truth, one)[0]))
            scales[name] = max(scales[name], largest(truth))
    return MapsCheck({name: relative(apart[name], scales[name]) for name in names}, num_images, rtol)
