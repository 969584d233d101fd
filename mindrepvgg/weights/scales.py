"""RepOptimizer's scales in files: the authors', those of a search, and those in a run's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.scales import scale_names, scale_shapes
from mindrepvgg.models.shapes import check_finite, find_misfits
from mindrepvgg.models.variants import Variant
from mindrepvgg.text import printable
from mindrepvgg.weights.checkpoint import split_state
from mindrepvgg.weights.containers import read_weights, write_weights
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file
from mindrepvgg.weights.unwrap import unwrap

# In a checkpoint of a run that RepOptimizer trained, they are part of the training's state, under this prefix.
STATE_PREFIX = "scales."

_SCALE = re.compile(r"(?:.*\.)?scale_(?:conv|1x1|identity)\.weight")

AUTHORS = "github.com/DingXiaoH/RepOptimizers"


def initial_scales(variant: Variant) -> dict[str, np.ndarray]:
    """The scales that a search starts with, see `BlockSpec.start_scale`: name -> float32 array, see `models.scales`."""
    starts = {}
    for spec in variant.block_specs():
        conv, point, identity = scale_names(spec.name)
        starts |= {conv: spec.start_scale, point: spec.start_scale, identity: 1.0}
    return {name: np.full(shape, starts[name], np.float32) for name, shape in scale_shapes(variant).items()}


def read_scales(path, variant: Variant) -> dict[str, np.ndarray]:
    """Read the scales that a network is trained with.

    Args:
        path: a file of the authors' (`RepOpt-VGG-B1-scales.pth`), read without PyTorch; what a search here wrote, its
            scales file or a checkpoint; or a checkpoint of a run that was trained with them.
        variant: the network.

    Returns:
        The arrays, float32, by the names of `models.scales.scale_shapes`.

    Raises:
        CheckpointError: there is no such file, or it does not hold the network's scales; the message is one line.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"scales (={printable(path, 200)}) is no file; give one of the authors' ({AUTHORS}) or of a search"
        )
    found = {name: array for name, array in _arrays(path).items() if _SCALE.fullmatch(name)}
    if not found:
        raise CheckpointError(
            f"{printable(path, 200)} holds no scales of RepOptimizer, whose names end in scale_conv.weight and alike; "
            f"give a file of the authors ({AUTHORS}), or of a search"
        )
    check_scales(found, scale_shapes(variant), path)
    return {name: found[name].astype(np.float32) for name in scale_shapes(variant)}


def check_scales(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple], source):
    """Refuse arrays that are not exactly a network's scales, or not finite.

    Args:
        arrays: by name.
        shapes: of the network's, see `models.scales.scale_shapes`.
        source: where they are from.

    Raises:
        CheckpointError: names what differs, after `source`.
    """
    misfits = find_misfits(shapes, arrays)
    if misfits.count:
        raise CheckpointError(f"{printable(source, 200)} holds scales of another network: {misfits.text()}")
    try:
        check_finite(dict(arrays))
    except CheckpointError as error:
        raise CheckpointError(f"{printable(source, 200)}: {error}") from None


def write_scales(path, arrays: Mapping[str, np.ndarray], **facts):
    """Write a search's scales, `.safetensors` or `.ckpt`, atomically; names as `read_scales` returns them.

    Args:
        path: the file.
        arrays: the scales by name; others are left out.
        **facts: what else the file tells, JSON-able.
    """
    write_weights(path, {name: array for name, array in arrays.items() if _SCALE.fullmatch(name)}, facts)


def _arrays(path) -> dict[str, np.ndarray]:
    if is_torch_file(path):
        return unwrap(read_torch_file(path)).weights or {}
    weights, state = split_state(read_weights(path).arrays)
    return weights | {
        name.removeprefix(STATE_PREFIX): array for name, array in state.items() if name.startswith(STATE_PREFIX)
    }
