"""Which RepVGG a set of arrays is, told by names and shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import Misfits, check_fit, find_misfits, parameter_shapes
from mindrepvgg.models.variants import DEPLOY, TRAIN, Variant
from mindrepvgg.text import listed, printable
from mindrepvgg.weights.description import Description
from mindrepvgg.weights.dialects import AUX_HEADS, DIALECTS, OURS
from mindrepvgg.weights.rename import Translation, translate

_FAMILY = [variants.find(name) for name in variants.list_models() if name != "repvgg"]
_KERNELS = {TRAIN: ".rbr_dense.conv.weight", DEPLOY: ".rbr_reparam.weight"}
_HEAD = ("linear.weight", "linear.bias")


@dataclass(frozen=True)
class Recognised:
    """A network told by its arrays.

    Attributes:
        dialect: whose names the arrays had; where several projects name a network alike, the first of `DIALECTS`.
        variant: a member of the family, or 'repvgg' with its sizes.
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


def recognise(arrays: dict[str, np.ndarray]) -> Recognised:
    """Tell dialect, network, form and sizes of flat arrays, and rename them to our names.

    Raises:
        CheckpointError: they are no RepVGG, half converted, without a head, not floating-point, or not quite a network;
            the message is one line. Of what is not quite a network it names the closest one, and the first differences
            under the names that the file uses.
    """
    translation = min((translate(arrays, d) for d in DIALECTS.values()), key=lambda found: len(found.unknown))
    form = _form(arrays, translation)
    found, left_out = translation.arrays, tuple[str, ...]()
    if form == DEPLOY and f"stage3_first.0{_KERNELS[DEPLOY]}" in found:
        left_out = tuple(translation.theirs[name] for name in found if name.startswith(AUX_HEADS))
        found = {name: array for name, array in found.items() if not name.startswith(AUX_HEADS)}
    num_classes, in_channels = _sizes(found, form)
    has_aux = any(name.startswith(AUX_HEADS) for name in found)

    def against(variant) -> Misfits:
        return find_misfits(parameter_shapes(variant, form, num_classes, in_channels, has_aux), found)

    derived = _derive(found, form, in_channels)
    variant = min([*_FAMILY, *([derived] if derived else [])], key=lambda variant: against(variant).count)
    problems = _in_their_names(against(variant), translation)
    if problems.count:
        label = f"{_described(variant)} in {form} form under {translation.dialect.project}'s names"
        head = [_their_name(name, translation) for name in _HEAD]
        if [*problems.missing] == head and problems.count == len(head):
            raise CheckpointError(f"the head ({' and '.join(head)}) is missing: this is the backbone of a {label}")
        raise CheckpointError(f"not quite a RepVGG: the closest is {label}, but {problems.text()}")
    quantised = [f"{translation.theirs[n]} ({a.dtype})" for n, a in found.items() if a.dtype.kind != "f"]
    if quantised:
        raise CheckpointError(
            f"{len(quantised)} tensors are not floating-point: {listed(quantised)}; quantised, perhaps"
        )
    return Recognised(translation.dialect.name, variant, form, num_classes, in_channels, has_aux, found, left_out)


def recognise_described(arrays: dict[str, np.ndarray], description: Description) -> Recognised:
    """Take arrays of this package, in any form, for what their description says.

    Raises:
        CheckpointError: they are something else; every difference is named.
    """
    variant, num_classes, in_channels, form = description.network
    check_fit(parameter_shapes(variant, form, num_classes, in_channels, aux_heads=False), arrays, "the file")
    return Recognised(OURS.name, variant, form, num_classes, in_channels, has_aux=False, arrays=arrays)


def _form(arrays, translation) -> str:
    """'train' or 'deploy'; refuses what is no RepVGG at all, or half converted."""
    kernels = {form: [n for n in translation.arrays if n.endswith(end)] for form, end in _KERNELS.items()}
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


def _sizes(arrays, form) -> tuple[int, int]:
    """The number of classes and of input channels; ImageNet's where their array is missing or misshapen."""
    head, stem = arrays.get("linear.weight"), arrays.get(f"stage0{_KERNELS[form]}")
    return (
        head.shape[0] if head is not None and head.ndim == 2 and head.size else 1000,
        stem.shape[1] if stem is not None and stem.ndim == 4 and stem.size else 3,
    )


def _derive(arrays, form, in_channels) -> Variant | None:
    """The variant that the kernels' shapes describe, a member of the family if it is one; None when they do not."""
    kernels: dict[str, dict[str, np.ndarray]] = {}  # stage -> block -> kernel
    for name, array in arrays.items():
        if name.endswith(_KERNELS[form]) and array.ndim == 4:
            block = name.removesuffix(_KERNELS[form])
            kernels.setdefault(block.partition(".")[0], {})[block] = array
    aux_heads = "stage3_first" in kernels
    third = ("stage3_first", "stage3_second") if aux_heads else ("stage3",)
    stages = ("stage0",), ("stage1",), ("stage2",), third, ("stage4",)
    blocks = [{block: kernel for name in names for block, kernel in kernels.get(name, {}).items()} for names in stages]
    if not all(blocks):
        return None
    widths = [next(iter(stage.values())).shape[0] for stage in blocks]
    try:
        shape = {"aux_heads": aux_heads, **_squeeze(arrays)}
        plain = variants.custom([len(stage) for stage in blocks[1:]], widths, **shape)
        # Block 2 is the first one that a grouped network groups.
        spec = plain.block_specs(in_channels)[2]
        per_group = kernels[spec.name.partition(".")[0]][spec.name].shape[1]
        derived = replace(plain, group_size=spec.in_channels // per_group)
    except (UserError, KeyError, ZeroDivisionError):
        return None
    return next((known for known in _FAMILY if known.to_dict() == derived.to_dict()), derived)


def _squeeze(arrays) -> dict:
    """Where SE stands and its ratio: the one of the family if it fits, since squeezed = width // ratio fits several."""
    for place, module, usual in (("pre", "se", 16), ("post", "post_se", 4)):
        shapes = [a.shape for name, a in arrays.items() if name.endswith(f".{module}.down.weight") and a.ndim == 4]
        if shapes:
            low = max(width // (squeezed + 1) + 1 for squeezed, width, _, _ in shapes)
            high = min(width // squeezed for squeezed, width, _, _ in shapes)
            return {"se": place, "se_ratio": usual if low <= usual <= high else high}
    return {}


def _described(variant) -> str:
    if variant.name != "repvgg":
        return variant.name
    return f"repvgg of num_blocks {list(variant.num_blocks)}, widths {list(variant.widths)}"


def _their_name(name, translation: Translation) -> str:
    """What the file calls, or would call, one of our parameters."""
    if name in translation.theirs:
        return translation.theirs[name]
    try:
        return translation.dialect.join(OURS.parts(name))
    except KeyError:
        return name


def _in_their_names(found: Misfits, translation: Translation) -> Misfits:
    parts = (found.missing, found.unexpected, found.reshaped)
    missing, unexpected, reshaped = ({_their_name(n, translation): s for n, s in part.items()} for part in parts)
    unexpected |= {name: array.shape for name, array in translation.unknown.items()}
    return Misfits(missing, unexpected, reshaped)
