"""From train form to deploy form, at any depth of any cell."""

from __future__ import annotations

import copy

from mindrepvgg.reparam.blocks import RepVGGBlock


def rep_blocks(net) -> dict[str, RepVGGBlock]:
    """The RepVGG blocks in a cell, at any depth, by their path in it."""
    return {name: cell for name, cell in net.cells_and_names() if isinstance(cell, RepVGGBlock)}


def to_deploy(net):
    """Make a new network in deploy form, which computes what `net` computes in inference; `net` stays as it was.

    Each block's branches are fused in float64. What only training knows, as auxiliary heads, a cell drops itself with
    its method `drop_aux_heads`. No parameter is shared with `net`. The new network has no compiled graph: its first
    call compiles the deploy form.

    Args:
        net: a RepVGG, a RepVGG block, or any Cell that contains RepVGG blocks at any depth; the rest of it is copied.

    Raises:
        ValueError: there is nothing to fuse.
    """
    blocks = rep_blocks(net)
    if not blocks:
        raise ValueError(f"{type(net).__name__} contains no RepVGGBlock: there is nothing to fuse")
    trained = [block for block in blocks.values() if not block.deploy]
    if not trained:
        raise ValueError(f"{type(net).__name__} is in deploy form already: there is nothing to fuse")
    # The copy finds each train-form block already "copied", as its deploy form, and never duplicates the branches.
    deployed = copy.deepcopy(net, {id(block): block.deployed() for block in trained})
    for _, cell in deployed.cells_and_names():
        cell.compile_cache.clear()
        if hasattr(cell, "drop_aux_heads"):  # what only training knows, a cell drops itself
            cell.drop_aux_heads()
    return deployed
