"""Which of a network's maps a features network gives, and where. Loads no MindSpore.

A level is a size of the maps: level 0 is the stem's, level i that of stage i.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from mindrepvgg.errors import UserError
from mindrepvgg.text import quoted

LEVELS = range(5)


def level_of(name: str) -> int:
    """The level of a stage or a block by its name: 3 of `stage3_first.0`."""
    return int(name.removeprefix("stage")[0])


@dataclass(frozen=True)
class FeatureLayout:
    """What a features network gives.

    Attributes:
        out_indices: the levels whose maps it gives, from large maps to small ones.
        frozen_stages: the last level that is not trained, with those before it; -1: all are. As mmpretrain's.
        norm_eval: whether every BN keeps normalising with its moving statistics, and keeps these; its gamma and beta
            are trained. As mmpretrain's.
    """

    out_indices: tuple[int, ...] = tuple(LEVELS)
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
        if type(self.frozen_stages) is not int or self.frozen_stages not in (-1, *LEVELS):
            raise UserError(
                f"frozen_stages (={quoted(self.frozen_stages)}) must be -1 (none), 0 (the stem), or up to 4 (the stem "
                "and stages 1 to 4)"
            )
        if type(self.norm_eval) is not bool:
            raise UserError(f"norm_eval (={quoted(self.norm_eval)}) must be True or False")

    @property
    def last(self) -> int:
        """The last level that is given; the network ends there."""
        return self.out_indices[-1]

    def to_dict(self) -> dict:
        """Plain types, for JSON; `FeatureLayout(**values)` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


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
