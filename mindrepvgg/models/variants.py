"""The RepVGG family as one frozen table, and the layout of a network's blocks.

Sources: RepVGG, arXiv:2101.03697, tables 2 and 3; D2se and RepVGGplus from the authors' later releases.
Loads no MindSpore: names and sizes answer at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.text import listed, printable, quoted

# What a network can be: with its branches, fused, fused with BN inserted, and that with fake quantisation.
FORMS = TRAIN, DEPLOY, BN, QAT = ("train", "deploy", "bn", "qat")
PLAIN_FORMS = (TRAIN, DEPLOY)

# The largest of the family has 24 blocks in a stage, and 2560 channels. Far above that a network fits no memory.
MOST_BLOCKS, MOST_CHANNELS, MOST_CLASSES = 1000, 1 << 16, 1_000_000

_BLOCKS_A = (2, 4, 14, 1)
_BLOCKS_B = (4, 6, 16, 1)
_BLOCKS_D = (8, 14, 24, 1)


class BlockSpec(NamedTuple):
    """One RepVGG block's place and shape: parameter prefix (`stage1.0`), channels, stride and groups."""

    name: str
    in_channels: int
    out_channels: int
    stride: int
    groups: int


class Stage(NamedTuple):
    """A run of blocks under one name; `aux` says whether training hangs an auxiliary head on its output."""

    name: str
    num_blocks: int
    width: int
    stride: int
    aux: bool = False


@dataclass(frozen=True)
class Variant:
    """A network of the family.

    Attributes:
        name: as `create_model` knows it.
        num_blocks: blocks in stages 1 to 4; stage 0 is always one block.
        widths: output channels of stages 0 to 4.
        group_size: groups of every even block.
        se: None, 'pre' (between the branch sum and the ReLU) or 'post' (after the ReLU).
        se_ratio: SE squeezes to channels // se_ratio.
        aux_heads: stage 3 is split in two halves, and training adds heads after stages 1, 2 and 3's first half.
    """

    name: str
    num_blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int, int]
    group_size: int = 1
    se: str | None = None
    se_ratio: int = 16
    aux_heads: bool = False

    def __post_init__(self):
        _check_variant(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order. Stage 0 is one block whose parameters carry no index: `stage0.rbr_dense...`."""
        n1, n2, n3, n4 = self.num_blocks
        _, w1, w2, w3, w4 = self.widths
        third = [Stage("stage3", n3, w3, 2)]
        if self.aux_heads:
            third = [Stage("stage3_first", n3 // 2, w3, 2, aux=True), Stage("stage3_second", n3 - n3 // 2, w3, 1)]
        return (
            Stage("stage1", n1, w1, 2, aux=self.aux_heads),
            Stage("stage2", n2, w2, 2, aux=self.aux_heads),
            *third,
            Stage("stage4", n4, w4, 2),
        )

    def block_specs(self, in_channels: int = 3) -> tuple[BlockSpec, ...]:
        """Every block from input to output, the stem (`stage0`) first.

        Blocks are counted through from the stem, which is number 0. Those with an even number above 0 are grouped.
        """
        specs = [BlockSpec("stage0", in_channels, self.widths[0], 2, 1)]
        for stage in self.stages:
            for i in range(stage.num_blocks):
                specs.append(
                    BlockSpec(
                        name=f"{stage.name}.{i}",
                        in_channels=specs[-1].out_channels,
                        out_channels=stage.width,
                        stride=stage.stride if i == 0 else 1,
                        groups=self.group_size if len(specs) % 2 == 0 else 1,
                    )
                )
        return tuple(specs)

    def to_dict(self) -> dict:
        """The keyword arguments of `custom` that rebuild this network's shape."""
        return {
            "num_blocks": list(self.num_blocks),
            "widths": list(self.widths),
            "group_size": self.group_size,
            "se": self.se,
            "se_ratio": self.se_ratio,
            "aux_heads": self.aux_heads,
        }


def _check_variant(variant: Variant):
    """Refuse a shape that cannot be built, with the values."""
    for key, values, stages, most in (
        ("num_blocks", variant.num_blocks, (1, 2, 3, 4), MOST_BLOCKS),
        ("widths", variant.widths, (0, 1, 2, 3, 4), MOST_CHANNELS),
    ):
        fit = all(type(value) is int and 1 <= value <= most for value in values)
        if not fit or len(values) != len(stages):
            raise UserError(
                f"{key} (={quoted(values)}) must be {len(stages)} whole numbers of at least 1 and at most {most}, for "
                f"stages {stages[0]}-4"
            )
    if type(variant.group_size) is not int or variant.group_size < 1:
        raise UserError(f"group_size (={quoted(variant.group_size)}) must be a whole number of at least 1")
    if variant.se not in (None, "pre", "post"):
        raise UserError(f"se (={quoted(variant.se)}) must be None, 'pre' or 'post'")
    narrowest = min(variant.widths)
    if type(variant.se_ratio) is not int or variant.se_ratio < 1 or (variant.se and variant.se_ratio > narrowest):
        raise UserError(
            f"se_ratio (={quoted(variant.se_ratio)}) must be a whole number from 1 to the narrowest width ({narrowest})"
        )
    if type(variant.aux_heads) is not bool:
        raise UserError(f"aux_heads (={quoted(variant.aux_heads)}) must be true or false")
    if variant.aux_heads and variant.num_blocks[2] < 2:
        raise UserError(f"aux_heads needs at least two blocks in stage 3 to split, num_blocks is {variant.num_blocks}")
    for spec in variant.block_specs():
        if spec.in_channels % spec.groups or spec.out_channels % spec.groups:
            raise UserError(
                f"group_size (={variant.group_size}) must divide the channels of {spec.name} "
                f"({spec.in_channels} -> {spec.out_channels})"
            )


def _scaled(name: str, num_blocks, a: float, b: float, **options) -> Variant:
    """A variant from the paper's multipliers: widths min(64, 64a), 64a, 128a, 256a, 512b."""
    widths = (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b))
    return Variant(name, num_blocks, widths, **options)


_VARIANTS = {
    variant.name: variant
    for variant in (
        _scaled("repvgg_a0", _BLOCKS_A, 0.75, 2.5),
        _scaled("repvgg_a1", _BLOCKS_A, 1, 2.5),
        _scaled("repvgg_a2", _BLOCKS_A, 1.5, 2.75),
        _scaled("repvgg_b0", _BLOCKS_B, 1, 2.5),
        _scaled("repvgg_b1", _BLOCKS_B, 2, 4),
        _scaled("repvgg_b1g2", _BLOCKS_B, 2, 4, group_size=2),
        _scaled("repvgg_b1g4", _BLOCKS_B, 2, 4, group_size=4),
        _scaled("repvgg_b2", _BLOCKS_B, 2.5, 5),
        _scaled("repvgg_b2g2", _BLOCKS_B, 2.5, 5, group_size=2),
        _scaled("repvgg_b2g4", _BLOCKS_B, 2.5, 5, group_size=4),
        _scaled("repvgg_b3", _BLOCKS_B, 3, 5),
        _scaled("repvgg_b3g2", _BLOCKS_B, 3, 5, group_size=2),
        _scaled("repvgg_b3g4", _BLOCKS_B, 3, 5, group_size=4),
        _scaled("repvgg_d2se", _BLOCKS_D, 2.5, 5, se="pre", se_ratio=16),
        _scaled("repvggplus_l2pse", _BLOCKS_D, 2.5, 5, se="post", se_ratio=4, aux_heads=True),
        # Not of the paper: small enough to train on two CPU cores in a minute or two.
        Variant("repvgg_nano", (2, 2, 3, 1), (16, 16, 32, 64, 128)),
    )
}


# What a network `repvgg` of one's own size is described by; see `custom`.
SHAPE_KEYS = ("num_blocks", "widths", "group_size", "se", "se_ratio", "aux_heads")


def list_models() -> list[str]:
    """The names `create_model` knows, the paper's order; `repvgg` (one's own sizes) comes last."""
    return [*_VARIANTS, "repvgg"]


def normalise_name(name: str) -> str:
    """Spell a network's name as this package does: `RepVGG-B1g4` becomes `repvgg_b1g4`."""
    return str(name).strip().lower().replace("-", "_")


def find(name: str, **shape) -> Variant:
    """The variant called `name`, in either spelling.

    Args:
        name: 'repvgg_a0' or 'RepVGG-A0'.
        **shape: for the name `repvgg` only, the keyword arguments of `custom`.

    Raises:
        UserError: there is none, and the message has the nearest names; or a shape is given to a fixed network.
    """
    key = normalise_name(name)
    if key == "repvgg":
        return custom(**shape)
    if key not in _VARIANTS:
        near = difflib.get_close_matches(key[:100], list_models(), n=3, cutoff=0.4)  # comparing takes quadratic time
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        known = ", ".join(list_models())
        raise UserError(f"model (={quoted(name)}) is not a network of the family; {hint}known: {known}")
    if shape:
        raise UserError(f"{key} has a fixed shape and takes no {_names(shape)}; the name 'repvgg' does")
    return _VARIANTS[key]


def _names(keys) -> str:
    """Keyword arguments for a message."""
    return listed([printable(key) for key in sorted(keys)])


def custom(num_blocks=None, widths=None, **options) -> Variant:
    """A network `repvgg` of one's own size.

    Args:
        num_blocks: blocks in stages 1 to 4.
        widths: channels of stages 0 to 4.
        **options: `group_size`, `se`, `se_ratio`, `aux_heads`, as in `Variant`.

    Raises:
        UserError: they are missing, unknown or do not fit each other.
    """
    unknown = set(options) - set(SHAPE_KEYS)
    if unknown:
        raise UserError(f"repvgg does not know {_names(unknown)}; it takes {', '.join(SHAPE_KEYS)}")
    if num_blocks is None or widths is None:
        raise UserError("repvgg needs num_blocks (four numbers, stages 1-4) and widths (five numbers, stages 0-4)")
    for key, value in (("num_blocks", num_blocks), ("widths", widths)):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{key} (={quoted(value)}) must be a list of whole numbers")
    return Variant("repvgg", tuple(num_blocks), tuple(widths), **options)
