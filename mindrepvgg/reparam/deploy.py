"""From train form to deploy form, at any depth of any cell."""

from __future__ import annotations

import logging
from collections import Counter

from mindspore import nn

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam.equivalence import verify_equivalence
from mindrepvgg.reparam.foldable import copy_fused, hidden_blocks, is_block, outer_blocks
from mindrepvgg.reparam.precision import computes_in_half
from mindrepvgg.reparam.probe import HALF_TOLERANCE, TOLERANCE
from mindrepvgg.text import listed

log = logging.getLogger(__name__)


def to_deploy(net, inputs=None):
    """Make a new network in deploy form, which computes what `net` computes in inference; `net` stays as it was.

    Each block's branches are fused in float64. The rest is copied: classes, attributes, hooks, flags such as mixed
    precision, what is frozen. What only training knows, as auxiliary heads, a cell drops itself with its method
    `drop_aux_heads`. No parameter is shared with `net`. The new network has no compiled graph: its first call compiles
    the deploy form.

    A block that is not quite this package's (a subclass, other methods, other cells in its branches) is run in both
    forms, in PyNative mode, and refused where they differ.

    Args:
        net: a RepVGG, a RepVGG block, or any Cell that contains RepVGG blocks at any depth.
        inputs: what `net` is called with, a Tensor or array, or a tuple of arguments. Both networks are compared on
            them with `verify_equivalence`. None: blocks that must be tried, are tried on noise.

    Raises:
        TypeError: `net` is no Cell.
        FusionError: there is nothing to fuse, a block cannot be fused, or MindSpore does not see it.
        EquivalenceError: the two networks differ on `inputs`.
    """
    if not isinstance(net, nn.Cell):
        kind = type(net).__name__
        raise TypeError(f"to_deploy takes a mindspore.nn.Cell, and got a {kind}; mindrepvgg.load_weights reads a file")
    blocks = outer_blocks(net)
    hidden = hidden_blocks(net)
    if hidden:
        raise FusionError(
            f"{type(net).__name__} keeps blocks where MindSpore sees no cells, so that they are neither trained nor "
            f"saved nor fused: {listed(hidden)}; put them in a mindspore.nn.CellList or SequentialCell"
        )
    foreign = _foreign_blocks(net)
    if not blocks:
        raise FusionError(f"{type(net).__name__} contains no RepVGGBlock: there is nothing to fuse{foreign}")
    trained = {name: block for name, block in blocks.items() if not block.deploy}
    if not trained:
        raise FusionError(f"{type(net).__name__} is in deploy form already: there is nothing to fuse")
    if foreign:
        log.warning("%s: not all is fused%s", type(net).__name__, foreign)
    deployed = copy_fused(net, trained, probe=inputs is None)
    for _, cell in deployed.cells_and_names():
        if hasattr(cell, "drop_aux_heads"):  # what only training knows, a cell drops itself
            cell.drop_aux_heads()
    if inputs is not None:
        verify_equivalence(net, deployed, inputs, HALF_TOLERANCE if computes_in_half(net) else TOLERANCE)
    return deployed


def _foreign_blocks(net) -> str:
    """What a message says of other projects' re-parameterisable blocks in a network; empty where there are none."""
    names = ("get_equivalent_kernel_bias", "rbr_dense", "rbr_reparam")
    cells = [cell for _, cell in net.cells_and_names() if not is_block(cell) and any(hasattr(cell, n) for n in names)]
    kinds = Counter(f"{type(cell).__module__}.{type(cell).__qualname__}" for cell in cells)
    if not kinds:
        return ""
    text = "; it has " + listed([f"{count} cells of {kind}" for kind, count in kinds.items()])
    text += ", which this package does not fuse"
    if any(kind.startswith("mindcv.") for kind in kinds):
        text += "; save MindCV's RepVGG with mindspore.save_checkpoint and read it with mindrepvgg.load_weights"
    return text
