"""Which network a set of arrays is, told by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models import variants
from mindrepvgg.models.block_kinds import FAMILIES, KINDS
from mindrepvgg.models.shapes import Misfits, check_fit, find_misfits, parameter_shapes
from mindrepvgg.models.variants import DEPLOY, TRAIN, Variant
from mindrepvgg.text import listed, printable
from mindrepvgg.weights.description import Description
from mindrepvgg.weights.dialects import AUX_HEADS, DIALECTS, DIALECTS_OF, OURS
from mindrepvgg.weights.rename import Translation, translate

_FAMILY = [variants.find(name) for name in variants.list_models() if name not in variants.SHAPE_KEYS]
_HEAD = ("linear.weight", "linear.bias")


@dataclass(frozen=True)
class Recognised:
    """A network told by its arrays.

    Attributes:
        dialect: whose names the arrays had; where several projects name a network alike, the first of `DIALECTS`.
        variant: a network of fixed sizes, or one of `variants.SHAPE_KEYS` with its own.
        form: one of `variants.FORMS`.
        num_classes, in_channels: read off the arrays.
        has_aux: RepVGGplus's auxiliary heads are there.
        arrays: complete, and under our names; see `models.shapes.parameter_shapes`.
        left_out: the file's names of the auxiliary heads of a deploy form, as the authors' own conversion leaves them
            in; inference does not know them.
    """

    dialect: str
    variant: Variant
    form: str
    num_classes: int
    in_channels: int
    has_aux: bool
    arrays: dict[str, np.ndarray]
    left_out: tuple[str, ...] = ()

    @property
    def deploy(self) -> bool:
        """Whether the network is in deploy form."""
        return self.form == DEPLOY


class _Candidate(NamedTuple):
    """A network that arrays may be, and how they differ from it; the rest as in `Recognised`."""

    translation: Translation
    variant: Variant
    form: str
    sizes: tuple[int, int, bool]
    arrays: dict[str, np.ndarray]
    left_out: tuple[str, ...]
    misfits: Misfits


def recognise(arrays: dict[str, np.ndarray], expected: Variant | None = None) -> Recognised:
    """Tell dialect, network, form and sizes of flat arrays, and rename them to our names.

    Args:
        arrays: name -> array.
        expected: the layout to take where several fit alike: a fused QARepVGG and a fused RepVGG are the same, and a
            fused MobileOne does not show how many branches it had. A train form with blocks of another kind than its
            family's is recognised by it alone.

    Raises:
        CheckpointError: they are no RepVGG, half converted, without a head, not floating-point, or not quite a network;
            the message is one line. Of what is not quite a network it names the closest one, and the first differences
            under the names that the file uses.
    """
    if expected and expected.block and (whole := _as_expected(arrays, expected)):
        return whole
    for kind, name in _of_no_family(arrays):
        raise CheckpointError(
            f"has {kind} blocks ({printable(name)}) and does not tell in which network; "
            "mindrepvgg.create_model(name, block=..., block_where=..., weights=FILE) takes it where it fits"
        )
    translations = [translate(arrays, kind, name) for kind, known in DIALECTS_OF.items() for name in known]
    fewest = min(len(one.unknown) for one in translations)
    # The projects' names of fused networks of different kinds may be the same.
    nearest: dict[str, Translation] = {}
    for one in translations:
        if len(one.unknown) == fewest:
            nearest.setdefault(one.kind, one)
    candidates = [_candidate(arrays, one, expected) for one in nearest.values()]
    chosen = min(candidates, key=lambda one: (one.misfits.count, one.variant != expected))
    translation, variant, form, sizes, found, left_out, misfits = chosen
    problems = _in_their_names(misfits, translation)
    if problems.count:
        label = f"{_described(variant)} in {form} form under {translation.dialect.project}'s names"
        head = [_their_name(name, translation) for name in _HEAD]
        if [*problems.missing] == head and problems.count == len(head):
            raise CheckpointError(f"the head ({' and '.join(head)}) is missing: this is the backbone of a {label}")
        raise CheckpointError(
            f"not quite a {FAMILIES[variant.family].title}: the closest is {label}, but {problems.text()}"
        )
    quantised = [f"{translation.theirs[n]} ({a.dtype})" for n, a in found.items() if a.dtype.kind != "f"]
    if quantised:
        raise CheckpointError(
            f"{len(quantised)} tensors are not floating-point: {listed(quantised)}; quantised, perhaps"
        )
    return Recognised(translation.dialect.name, variant, form, *sizes, found, left_out)


def _as_expected(arrays, expected) -> Recognised | None:
    """Arrays of this package's train form with blocks of another kind, None where they do not fit."""
    dense = KINDS[expected.block_specs()[0].kind].dense
    num_classes, in_channels = _sizes(arrays, f".{dense}.weight")
    has_aux = any(name.startswith(AUX_HEADS) for name in arrays)
    if find_misfits(parameter_shapes(expected, TRAIN, num_classes, in_channels, has_aux), arrays).count:
        return None
    return Recognised(OURS.name, expected, TRAIN, num_classes, in_channels, has_aux, arrays)


def _of_no_family(arrays) -> Iterator[tuple[str, str]]:
    """The kind and the name of arrays in blocks of kinds that are no family's own."""
    ends = {f".{KINDS[kind].sign or KINDS[kind].dense}.weight": kind for kind in KINDS if kind not in FAMILIES}
    ends = {end: kind for end, kind in ends.items() if end not in _kernels("repvgg").values()}
    return ((kind, name) for name in arrays for end, kind in ends.items() if name.endswith(end))


def _candidate(arrays, translation, expected) -> _Candidate:
    """The closest network of a kind to arrays in a dialect's names."""
    kernels = _kernels(translation.kind)
    form = _form(arrays, translation)
    found, left_out = translation.arrays, tuple[str, ...]()
    if form == DEPLOY and f"stage3_first.0{kernels[DEPLOY]}" in found:
        left_out = tuple(translation.theirs[name] for name in found if name.startswith(AUX_HEADS))
        found = {name: array for name, array in found.items() if not name.startswith(AUX_HEADS)}
    num_classes, in_channels = _sizes(found, kernels[form])
    has_aux = any(name.startswith(AUX_HEADS) for name in found)

    def against(variant) -> Misfits:
        return find_misfits(parameter_shapes(variant, form, num_classes, in_channels, has_aux), found)

    derive = _derive_mobileone if translation.kind == "mobileone" else _derive
    known = [
        variant
        for variant in (expected, *_FAMILY, derive(found, translation.kind, kernels[form], in_channels))
        if variant
    ]
    variant = min((one for one in known if one.family == translation.kind), key=lambda one: against(one).count)
    sizes = num_classes, in_channels, has_aux
    return _Candidate(translation, variant, form, sizes, found, left_out, against(variant))


def recognise_described(arrays: dict[str, np.ndarray], description: Description) -> Recognised:
    """Take arrays of this package, in any form, for what their description says.

    Raises:
        CheckpointError: they are something else; every difference is named.
    """
    spec, num_classes, in_channels, form = description.network
    variant = spec.family_layout("telling a network by its arrays")
    has_aux = any(name.startswith(AUX_HEADS) for name in arrays)
    check_fit(parameter_shapes(variant, form, num_classes, in_channels, has_aux), arrays, "the file")
    return Recognised(OURS.name, variant, form, num_classes, in_channels, has_aux, arrays)


def _kernels(kind) -> dict[str, str]:
    """Form -> how the name of every block's largest kernel ends."""
    return {TRAIN: f".{KINDS[kind].dense}.weight", DEPLOY: f".{FAMILIES[kind].fused}.weight"}


def _form(arrays, translation) -> str:
    """'train' or 'deploy'; refuses what is no network of ours at all, or half converted."""
    ends = _kernels(translation.kind)
    kernels = {form: [n for n in translation.arrays if n.endswith(end)] for form, end in ends.items()}
    if not any(kernels.values()) or 2 * len(translation.unknown) > len(arrays):
        names = [f"{printable(name)} {array.shape}" for name, array in arrays.items()]
        raise CheckpointError(
            f"not a RepVGG: of {len(arrays)} tensors, {len(translation.unknown)} have no name that "
            f"{', '.join(DIALECTS)} use; they begin {listed(names)}"
        )
    if all(kernels.values()):
        raise CheckpointError(
            f"half converted: {len(kernels[DEPLOY])} blocks are fused ({translation.theirs[kernels[DEPLOY][0]]}) and "
            f"{len(kernels[TRAIN])} are not ({translation.theirs[kernels[TRAIN][0]]}); convert the whole network"
        )
    return DEPLOY if kernels[DEPLOY] else TRAIN


def _sizes(arrays, kernel) -> tuple[int, int]:
    """The number of classes and of input channels; ImageNet's where their array is missing or misshapen."""
    head, stem = arrays.get("linear.weight"), arrays.get(f"stage0{kernel}")
    return (
        head.shape[0] if head is not None and head.ndim == 2 and head.size else 1000,
        stem.shape[1] if stem is not None and stem.ndim == 4 and stem.size else 3,
    )


def _block_kernels(arrays, end) -> dict[str, dict[str, np.ndarray]]:
    """Stage -> block -> the block's largest kernel, whose name ends in `end`."""
    kernels: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.endswith(end) and array.ndim == 4:
            block = name.removesuffix(end)
            kernels.setdefault(block.partition(".")[0], {})[block] = array
    return kernels


def _derive(arrays, kind, end, in_channels) -> Variant | None:
    """The variant that the kernels' shapes describe, a member of the family if it is one; None when they do not."""
    kernels = _block_kernels(arrays, end)
    aux_heads = "stage3_first" in kernels
    third = ("stage3_first", "stage3_second") if aux_heads else ("stage3",)
    stages = ("stage0",), ("stage1",), ("stage2",), third, ("stage4",)
    blocks = [{block: kernel for name in names for block, kernel in kernels.get(name, {}).items()} for names in stages]
    if not all(blocks):
        return None
    widths = [next(iter(stage.values())).shape[0] for stage in blocks]
    try:
        shape = {**({"aux_heads": True} if aux_heads else {}), **_squeeze(arrays), **_strides(arrays)}
        plain = variants.custom([len(stage) for stage in blocks[1:]], widths, kind, **shape)
        # Block 2 is the first one that a grouped network groups.
        spec = plain.block_specs(in_channels)[2]
        per_group = kernels[spec.name.partition(".")[0]][spec.name].shape[1]
        derived = replace(plain, group_size=spec.in_channels // per_group)
    except (UserError, KeyError, ZeroDivisionError):
        return None
    return next((known for known in _FAMILY if replace(known, name=derived.name) == derived), derived)


def _derive_mobileone(arrays, kind, end, _) -> Variant | None:
    """`_derive` for a MobileOne; a fused one does not tell its branches, which are then 1."""
    kernels = _block_kernels(arrays, end)
    stages = [kernels.get(f"stage{s}", {}) for s in range(1, 5)]
    try:
        widths = [kernels["stage0"]["stage0"].shape[0]]
        widths += [stage[f"stage{s}.{len(stage) - 1}"].shape[0] for s, stage in enumerate(stages, 1)]
        branches = sum(re.fullmatch(r"stage1\.0\.rbr_conv\.\d+\.conv\.weight", name) is not None for name in arrays)
        excited = [sum(f"{block}.se.down.weight" in arrays for block in stage) // 2 for stage in stages]
        shape = {"branches": max(branches, 1), "se_blocks": excited, "se_ratio": _squeeze(arrays).get("se_ratio", 16)}
        return variants.custom([len(stage) // 2 for stage in stages], widths, kind, **shape)
    except (UserError, KeyError):
        return None


def _squeeze(arrays) -> dict:
    """Where SE stands and its ratio: the one of the family if it fits, since squeezed = width // ratio fits several."""
    for place, module, usual in (("pre", "se", 16), ("post", "post_se", 4)):
        shapes = [a.shape for name, a in arrays.items() if name.endswith(f".{module}.down.weight") and a.ndim == 4]
        if shapes:
            low = max(width // (squeezed + 1) + 1 for squeezed, width, _, _ in shapes)
            high = min(width // squeezed for squeezed, width, _, _ in shapes)
            return {"se": place, "se_ratio": usual if low <= usual <= high else high}
    return {}


def _strides(arrays) -> dict:
    """Those for small pictures where stage 1 keeps the size; the stem's strides, and a fused network's, do not show."""
    return {"strides": variants.SMALL_PICTURE_STRIDES} if "stage1.0.rbr_identity.gamma" in arrays else {}


def _described(variant) -> str:
    if variant.name not in variants.SHAPE_KEYS:
        return variant.name
    return f"{variant.name} of num_blocks {list(variant.num_blocks)}, widths {list(variant.widths)}"


def _their_name(name, translation: Translation) -> str:
    """What the file calls, or would call, one of our parameters."""
    if name in translation.theirs:
        return translation.theirs[name]
    try:
        return translation.dialect.join(DIALECTS_OF[translation.kind][OURS.name].parts(name))
    except KeyError:
        return name


def _in_their_names(found: Misfits, translation: Translation) -> Misfits:
    parts = (found.missing, found.unexpected, found.reshaped)
    missing, unexpected, reshaped = ({_their_name(n, translation): s for n, s in part.items()} for part in parts)
    unexpected |= {name: array.shape for name, array in translation.unknown.items()}
    return Misfits(missing, unexpected, reshaped)
