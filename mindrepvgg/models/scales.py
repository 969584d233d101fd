"""RepOptimizer's scales: which a network has. Loads neither MindSpore nor NumPy."""

from __future__ import annotations

from mindrepvgg.models.block_kinds import KINDS, LINEAR_ADDITION
from mindrepvgg.models.variants import Variant

# The kind of block that RepOptimizer trains.
TARGET = "repopt_vgg"

# What `recipe.scales` can be besides a file: those that a search starts with, and a training without RepOptimizer.
INITIAL, NONE = "initial", "none"


def scale_names(block: str) -> tuple[str, str, str]:
    """The names of a block's scales s, t and u: of the large convolution, of the 1x1, and of the input."""
    return f"{block}.scale_conv.weight", f"{block}.scale_1x1.weight", f"{block}.scale_identity.weight"


def scale_shapes(variant: Variant) -> dict[str, tuple[int, ...]]:
    """The scales of a network's blocks of the kind `TARGET`.

    Returns:
        The name, as a network of linear additions calls the parameter ('stage1.0.scale_conv.weight'), -> (channels,).
    """
    return {
        f"{spec.name}.{part.name}.weight": part.shape
        for spec in variant.block_specs()
        if spec.kind == TARGET
        for branch in KINDS[LINEAR_ADDITION].train_branches(spec)
        for part in branch
        if part.is_scale
    }
