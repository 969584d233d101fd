"""What sizes a network can have. Loads no MindSpore."""

from __future__ import annotations

import operator

from mindrepvgg.errors import UserError
from mindrepvgg.text import quoted

# The largest of the family has 24 blocks in a stage, and 2560 channels. Far above that a network fits no memory.
MOST_BLOCKS, MOST_CHANNELS, MOST_CLASSES = 1000, 1 << 16, 1_000_000


def check_variant(variant):
    """Refuse a network that cannot be built, with the values.

    Args:
        variant: a `variants.Variant`.

    Raises:
        UserError: a size is out of bounds, or two do not fit each other.
    """
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
    narrowest, has_se = min(variant.widths), variant.se or any(variant.se_blocks)
    if type(variant.se_ratio) is not int or variant.se_ratio < 1 or (has_se and variant.se_ratio > narrowest):
        raise UserError(
            f"se_ratio (={quoted(variant.se_ratio)}) must be a whole number from 1 to the narrowest width ({narrowest})"
        )
    if type(variant.aux_heads) is not bool:
        raise UserError(f"aux_heads (={quoted(variant.aux_heads)}) must be true or false")
    if variant.aux_heads and variant.num_blocks[2] < 2:
        raise UserError(f"aux_heads needs at least two blocks in stage 3 to split, num_blocks is {variant.num_blocks}")
    if type(variant.branches) is not int or not 1 <= variant.branches <= MOST_BLOCKS:
        raise UserError(
            f"branches (={quoted(variant.branches)}) must be a whole number of at least 1 and at most {MOST_BLOCKS}"
        )
    counts = variant.se_blocks
    fit = all(type(count) is int and count >= 0 for count in counts)
    if not fit or len(counts) != 4 or any(map(operator.gt, counts, variant.num_blocks)):
        raise UserError(
            f"se_blocks (={quoted(counts)}) must be 4 whole numbers, none above the blocks of its stage, for stages 1-4"
        )
    strides = variant.strides
    if len(strides) != 5 or not all(type(stride) is int and stride in (1, 2) for stride in strides):
        raise UserError(f"strides (={quoted(strides)}) must be 5 numbers, each 1 or 2, for stages 0-4")
    for spec in variant.block_specs():
        if spec.in_channels % spec.groups or spec.out_channels % spec.groups:
            raise UserError(
                f"group_size (={variant.group_size}) must divide the channels of {spec.name} "
                f"({spec.in_channels} -> {spec.out_channels})"
            )
