"""The kinds of blocks that networks are made of: what their modules are called, and how large their kernels are.

What walks over a network's blocks without building it reads a block's form here. Loads no MindSpore.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.text import listed, not_one_of, patterns, quoted


class Part(NamedTuple):
    """A cell with parameters in a block's train form.

    Attributes:
        name: its place in the block.
        shape: of a convolution's kernel, (out, in // groups, kh, kw), which has no bias; of a BN or a scale, (C,).
        inner: another convolution or a pooling follows in the branch, and has the block's stride.
        is_scale: it is a number for each channel, which the channel is multiplied by.
    """

    name: str
    shape: tuple[int, ...]
    inner: bool = False
    is_scale: bool = False

    @property
    def is_kernel(self) -> bool:
        """Whether it is a convolution."""
        return len(self.shape) == 4

    @property
    def is_norm(self) -> bool:
        """Whether it is a BN."""
        return not (self.is_kernel or self.is_scale)


# What the input goes through, from the first part to the last.
Branch = tuple[Part, ...]


class BlockSpec(NamedTuple):
    """One block's place and shape.

    Attributes:
        name: its parameters' prefix, such as `stage1.0`.
        in_channels, out_channels, stride, groups, kernel_size: of the convolution that it equals.
        kind: one of `KINDS`.
        branches: how many convolutions of the full kernel a MobileOne block adds up.
        se: None, 'pre' (before the ReLU) or 'post' (after it).
        family: the network's, one of `FAMILIES`.
        dilation: of the large convolution.
        identity: whether its input may be one of its branches. Not where a dilation took the place of the stride: the
            weights are those of the block that has the stride.
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int
    groups: int
    kernel_size: int = 3
    kind: str = "repvgg"
    branches: int = 1
    se: str | None = None
    family: str = "repvgg"
    dilation: int = 1
    identity: bool = True

    @property
    def keeps(self) -> bool:
        """Whether the block keeps channels and size, and its input is one of its branches."""
        return self.identity and self.in_channels == self.out_channels and self.stride == 1

    @property
    def start_scale(self) -> float:
        """What the scales of a linear addition's convolutions are at first: sqrt(2 / l) in block l of a stage, and 1 in
        the first, which is number 0. Source: the code of RepOptimizer's authors, repoptvgg_model.py.
        """
        number = int(self.name.partition(".")[2] or 0)
        return math.sqrt(2 / number) if number else 1.0

    @property
    def fused(self) -> str:
        """The prefix of the deploy form's convolution."""
        return f"{self.name}.{FAMILIES[self.family].fused}"

    @property
    def squeeze_excite(self) -> str | None:
        """The prefix of its SE, None without one."""
        return self.se and f"{self.name}.{SE_NAMES[self.se]}"

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """(out, in // groups, kh, kw) of the convolution that it equals."""
        return self.out_channels, self.in_channels // self.groups, self.kernel_size, self.kernel_size

    @property
    def train_branches(self) -> tuple[Branch, ...]:
        """The branches of its train form that have parameters, in the parameters' order in the network."""
        return KINDS[self.kind].train_branches(self)


class BlockKind(NamedTuple):
    """A kind of block.

    Attributes:
        dense: a convolution of the full kernel that every block has in train form.
        train_branches: see `BlockSpec`.
        outer: the BN after the sum of the branches; it is listed as a branch of its own.
        adds_input: whether the bare input is added to that sum where the block keeps its shape.
        sign: a part that tells its names from other kinds' where `dense` does not.
        has_custom_l2: whether a decay of its equivalent kernel is known, see `training.custom_l2`.
    """

    dense: str
    train_branches: Callable[[BlockSpec], tuple[Branch, ...]]
    outer: str | None = None
    adds_input: bool = False
    sign: str | None = None
    has_custom_l2: bool = False


class Family(NamedTuple):
    """Networks of one layout and one kind of block, which has the family's name unless another is chosen.

    Attributes:
        title: the network's name in words.
        fused: the deploy form's convolution in a block, whatever the block's kind.
    """

    title: str
    fused: str


# An SE's attribute in a block by its place.
SE_NAMES = {"pre": "se", "post": "post_se"}

# A linear addition, with which RepOptimizer's scales are searched for.
LINEAR_ADDITION = "linear_addition"

# How many large convolutions a MobileOne block has in a network of another family: as many as in MobileOne-S0. With one
# it would be RepVGG's block under other names.
MOBILEONE_BRANCHES = 4


def _kernel(spec, name, height, width=None) -> Part:
    return Part(name, (*spec.kernel_shape[:2], height, height if width is None else width))


def _bn(spec, name) -> Part:
    return Part(name, (spec.out_channels,))


def _conv_bn(spec, name, size) -> Branch:
    """A convolution and its BN, as one cell."""
    return _kernel(spec, f"{name}.conv", size), _bn(spec, f"{name}.bn")


def _plain(spec):
    return (_conv_bn(spec, "rbr_dense", spec.kernel_size),)


def _repvgg(spec):
    branches = *_plain(spec), _conv_bn(spec, "rbr_1x1", 1)
    return (*branches, (_bn(spec, "rbr_identity"),)) if spec.keeps else branches


def _qarepvgg(spec):
    return *_plain(spec), (_kernel(spec, "rbr_1x1", 1),), (_bn(spec, "bn"),)


def _repopt_vgg(spec):
    return ((_kernel(spec, "conv", spec.kernel_size), _bn(spec, "bn")),)


def _linear_addition(spec):
    def scale(name):
        return Part(name, (spec.out_channels,), is_scale=True)

    branches = tuple(
        (_kernel(spec, name, size), scale(of))
        for name, size, of in (("conv", spec.kernel_size, "scale_conv"), ("conv_1x1", 1, "scale_1x1"))
    )
    return *branches, *(((scale("scale_identity"),),) if spec.keeps else ()), (_bn(spec, "bn"),)


def _mobileone(spec):
    skip = ((_bn(spec, "rbr_skip"),),) if spec.keeps else ()
    scale = (_conv_bn(spec, "rbr_scale", 1),) if spec.kernel_size > 1 else ()
    return (*skip, *(_conv_bn(spec, f"rbr_conv.{i}", spec.kernel_size) for i in range(spec.branches)), *scale)


def _acb(spec):
    size = spec.kernel_size
    kernels = {"square": (size, size), "ver": (size, 1), "hor": (1, size)}
    return tuple((_kernel(spec, f"{name}_conv", *of), _bn(spec, f"{name}_bn")) for name, of in kernels.items())


def _dbb(spec):
    channels, (out, per_group, size, _) = spec.in_channels, spec.kernel_shape
    depthwise = spec.groups == channels == out
    width = 2 * channels if depthwise else channels
    point: tuple[Branch, ...] = ()
    average: Branch = (_bn(spec, "dbb_avg.avgbn"),)
    if not depthwise:
        point = (_conv_bn(spec, "dbb_1x1", 1),)
        first = Part("dbb_avg.conv", (out, per_group, 1, 1), inner=True), Part("dbb_avg.bn.bn", (out,))
        average = *first, *average
    sequence = (
        Part(f"dbb_1x1_kxk.{'conv1' if depthwise else 'idconv1'}", (width, per_group, 1, 1), inner=True),
        Part("dbb_1x1_kxk.bn1.bn", (width,)),
        Part("dbb_1x1_kxk.conv2", (out, width // spec.groups, size, size)),
        _bn(spec, "dbb_1x1_kxk.bn2"),
    )
    return _conv_bn(spec, "dbb_origin", size), *point, average, sequence


KINDS = {
    "repvgg": BlockKind("rbr_dense.conv", _repvgg, has_custom_l2=True),
    "qarepvgg": BlockKind("rbr_dense.conv", _qarepvgg, "bn", adds_input=True, has_custom_l2=True),
    "mobileone": BlockKind("rbr_conv.0.conv", _mobileone),
    "acb": BlockKind("square_conv", _acb),
    "dbb": BlockKind("dbb_origin.conv", _dbb),
    "plain": BlockKind("rbr_dense.conv", _plain),
    "repopt_vgg": BlockKind("conv", _repopt_vgg),
    "linear_addition": BlockKind("conv", _linear_addition, "bn", sign="scale_conv"),
}

FAMILIES = {
    "repvgg": Family("RepVGG", "rbr_reparam"),
    "qarepvgg": Family("QARepVGG", "rbr_reparam"),
    "mobileone": Family("MobileOne", "reparam_conv"),
    "repopt_vgg": Family("RepOpt-VGG", "rbr_reparam"),
}


def check_kind(block):
    """Raise UserError, with the nearest name, for what is no name of `KINDS`."""
    if not isinstance(block, str) or block not in KINDS:
        raise UserError(not_one_of("block", block, KINDS))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a block's name matches one of these patterns, as of `fnmatch`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def patterns_of(where, names: Sequence[str], network: str, key="block_where") -> tuple[str, ...] | None:
    """Patterns of blocks' names, as of `fnmatch`.

    Args:
        where: a pattern or several; None for all blocks.
        names: of the network's blocks.
        network: its name, for messages.
        key: what the user gave them as, for messages.

    Raises:
        UserError: one is no pattern, or matches no block.
    """
    if where is None:
        return None
    chosen = patterns(where)
    if chosen is None:
        raise UserError(
            f"{key} (={quoted(where)}) must be a pattern of blocks' names, or a list of them; leave it out for "
            "all blocks"
        )
    for pattern in chosen:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{key} (={quoted(pattern)}) matches no block of {network}; they are {listed(names, 60)}")
    return chosen
