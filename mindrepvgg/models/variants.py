"""All networks as one frozen table, and the layout of a network's blocks.

Sources: RepVGG, arXiv:2101.03697, tables 2 and 3; D2se and RepVGGplus from the authors' later releases; QARepVGG,
arXiv:2212.01593, whose networks are RepVGG's with another block; MobileOne, arXiv:2206.04040, table 2; RepOpt-VGG,
arXiv:2205.15242, table 1.
Loads no MindSpore: names and sizes answer at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.models.block_kinds import MOBILEONE_BRANCHES, BlockSpec, check_kind, matches, patterns_of
from mindrepvgg.models.feature_layout import FeatureInfo, FeatureLayout, feature_info, level_of
from mindrepvgg.models.network_spec import NetworkSpec
from mindrepvgg.models.variant_check import check_variant
from mindrepvgg.text import listed, plain, printable, quoted

# What a network can be: with its branches, fused, fused with BN inserted, and that with fake quantisation.
FORMS = TRAIN, DEPLOY, BN, QAT = ("train", "deploy", "bn", "qat")
PLAIN_FORMS = (TRAIN, DEPLOY)

STRIDES = (2, 2, 2, 2, 2)  # of every published network
SMALL_PICTURE_STRIDES = (1, 1, 2, 2, 2)  # of those for 32x32, see github.com/chenyaofo/pytorch-cifar-models

_BLOCKS_A = (2, 4, 14, 1)
_BLOCKS_B = (4, 6, 16, 1)
_BLOCKS_D = (8, 14, 24, 1)


class Stage(NamedTuple):
    """A run of blocks under one name; `aux` says whether training hangs an auxiliary head on its output."""

    name: str
    num_blocks: int
    width: int
    stride: int
    aux: bool = False

    @property
    def level(self) -> int:
        """See `feature_layout`."""
        return level_of(self.name)


@dataclass(frozen=True)
class Variant(NetworkSpec):
    """A network of the family.

    Attributes:
        name: as `create_model` knows it.
        num_blocks: blocks in stages 1 to 4; stage 0 is always one block. A MobileOne counts pairs: a depthwise 3x3
            block, which has the stride, and a 1x1 block.
        widths: output channels of stages 0 to 4.
        group_size: groups of every even block.
        se: None, 'pre' (between the branch sum and the ReLU) or 'post' (after the ReLU).
        se_ratio: SE squeezes to channels // se_ratio.
        aux_heads: stage 3 is split in two halves, and training adds heads after stages 1, 2 and 3's first half.
        family: its layout and the kind of its blocks, one of `block_kinds.FAMILIES`.
        branches: how many convolutions of the full kernel a MobileOne's block adds up; the stem has one.
        se_blocks: how many of the last in each of a MobileOne's stages 1 to 4, counted as `num_blocks`, have an SE.
        strides: of the first block of stages 0 to 4, each 1 or 2. Networks for small pictures begin with 1.
        block: another kind for some blocks, one of `block_kinds.KINDS`; None: all are the family's own.
        block_where: which: patterns of the blocks' names, as of `fnmatch`; None: all.
        features: of a network that gives maps and has no classes, which these are; it ends with the last of them.
    """

    name: str
    num_blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int, int]
    group_size: int = 1
    se: str | None = None
    se_ratio: int = 16
    aux_heads: bool = False
    family: str = "repvgg"
    branches: int = 1
    se_blocks: tuple[int, int, int, int] = (0, 0, 0, 0)
    strides: tuple[int, int, int, int, int] = STRIDES
    block: str | None = None
    block_where: tuple[str, ...] | None = None
    features: FeatureLayout | None = None

    def __post_init__(self):
        check_variant(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order. Stage 0 is one block whose parameters carry no index: `stage0.rbr_dense...`."""
        each = 2 if self.family == "mobileone" else 1
        n1, n2, n3, n4 = (each * number for number in self.num_blocks)
        _, w1, w2, w3, w4 = self.widths
        _, s1, s2, s3, s4 = self.strides
        third = [Stage("stage3", n3, w3, s3)]
        if self.aux_heads:
            third = [Stage("stage3_first", n3 // 2, w3, s3, aux=True), Stage("stage3_second", n3 - n3 // 2, w3, 1)]
        stages = (
            Stage("stage1", n1, w1, s1, aux=self.aux_heads),
            Stage("stage2", n2, w2, s2, aux=self.aux_heads),
            *third,
            Stage("stage4", n4, w4, s4),
        )
        if self.features is None:
            return stages
        return tuple(stage._replace(aux=False) for stage in stages if stage.level <= self.features.last)

    @property
    def feature_info(self) -> FeatureInfo:
        """The maps of all levels; with `features`, those that are given."""
        names = {0: "stage0"} | {stage.level: stage.name for stage in self.stages}
        reductions, reduction = {}, 1
        for spec in self.block_specs():
            reduction *= spec.stride
            reductions[level_of(spec.name)] = reduction
        given = self.features.out_indices if self.features else names
        return FeatureInfo(feature_info(names[level], self.widths[level], reductions[level]) for level in given)

    def block_specs(self, in_channels: int = 3) -> tuple[BlockSpec, ...]:
        """Every block from input to output, the stem (`stage0`) first.

        Blocks are counted through from the stem, which is number 0. Those with an even number above 0 are grouped.
        """
        specs = self._block_specs(in_channels)
        return self.features.placed(specs) if self.features else specs

    def _block_specs(self, in_channels) -> tuple[BlockSpec, ...]:
        own = self.family
        specs = [BlockSpec("stage0", in_channels, self.widths[0], self.strides[0], 1, 3, own, se=self.se, family=own)]
        if own == "mobileone":
            return (*specs, *self._pairs())
        for stage in self.stages:
            for i in range(stage.num_blocks):
                specs.append(
                    BlockSpec(
                        name=f"{stage.name}.{i}",
                        in_channels=specs[-1].out_channels,
                        out_channels=stage.width,
                        stride=stage.stride if i == 0 else 1,
                        groups=self.group_size if len(specs) % 2 == 0 else 1,
                        kind=own,
                        se=self.se,
                        family=own,
                    )
                )
        if self.block is None:
            return tuple(specs)
        kind, branches = self.block, MOBILEONE_BRANCHES if self.block == "mobileone" else 1
        return tuple(
            spec._replace(kind=kind, branches=branches) if self._chooses(spec.name) else spec for spec in specs
        )

    def _chooses(self, name) -> bool:
        """Whether the block of this name is of the kind `block`."""
        return self.block_where is None or matches(name, self.block_where)

    def _pairs(self) -> Iterator[BlockSpec]:
        """The blocks of a MobileOne after its stem."""
        width = self.widths[0]
        for stage, with_se in zip(self.stages, self.se_blocks, strict=False):
            for i in range(0, stage.num_blocks, 2):
                stride, se = stage.stride if i == 0 else 1, "pre" if i >= stage.num_blocks - 2 * with_se else None
                own = self.family, self.branches, se, self.family
                yield BlockSpec(f"{stage.name}.{i}", width, width, stride, width, 3, *own)
                yield BlockSpec(f"{stage.name}.{i + 1}", width, stage.width, 1, 1, 1, *own)
                width = stage.width

    @property
    def size_args(self) -> dict:
        """See `NetworkSpec.size_args`; empty for those of fixed sizes."""
        return self._sizes if self.name in SHAPE_KEYS else {}

    def with_block(self, block: str | None, where=None) -> Variant:
        """See `NetworkSpec.with_block`."""
        if block is None:
            if where is not None:
                raise UserError(f"block_where (={quoted(where)}) needs block, the kind of these blocks")
            return self
        check_kind(block)
        if self.family == "mobileone":
            raise UserError(
                f"{self.name} takes no block (={quoted(block)}): its layout, pairs of a depthwise 3x3 and a 1x1, is "
                "MobileOne's own; networks of RepVGG, QARepVGG and RepOpt-VGG do"
            )
        patterns = patterns_of(where, [spec.name for spec in self.block_specs()], self.name)
        return self if block == self.family else replace(self, block=block, block_where=patterns)

    def family_layout(self, purpose: str, remedy: str = "") -> Variant:
        """See `NetworkSpec.family_layout`; the network itself."""
        return self

    def to_dict(self) -> dict:
        """The arguments of `find`, after the family's name, that rebuild this network's shape."""
        return {**self._sizes, **self.block_args}

    @property
    def _sizes(self) -> dict:
        # Versions up to 0.1 have no strides, and read what does not tell them.
        keys = [key for key in SHAPE_KEYS[self.family] if key != "strides" or self.strides != STRIDES]
        return {key: plain(getattr(self, key)) for key in keys}


def _scaled(name: str, num_blocks, a: float, b: float, **options) -> Variant:
    """A variant from the paper's multipliers: widths min(64, 64a), 64a, 128a, 256a, 512b."""
    widths = (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b))
    return Variant(name, num_blocks, widths, **options)


def _mobileone(name: str, factors, **options) -> Variant:
    """A MobileOne from the paper's width factors of stages 1 to 4, over 64, 128, 256 and 512."""
    w1, w2, w3, w4 = (int(base * factor) for base, factor in zip((64, 128, 256, 512), factors, strict=True))
    return Variant(name, (2, 8, 10, 1), (min(64, w1), w1, w2, w3, w4), family="mobileone", **options)


_REPVGG = (
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
)

# The networks of RepVGG's that QARepVGG's authors published with their block.
_QAREPVGG = ("a0", "a1", "a2", "b0", "b1", "b1g4", "b2", "b2g4")

_VARIANTS = {
    variant.name: variant
    for variant in (
        *_REPVGG,
        *(
            replace(variant, name=f"qa{variant.name}", family="qarepvgg")
            for variant in _REPVGG
            if variant.name.removeprefix("repvgg_") in _QAREPVGG
        ),
        # In training too of one convolution a block.
        _scaled("repopt_vgg_b1", _BLOCKS_B, 2, 4, family="repopt_vgg"),
        _scaled("repopt_vgg_b2", _BLOCKS_B, 2.5, 5, family="repopt_vgg"),
        _scaled("repopt_vgg_l1", _BLOCKS_D, 2, 4, family="repopt_vgg"),
        _scaled("repopt_vgg_l2", _BLOCKS_D, 2.5, 5, family="repopt_vgg"),
        _mobileone("mobileone_s0", (0.75, 1, 1, 2), branches=4),
        _mobileone("mobileone_s1", (1.5, 1.5, 2, 2.5)),
        _mobileone("mobileone_s2", (1.5, 2, 2.5, 4)),
        _mobileone("mobileone_s3", (2, 2.5, 3, 4)),
        _mobileone("mobileone_s4", (3, 3.5, 3.5, 4), se_blocks=(0, 0, 5, 1)),
        # Not of the paper: small enough to train on two CPU cores in a minute or two.
        Variant("repvgg_nano", (2, 2, 3, 1), (16, 16, 32, 64, 128)),
    )
}


# What a network of one's own size is described by, under the name of its family; see `custom`.
SHAPE_KEYS = {
    "repvgg": ("num_blocks", "widths", "group_size", "se", "se_ratio", "aux_heads", "strides"),
    "qarepvgg": ("num_blocks", "widths", "group_size", "se", "se_ratio", "strides"),
    "mobileone": ("num_blocks", "widths", "branches", "se_blocks", "se_ratio"),
    "repopt_vgg": ("num_blocks", "widths", "se", "se_ratio", "strides"),
}
_LISTS = ("num_blocks", "widths", "se_blocks", "strides")


def list_models() -> list[str]:
    """The names `create_model` knows, the papers' order; those of one's own sizes (`SHAPE_KEYS`) come last."""
    return [*_VARIANTS, *SHAPE_KEYS]


def published_models() -> list[str]:
    """The networks that papers publish: those of fixed sizes, without this package's small one."""
    return [name for name in _VARIANTS if name != "repvgg_nano"]


def normalise_name(name: str) -> str:
    """Spell a network's name as this package does: `RepVGG-B1g4` becomes `repvgg_b1g4`."""
    return str(name).strip().lower().replace("-", "_")


def find(name: str, block: str | None = None, block_where=None, **shape) -> Variant:
    """The variant called `name`, in either spelling.

    Args:
        name: 'repvgg_a0' or 'RepVGG-A0'.
        block: the kind of block in the place of the family's own, one of `block_kinds.KINDS`; None: the family's own.
        block_where: a pattern of blocks' names, or several, as of `fnmatch` ('stage1.*'): only these; None: all.
        **shape: for the names of `SHAPE_KEYS` only, the keyword arguments of `custom`.

    Raises:
        UserError: there is none, and the message has the nearest names; or a shape is given to a fixed network; or the
            blocks cannot be of this kind.
    """
    return _find(name, shape).with_block(block, block_where)


def _find(name, shape) -> Variant:
    key = normalise_name(name)
    if key in SHAPE_KEYS:
        return custom(family=key, **shape)
    if key not in _VARIANTS:
        near = difflib.get_close_matches(key[:100], list_models(), n=3, cutoff=0.4)  # comparing takes quadratic time
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        known = ", ".join(list_models())
        raise UserError(f"model (={quoted(name)}) is not a network of the family; {hint}known: {known}")
    if shape:
        own = _VARIANTS[key].family
        raise UserError(f"{key} has a fixed shape and takes no {_names(shape)}; the name {own!r} does")
    return _VARIANTS[key]


def _names(keys) -> str:
    """Keyword arguments for a message."""
    return listed([printable(key) for key in sorted(keys)])


def custom(num_blocks=None, widths=None, family="repvgg", **options) -> Variant:
    """A network of one's own size, which is called as its family.

    Args:
        num_blocks: blocks in stages 1 to 4.
        widths: channels of stages 0 to 4.
        family: one of `SHAPE_KEYS`.
        **options: the others of `SHAPE_KEYS[family]`, as in `Variant`.

    Raises:
        UserError: they are missing, unknown or do not fit each other.
    """
    keys = SHAPE_KEYS[family]
    unknown = set(options) - set(keys)
    if unknown:
        raise UserError(f"{family} does not know {_names(unknown)}; it takes {', '.join(keys)}")
    if num_blocks is None or widths is None:
        raise UserError(f"{family} needs num_blocks (four numbers, stages 1-4) and widths (five numbers, stages 0-4)")
    values = {"num_blocks": num_blocks, "widths": widths, **options}
    for key in set(_LISTS).intersection(values):
        if not isinstance(values[key], (list, tuple)):
            raise UserError(f"{key} (={quoted(values[key])}) must be a list of whole numbers")
        values[key] = tuple(values[key])
    return Variant(family, family=family, **values)
