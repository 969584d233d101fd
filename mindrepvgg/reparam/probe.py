"""Whether a block and its deploy form compute the same: tried on noise, where its class does not vouch for it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam.compare import leaves, worst_difference
from mindrepvgg.reparam.layers import NORMS
from mindrepvgg.reparam.precision import computes_in_half
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.text import first_line

# What the two forms may differ by, over the largest output: in float32, and where a cell computes in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2

# (N, H, W): borders and both parities of a stride are in it.
_NOISE = 2, 9, 7

# The methods that say what a block computes.
_OVERRIDDEN = {"construct", "convolve", "linear_map"}


def needs_probe(block: nn.Cell) -> bool:
    """Whether a block is not as this package builds it: another class, other methods, or other cells in a branch."""
    cells = [cell for branch in block.branches().values() for _, cell in branch.cells_and_names()]
    return not (_is_ours(block) and all(folds_exactly(cell) for cell in cells))


def _is_ours(cell):
    changed = _OVERRIDDEN & vars(cell).keys()
    return type(cell).__module__.startswith("mindrepvgg.") and not changed


def folds_exactly(cell):
    """Whether the formulas know all that a cell of a branch does."""
    hooks = getattr(cell, "_forward_hook", None) or getattr(cell, "_forward_pre_hook", None)
    if hooks or "construct" in vars(cell):
        return False
    if getattr(cell, "use_batch_statistics", None):  # a BN that normalises by the batch in inference too
        return False
    # What automatic mixed precision O2 puts around a BN casts its output.
    known = type(cell) in (nn.Conv2d, nn.SequentialCell, *NORMS) or type(cell).__module__ == "mindspore.train.amp"
    return known or _is_ours(cell)


def check_block(path: str, block: nn.Cell, deployed: nn.Cell):
    """Run both forms of a block on noise, without the hooks on the block itself.

    Args:
        path: the block's place in the network, for the message.
        block, deployed: the two forms, `FoldableBlock`s; they are left as they were.

    Raises:
        FusionError: the two differ, or one of them cannot be run.
    """
    name = described(path, block)
    for method in _OVERRIDDEN & vars(block).keys():
        if getattr(vars(block)[method], "__self__", None) is not block:
            raise FusionError(
                f"{name} cannot be fused: its {method} is a function that knows the block's branches, and its copy "
                f"would call it too; make it a method of a subclass"
            )
    check_forms(path, block, deployed, block.in_channels, "let its class override fused_kernel_bias")


def check_forms(path: str, cell: nn.Cell, deployed: nn.Cell, in_channels: int, remedy: str):
    """Run both forms of a cell on noise, without the hooks on the cell itself.

    Args:
        path: the cell's place in the network, for the message.
        cell, deployed: the two forms; they are left as they were.
        in_channels: of the noise.
        remedy: what the user can do where they differ, for the message.

    Raises:
        FusionError: the two differ, or one of them cannot be run.
    """
    name = described(path, cell)
    count, height, width = _NOISE
    noise = np.random.default_rng(0).standard_normal((count, in_channels, height, width))
    x = Tensor(noise.astype(np.float32))
    with inference_mode(cell, deployed), execution_mode(ms.PYNATIVE_MODE):
        try:
            expected = leaves(cell.construct(x))
        except Exception as error:
            raise FusionError(
                f"{name} cannot be tried on an input {x.shape}: {first_line(error)}; "
                "give to_deploy example inputs of the whole network"
            ) from error
        try:
            _, max_rel = worst_difference(expected, leaves(deployed.construct(x)))
        except Exception as error:
            raise FusionError(f"{name} cannot be fused: without its branches, {first_line(error)}") from error
    tolerance = HALF_TOLERANCE if computes_in_half(cell) else TOLERANCE
    if not max_rel <= tolerance:
        raise FusionError(
            f"{name} cannot be fused: with one convolution for its branches it computes something else, "
            f"by {max_rel:.1e} of the largest output; {remedy}, or leave this network in train form"
        )


def described(path: str, block: nn.Cell) -> str:
    """What a message calls a block: its path, and its class."""
    return f"{path or 'the block'} ({type(block).__name__})"
