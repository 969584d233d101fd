"""Renaming between the dialects, with our names as the hub; values stay as they are, bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.block_kinds import FAMILIES, KINDS
from mindrepvgg.models.shapes import find_misfits, parameter_shapes
from mindrepvgg.models.variants import DEPLOY, TRAIN, Variant
from mindrepvgg.reparam.leaves import BN_LEAVES
from mindrepvgg.text import listed, printable
from mindrepvgg.weights.dialects import AUX_HEADS, BATCHES, DIALECTS_OF, OURS, Dialect, Parts, find_dialect


class Translation(NamedTuple):
    """Arrays under our names.

    Attributes:
        kind: the family of the networks that the names are of.
        dialect: whose names they were.
        arrays: our name -> array.
        theirs: our name -> the name in the file.
        unknown: arrays no name was found for, by their names.
    """

    kind: str
    dialect: Dialect
    arrays: dict[str, np.ndarray]
    theirs: dict[str, str]
    unknown: dict[str, np.ndarray]


def translate(arrays: dict[str, np.ndarray], kind: str, name: str) -> Translation:
    """Read arrays as a dialect's of `DIALECTS_OF`, whether or not they make a whole network."""
    dialect, ours_of = DIALECTS_OF[kind][name], DIALECTS_OF[kind][OURS.name]
    translation = Translation(kind, dialect, {}, {}, {})
    for name, array in arrays.items():
        parts = dialect.split(name)
        if parts is None:
            translation.unknown[name] = array
        elif parts.leaf != BATCHES:
            ours = ours_of.join(parts)
            translation.theirs[ours] = name
            translation.arrays[ours] = _from_megengine(array, parts.leaf) if dialect.megengine_shapes else array
    return translation


def to_ours(arrays: dict[str, np.ndarray], dialect: str, kind: str = "repvgg") -> dict[str, np.ndarray]:
    """Rename a dialect's arrays to our names, their values untouched; `num_batches_tracked` is dropped.

    Whether they make a network is not asked here; `recognise` does. `kind`: the network's family.

    Raises:
        CheckpointError: a name is not the dialect's.
    """
    find_dialect(dialect)
    translation = translate(arrays, kind, dialect)
    if translation.unknown:
        names = [printable(name) for name in translation.unknown]
        raise CheckpointError(f"{len(names)} names are not {translation.dialect.project}'s: {listed(names)}")
    return translation.arrays


def from_ours(
    arrays: dict[str, np.ndarray], dialect: str, variant: Variant, batches_tracked: int = 0
) -> dict[str, np.ndarray]:
    """Rename a network's arrays from our names to a dialect's, their values untouched.

    Args:
        arrays: the whole network in train or deploy form; a train-form RepVGGplus may lack its auxiliary heads.
        dialect: one of `dialects.DIALECTS`.
        variant: the network's layout.
        batches_tracked: the value of every `num_batches_tracked` (int64), where the dialect's BN has one.

    Raises:
        CheckpointError: the arrays are not the variant's, or the project has no such network; the message names those
            dialects that have it.
    """
    project, known, family = find_dialect(dialect).project, DIALECTS_OF[variant.family], FAMILIES[variant.family]
    deploy = f"stage0.{family.fused}.weight" in arrays
    form = DEPLOY if deploy else TRAIN
    in_channels = _size(arrays, f"stage0.{family.fused if deploy else KINDS[variant.family].dense}.weight", 1)
    aux_heads = any(name.startswith(AUX_HEADS) for name in arrays)
    shapes = parameter_shapes(variant, form, _size(arrays, "linear.weight", 0), in_channels, aux_heads)
    found = find_misfits(shapes, arrays)
    if found.count:
        raise CheckpointError(f"the arrays are no {variant.name} in {form} form: {found.text()}")
    target = known.get(dialect)
    reason = target.refusal(variant, deploy, in_channels) if target else f"it has no {family.title}"
    if target is None or reason:
        able = [name for name, other in known.items() if not other.refusal(variant, deploy, in_channels)]
        raise CheckpointError(
            f"{variant.name} in {form} form cannot be written for {project}: {reason}; possible: "
            f"{', '.join(able) or 'its deploy form'}"
        )
    groups = {spec.name: spec.groups for spec in variant.block_specs(in_channels)}
    renamed = {}
    for name in shapes:
        parts, array = known[OURS.name].parts(name), arrays[name]
        if target.megengine_shapes:
            array = _to_megengine(array, parts, groups)
        renamed[target.join(parts)] = array
        if BATCHES in target.bn and parts.leaf == BN_LEAVES[-1]:
            renamed[target.join(parts._replace(leaf=BATCHES))] = np.array(batches_tracked, np.int64)
    return renamed


def _size(arrays, name, axis) -> int:
    """One dimension of an array; 1 where there is no such array, which `find_misfits` then reports."""
    shape = arrays[name].shape if name in arrays else ()
    return shape[axis] if axis < len(shape) else 1


def _from_megengine(array, leaf):
    shape = array.shape
    if array.ndim == 5:  # (groups, out / groups, ...)
        return array.reshape(shape[0] * shape[1], *shape[2:])
    # By version, MegEngine writes BN as (1, C, 1, 1) or (C,), and reads both.
    if leaf != "weight" and array.ndim == 4 and shape == (1, shape[1], 1, 1):
        return array.reshape(shape[1])
    return array


def _to_megengine(array, parts: Parts, groups):
    if parts.place == "linear":
        return array
    if parts.leaf != "weight":
        return array.reshape(1, -1, 1, 1)
    block = parts.place if parts.number is None else f"{parts.place}.{parts.number}"
    if (parts.module or "").startswith("rbr_") and groups[block] > 1:
        return array.reshape(groups[block], -1, *array.shape[1:])
    return array
