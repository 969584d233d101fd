"""The kinds of blocks that networks are made of: what their modules are called, and how large their kernels are.

What walks over a network's blocks without building it reads a block's form here. Loads no MindSpore.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Branch(NamedTuple):
    """A module of a block's train form.

    Attributes:
        name: its attribute in the block.
        kernel_size: of its convolution, which has no bias; None for a BN alone.
        norm: whether a BN follows the convolution; then the two are called `name`.conv and `name`.bn.
    """

    name: str
    kernel_size: int | None
    norm: bool = True


class BlockSpec(NamedTuple):
    """One block's place and shape.

    Attributes:
        name: its parameters' prefix, such as `stage1.0`.
        in_channels, out_channels, stride, groups, kernel_size: of the convolution that it equals.
        kind: one of `KINDS`.
        branches: how many convolutions of the full kernel a MobileOne block adds up.
        se: None, 'pre' (before the ReLU) or 'post' (after it).
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

    @property
    def keeps(self) -> bool:
        """Whether the block keeps channels and size, so that its input can be one of its branches."""
        return self.in_channels == self.out_channels and self.stride == 1

    @property
    def fused(self) -> str:
        """The prefix of the deploy form's convolution."""
        return f"{self.name}.{KINDS[self.kind].fused}"

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
        """The modules of its train form that have parameters, in their order in the network."""
        return KINDS[self.kind].train_branches(self)


class BlockKind(NamedTuple):
    """A kind of block, and of networks made of it.

    Attributes:
        title: the network's name in words.
        fused: the deploy form's convolution in a block.
        dense: a convolution of the full kernel that every block has in train form.
        train_branches: see `BlockSpec`.
        outer: the BN after the sum of the branches, to which the bare input is added where the block keeps its shape.
    """

    title: str
    fused: str
    dense: str
    train_branches: Callable[[BlockSpec], tuple[Branch, ...]]
    outer: str | None = None


# An SE's attribute in a block by its place.
SE_NAMES = {"pre": "se", "post": "post_se"}


def _repvgg(spec):
    branches = Branch("rbr_dense", spec.kernel_size), Branch("rbr_1x1", 1)
    return (*branches, Branch("rbr_identity", None)) if spec.keeps else branches


def _qarepvgg(spec):
    return Branch("rbr_dense", spec.kernel_size), Branch("rbr_1x1", 1, norm=False), Branch("bn", None)


def _mobileone(spec):
    skip = (Branch("rbr_skip", None),) if spec.keeps else ()
    scale = (Branch("rbr_scale", 1),) if spec.kernel_size > 1 else ()
    return (*skip, *(Branch(f"rbr_conv.{i}", spec.kernel_size) for i in range(spec.branches)), *scale)


KINDS = {
    "repvgg": BlockKind("RepVGG", "rbr_reparam", "rbr_dense.conv", _repvgg),
    "qarepvgg": BlockKind("QARepVGG", "rbr_reparam", "rbr_dense.conv", _qarepvgg, "bn"),
    "mobileone": BlockKind("MobileOne", "reparam_conv", "rbr_conv.0.conv", _mobileone),
}
