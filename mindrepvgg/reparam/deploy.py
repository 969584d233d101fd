"""From train form to deploy form, and the proof that both compute the same."""

from __future__ import annotations

import copy

from mindrepvgg.reparam.blocks import RepVGGBlock


def rep_blocks(net) -> dict[str, RepVGGBlock]:
    """The RepVGG blocks in a cell, at any depth, by their path in it."""
    return {name: cell for name, cell in net.cells_and_names() if isinstance(cell, RepVGGBlock)}


def to_deploy(net):
    """A new network in deploy form, computing what `net` computes in inference; `net` stays as it was.

    net: a RepVGG, a RepVGG block, or any Cell that contains RepVGG blocks at any depth; the rest of it is copied.
    Each block's branches are fused in float64. A cell's auxiliary heads are dropped by its own
    `drop_aux_heads`, where it has one. No parameter is shared
    with `net`, and the new network has no compiled graph: its first call compiles the deploy form.
    Raises ValueError when there is nothing to fuse.
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
