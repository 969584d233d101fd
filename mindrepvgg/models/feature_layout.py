"""Which of a network's maps a features network gives, and where. Loads no MindSpore.

A level is a size of the maps: level 0 is the stem's, level i that of stage i.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from mindrepvgg.errors import UserError
from mindrepvgg.models.block_kinds import BlockSpec
from mindrepvgg.text import plain, quoted

LEVELS = range(5)
_STAGES = range(1, 5)

OUTPUT_STRIDES = (8, 16, 32)
_MOST_DILATION = 64


def level_of(name: str) -> int:
    """The level of a stage or a block by its name: 3 of `stage3_first.0`."""
    return int(name.removeprefix("stage")[0])


def _spread(spec, dilation) -> BlockSpec:
    """A block with a dilation; a kernel of one pixel has none."""
    return spec._replace(dilation=dilation if spec.kernel_size > 1 else 1)


@dataclass(frozen=True)
class FeatureLayout:
    """What a features network gives.

    Strides and dilations change no weights: where a convolution loses its stride, the block keeps its branches.

    Attributes:
        out_indices: the levels whose maps it gives, from large maps to small ones.
        output_stride: the largest reduction, 8, 16 or 32. Stages that would reduce further have stride 1, and dilation
            makes up for it, as in timm: the first block of such a stage has the dilation of the stage before it.
        strides: of stages 1 to 4, each 1 or 2; None: the network's own.
        dilations: of stages 1 to 4, the same for all blocks of a stage, as in mmpretrain; None: 1.
        frozen_stages: the last level that is not trained, with those before it; -1: all are. As mmpretrain's.
        norm_eval: whether every BN keeps normalising with its moving statistics, and keeps these; its gamma and beta
            are trained. As mmpretrain's.
    """

    out_indices: tuple[int, ...] = tuple(LEVELS)
    output_stride: int = 32
    strides: tuple[int, int, int, int] | None = None
    dilations: tuple[int, int, int, int] | None = None
    frozen_stages: int = -1
    norm_eval: bool = False

    def __post_init__(self):
        indices = self.out_indices
        known = isinstance(indices, (list, tuple)) and all(type(index) is int and index in LEVELS for index in indices)
        if not known or not indices or list(indices) != sorted(set(indices)):
            raise UserError(
                f"out_indices (={quoted(indices)}) must be rising whole numbers from 0 (the stem) to 4 (stage 4)"
            )
        object.__setattr__(self, "out_indices", tuple(indices))
        if type(self.output_stride) is not int or self.output_stride not in OUTPUT_STRIDES:
            raise UserError(f"output_stride (={quoted(self.output_stride)}) must be 8, 16 or 32")
        self._check_stages("strides", 2, "each 1 or 2")
        self._check_stages("dilations", _MOST_DILATION, f"each from 1 to {_MOST_DILATION}")
        if self.output_stride != max(OUTPUT_STRIDES) and (self.strides or self.dilations):
            raise UserError(
                f"output_stride (={self.output_stride}) chooses strides and dilations; give it, or strides and "
                "dilations, not both"
            )
        if type(self.frozen_stages) is not int or self.frozen_stages not in (-1, *LEVELS):
            raise UserError(
                f"frozen_stages (={quoted(self.frozen_stages)}) must be -1 (none), 0 (the stem), or up to 4 (the stem "
                "and stages 1 to 4)"
            )
        if type(self.norm_eval) is not bool:
            raise UserError(f"norm_eval (={quoted(self.norm_eval)}) must be True or False")

    def _check_stages(self, key, most, expected):
        """Refuse what is not a number for each stage, and keep it as a tuple."""
        values = getattr(self, key)
        if values is None:
            return
        numbers = isinstance(values, (list, tuple)) and all(type(n) is int and 1 <= n <= most for n in values)
        if not numbers or len(values) != len(_STAGES):
            raise UserError(f"{key} (={quoted(values)}) must be 4 numbers, {expected}, for stages 1-4")
        object.__setattr__(self, key, tuple(values))

    def placed(self, specs: Sequence[BlockSpec]) -> tuple[BlockSpec, ...]:
        """A network's blocks with the strides and dilations they have here.

        Args:
            specs: the blocks of the network that classifies.
        """
        placed, reduction, dilation = [], 1, 1
        for level, group in itertools.groupby(specs, key=lambda spec: level_of(spec.name)):
            blocks = list(group)
            stride, before = blocks[0].stride, dilation
            if self.strides and level:
                stride = self.strides[level - 1]
            if self.dilations and level:
                before = dilation = self.dilations[level - 1]
            elif reduction >= self.output_stride:
                dilation *= stride
                stride = 1
            reduction *= stride
            identity = stride >= blocks[0].stride
            placed.append(_spread(blocks[0], before)._replace(stride=stride, identity=identity))
            placed += [_spread(spec, dilation) for spec in blocks[1:]]
        return tuple(placed)

    @property
    def last(self) -> int:
        """The last level that is given; the network ends there."""
        return self.out_indices[-1]

    def to_dict(self) -> dict:
        """Plain types, for JSON; `FeatureLayout(**values)` reads it back."""
        return plain(asdict(self))


FEATURE_KEYS = tuple(field.name for field in fields(FeatureLayout))


class FeatureInfo(list):
    """What maps a network has or gives: a dict for each, from large maps to small ones.

    Each has `name`, of the cell that the map comes from, `channels`, and `reduction`, the input's side over the map's.
    Under `chs` MindCV finds the channels, under `num_chs` and `module` timm finds channels and name.
    """

    def channels(self) -> list[int]:
        """The channels of each, as timm is asked for them."""
        return [info["channels"] for info in self]

    def reduction(self) -> list[int]:
        """The reduction of each, as timm is asked for it."""
        return [info["reduction"] for info in self]


def feature_info(name: str, channels: int, reduction: int) -> dict:
    """An entry of `FeatureInfo`."""
    own = {"name": name, "channels": channels, "reduction": reduction}
    return {**own, "chs": channels, "num_chs": channels, "module": name}
