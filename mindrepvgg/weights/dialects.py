"""How each project names our networks' parameters, and what its networks cannot be: facts, as data.

Read off each project's published code and, where the tests can, checked against its networks. Official, RepVGGplus:
repvgg.py, repvggplus.py and se_block.py of the authors' repository; timm: byobnet.py; mmpretrain: backbones/repvgg.py;
MindCV: models/repvgg.py and layers/squeeze_excite.py; the MindSpore model zoo: its RepVGG's SEBlock; basecls:
models/repvgg.py, layers/heads.py, layers/modules.py, and MegEngine's Conv2d, ConvBn2d and BatchNorm2d for the shapes.
QARepVGG: repvgg.py of its authors' repository. MobileOne: mobileone.py of its authors' repository; timm: byobnet.py;
mmpretrain: backbones/mobileone.py and utils/se_layer.py. RepOpt-VGG: repoptvgg_model.py of its authors' repository.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.models.variants import Variant
from mindrepvgg.reparam.leaves import BN_LEAVES
from mindrepvgg.text import nearest, quoted

BATCHES = "num_batches_tracked"  # what PyTorch's BN counts beside its statistics; it plays no part in inference

_STAGES = tuple(f"stage{s}" for s in range(5))
_PLUS_STAGES = ("stage0", "stage1", "stage2", "stage3_first", "stage3_second", "stage4")
AUX_HEADS = ("stage1_aux", "stage2_aux", "stage3_first_aux")

_MINDSPORE_BN = {leaf: leaf for leaf in BN_LEAVES}
_MEGENGINE_BN = dict(zip(BN_LEAVES, ("weight", "bias", "running_mean", "running_var"), strict=True))
_TORCH_BN = {**_MEGENGINE_BN, BATCHES: BATCHES}

# In a module's name, # is the number of one of several beside each other.
_BN_MODULES = {
    *("rbr_dense.bn", "rbr_1x1.bn", "rbr_identity", "downsample.bn", "bn"),
    *("rbr_skip", "rbr_scale.bn", "rbr_conv.#.bn"),
}
_BLOCK = ("rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity", "rbr_reparam")
_QA_BLOCK = ("rbr_dense.conv", "rbr_dense.bn", "rbr_1x1", "bn", "rbr_reparam")
_ONE_BLOCK = ("rbr_skip", "rbr_conv.#.conv", "rbr_conv.#.bn", "rbr_scale.conv", "rbr_scale.bn", "reparam_conv")
_OPT_BLOCK = ("conv", "bn", "rbr_reparam")
_PRE_SE, _POST_SE = ("se.down", "se.up"), ("post_se.down", "post_se.up")
_AUX = ("downsample.conv", "downsample.bn", "linear")


_NUMBER = "(?:0|[1-9][0-9]*)"
_MIDDLE = re.compile(rf"\.({_NUMBER})\.")


class Parts(NamedTuple):
    """A parameter's name taken apart, in our terms: `stage1` `0` `rbr_dense.bn` `gamma`; number, module may be None."""

    place: str
    number: str | None
    module: str | None
    leaf: str


@dataclass(frozen=True, eq=False)
class Dialect:
    """A project's names for the parts of our networks, and what its networks cannot be.

    Attributes:
        name: as `--dialect` takes it.
        project: for messages.
        places: our name of a stage or head -> theirs.
        modules: our name of a module in a place -> theirs.
        bn: our name of a BN's leaf -> theirs.
        se_ratio, in_channels, stem: fixed where they are not None; `stem` is the widest stem.
        no_deploy: why a deploy form is not written; empty where it is.
        no_deploy_se: the same of a deploy form with SE.
        megengine_shapes: kernels of grouped convolutions are (groups, out / groups, in / groups, kh, kw), and biases of
            convolutions and all of BN are (1, C, 1, 1).
    """

    name: str
    project: str
    places: dict[str, str]
    modules: dict[str, str]
    bn: dict[str, str] = field(default_factory=lambda: _TORCH_BN)
    se_ratio: int | None = None
    in_channels: int | None = None
    stem: int | None = None
    no_deploy: str = ""
    no_deploy_se: str = ""
    megengine_shapes: bool = False

    def split(self, name: str) -> Parts | None:
        """The parts of one of this dialect's names, in our terms; None for a name that is none."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        head, place, index, module, leaf = match.groups()
        if head:
            return Parts("linear", None, None, leaf) if leaf in ("weight", "bias") else None
        template, number = _numbered(module)
        template = self._our_modules[template]
        module = template.replace("#", number)
        if template in _BN_MODULES:
            leaf = self._our_bn.get(leaf)
        elif leaf not in ("weight", "bias"):
            return None
        return leaf and Parts(self._our_places[place], index, module, leaf)

    def parts(self, name: str) -> Parts:
        """As `split`, for a name that must be one. Raises KeyError."""
        found = self.split(name)
        if found is None:
            raise KeyError(name)
        return found

    def join(self, parts: Parts) -> str:
        """Put a name together in this dialect. Raises KeyError when it has no such place, module or leaf."""
        template, number = _numbered(parts.module or "")
        leaf = self.bn[parts.leaf] if template in _BN_MODULES else parts.leaf
        module = parts.module and self.modules[template].replace("#", number)
        return ".".join(part for part in (self.places[parts.place], parts.number, module, leaf) if part is not None)

    def refusal(self, variant: Variant, deploy: bool, in_channels: int = 3) -> str | None:
        """Why the project's code has no such network, or None when it has."""
        if any(stage.name not in self.places for stage in variant.stages):
            return "it has no RepVGGplus" if variant.aux_heads else "it has RepVGGplus only"
        if variant.block and not deploy and self.name != OURS.name:
            return f"it has no network with {variant.block} blocks"
        squeezing = {spec.se for spec in variant.block_specs()} - {None}
        for place in squeezing:
            if not set(_PRE_SE if place == "pre" else _POST_SE) <= set(self.modules):
                return f"it has no SE {'before' if place == 'pre' else 'after'} the ReLU"
        if squeezing and self.se_ratio not in (None, variant.se_ratio):
            return f"its SE squeezes to channels // {self.se_ratio}, not // {variant.se_ratio}"
        if self.in_channels not in (None, in_channels):
            return f"it takes {self.in_channels} input channels, not {in_channels}"
        stem, first = variant.widths[:2]
        if self.stem is not None and stem != min(self.stem, first):
            return f"its stage 0 before a stage 1 of width {first} is {min(self.stem, first)} wide, not {stem}"
        if deploy and self.no_deploy:
            return self.no_deploy
        if deploy and squeezing and self.no_deploy_se:
            return self.no_deploy_se
        return None

    @cached_property
    def _pattern(self):
        def one_of(names):
            return "|".join(re.escape(name).replace(r"\#", _NUMBER) for name in names)

        places = one_of(place for ours, place in self.places.items() if ours != "linear")
        leaves = one_of({*self.bn.values(), "weight", "bias"})
        return re.compile(
            rf"(?:({re.escape(self.places['linear'])})|"
            rf"({places})(?:\.({_NUMBER}))?\.({one_of(self.modules.values())}))\.({leaves})"
        )

    @cached_property
    def _our_places(self):
        return {theirs: ours for ours, theirs in self.places.items()}

    @cached_property
    def _our_modules(self):
        return {theirs: ours for ours, theirs in self.modules.items()}

    @cached_property
    def _our_bn(self):
        return {theirs: ours for ours, theirs in self.bn.items()}


def _numbered(module: str) -> tuple[str, str]:
    """A module's name with # for the number in its middle, and the number; '' where there is none."""
    found = _MIDDLE.search(module)
    return (f"{module[: found.start(1)]}#{module[found.end(1) :]}", found[1]) if found else (module, "")


def _same(*names) -> dict[str, str]:
    return {name: name for name in names}


OURS = Dialect(
    "mindrepvgg",
    "mindrepvgg",
    places=_same(*_STAGES, *_PLUS_STAGES, *AUX_HEADS, "linear"),
    modules=_same(*_BLOCK, *_PRE_SE, *_POST_SE, *_AUX),
    bn=_MINDSPORE_BN,
)

_MINDCV = Dialect(
    "mindcv",
    "MindCV",
    places=_same(*_STAGES, "linear"),
    modules={
        "rbr_dense.conv": "rbr_dense.0",
        "rbr_dense.bn": "rbr_dense.1",
        "rbr_1x1.conv": "rbr_1x1.0",
        "rbr_1x1.bn": "rbr_1x1.1",
        "rbr_identity": "rbr_identity",
        "rbr_reparam": "rbr_reparam",
        "se.down": "se.conv_reduce",
        "se.up": "se.conv_expand",
    },
    bn=_MINDSPORE_BN,
    se_ratio=16,
    stem=64,
    no_deploy="its deploy form cannot be built (pad_mode 'zeros')",
)

# The order decides between dialects that name a network alike: without SE, a deploy form of the official repository,
# MindCV, the model zoo and ours; without SE, a train form of MindCV and the model zoo.
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            "official",
            "the official repository",
            places=_same(*_STAGES, "linear"),
            modules=_same(*_BLOCK, *_PRE_SE),
            se_ratio=16,
            in_channels=3,
            stem=64,
        ),
        Dialect(
            "repvggplus",
            "the official RepVGGplus",
            places={
                "stage0": "stage0",
                **{stage: f"{stage}.blocks" for stage in _PLUS_STAGES[1:]},
                **_same(*AUX_HEADS, "linear"),
            },
            modules={
                **_same(*_BLOCK, *_POST_SE),
                "downsample.conv": "0.conv",
                "downsample.bn": "0.bn",
                "linear": "3",
            },
            se_ratio=4,
            in_channels=3,
            stem=64,
        ),
        Dialect(
            "timm",
            "timm",
            places={"stage0": "stem", **{f"stage{s}": f"stages.{s - 1}" for s in range(1, 5)}, "linear": "head.fc"},
            modules={
                "rbr_dense.conv": "conv_kxk.conv",
                "rbr_dense.bn": "conv_kxk.bn",
                "rbr_1x1.conv": "conv_1x1.conv",
                "rbr_1x1.bn": "conv_1x1.bn",
                "rbr_identity": "identity",
                "rbr_reparam": "reparam_conv",
                "se.down": "attn.fc1",
                "se.up": "attn.fc2",
            },
        ),
        Dialect(
            "mmpretrain",
            "mmpretrain",
            places={
                "stage0": "backbone.stem",
                **{f"stage{s}": f"backbone.stage_{s}" for s in range(1, 5)},
                "linear": "head.fc",
            },
            modules={
                "rbr_dense.conv": "branch_3x3.conv",
                "rbr_dense.bn": "branch_3x3.norm",
                "rbr_1x1.conv": "branch_1x1.conv",
                "rbr_1x1.bn": "branch_1x1.norm",
                "rbr_identity": "branch_norm",
                "rbr_reparam": "branch_reparam",
                "se.down": "se_layer.conv1.conv",
                "se.up": "se_layer.conv2.conv",
            },
            no_deploy_se="its deploy form leaves SE out and computes something else",
        ),
        _MINDCV,
        Dialect(
            "modelzoo",
            "the MindSpore model zoo",
            places=_MINDCV.places,
            modules={**_MINDCV.modules, **_same(*_PRE_SE)},
            bn=_MINDSPORE_BN,
            se_ratio=16,
            in_channels=3,
            stem=64,
        ),
        Dialect(
            "basecls",
            "MegEngine basecls",
            places={**_same(*_STAGES), "linear": "head.fc"},
            modules={**_same(*_BLOCK), "se.down": "se.f_ex.0", "se.up": "se.f_ex.2"},
            bn=_MEGENGINE_BN,
            in_channels=3,
            stem=64,
            megengine_shapes=True,
        ),
        OURS,
    )
}


def _ours(*modules) -> Dialect:
    """The names of a family beside RepVGG here: the stages and the linear layer, with these modules in blocks."""
    return Dialect(OURS.name, OURS.project, places=_same(*_STAGES, "linear"), modules=_same(*modules), bn=_MINDSPORE_BN)


_QAREPVGG = (
    Dialect(
        "official",
        "the official repository of QARepVGG",
        places=_same(*_STAGES, "linear"),
        modules=_same(*_QA_BLOCK),  # its SE stands before the outer BN in train form
        in_channels=3,
        stem=64,
    ),
    _ours(*_QA_BLOCK, *_PRE_SE, *_POST_SE),
)

_MOBILEONE = (
    Dialect(
        "official",
        "the official repository of MobileOne",
        places=_same(*_STAGES, "linear"),
        modules={**_same(*_ONE_BLOCK), "se.down": "se.reduce", "se.up": "se.expand"},
        se_ratio=16,
        in_channels=3,
        stem=64,
    ),
    Dialect(
        "timm",
        "timm",
        places=DIALECTS["timm"].places,
        modules={
            "rbr_skip": "identity",
            "rbr_conv.#.conv": "conv_kxk.#.conv",
            "rbr_conv.#.bn": "conv_kxk.#.bn",
            "rbr_scale.conv": "conv_scale.conv",
            "rbr_scale.bn": "conv_scale.bn",
            "reparam_conv": "reparam_conv",
            "se.down": "attn.fc1",
            "se.up": "attn.fc2",
        },
    ),
    Dialect(
        "mmpretrain",
        "mmpretrain",
        places={**{stage: f"backbone.{stage}" for stage in _STAGES}, "linear": "head.fc"},
        modules={
            "rbr_skip": "branch_norm",
            "rbr_conv.#.conv": "branch_conv_list.#.conv",
            "rbr_conv.#.bn": "branch_conv_list.#.norm",
            "rbr_scale.conv": "branch_scale.conv",
            "rbr_scale.bn": "branch_scale.norm",
            "reparam_conv": "branch_reparam",
            "se.down": "se.conv1.conv",
            "se.up": "se.conv2.conv",
        },
    ),
    _ours(*_ONE_BLOCK, *_PRE_SE),
)

_REPOPT = (
    Dialect(
        "official",
        "the official repository of RepOptimizer",
        places=_same(*_STAGES, "linear"),
        modules=_same("conv", "bn", *_POST_SE),
        se_ratio=4,
        in_channels=3,
        stem=64,
        no_deploy="it has no deploy form",
    ),
    _ours(*_OPT_BLOCK, *_PRE_SE, *_POST_SE),
)

# A network's family -> the dialects that have such networks, by name.
DIALECTS_OF = {
    "repvgg": DIALECTS,
    "qarepvgg": {dialect.name: dialect for dialect in _QAREPVGG},
    "mobileone": {dialect.name: dialect for dialect in _MOBILEONE},
    "repopt_vgg": {dialect.name: dialect for dialect in _REPOPT},
}


def find_dialect(name: str) -> Dialect:
    """The dialect of RepVGG called `name`; every project has one. Raises UserError, which lists them, for none."""
    if name not in DIALECTS:
        near = nearest(str(name), DIALECTS)
        hint = f"did you mean {near}? " if near else ""
        raise UserError(f"dialect (={quoted(name)}) is unknown; {hint}known: {', '.join(DIALECTS)}")
    return DIALECTS[name]
