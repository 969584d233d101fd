"""Copies of a network with other cells in the place of some, and with fused blocks."""

from __future__ import annotations

import copy
import gc
from typing import Any

from mindspore import nn

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam.finding import is_sequential
from mindrepvgg.reparam.probe import check_block, described, needs_probe
from mindrepvgg.text import first_line

_BACKWARD_HOOKS = ("_backward_pre_hook", "_backward_hook")


def copy_with(net: nn.Cell, replaced: dict[nn.Cell, nn.Cell]) -> nn.Cell:
    """Copy a network with other cells in the place of some; what is replaced is never duplicated.

    Nothing is shared with `net`. What is shared within `net`, is shared within the copy. No cell has a compiled graph.
    Hooks stay, those of the backward pass as well.

    Args:
        net: a cell; it stays as it was.
        replaced: cells of `net`, and the new cell for each, which is used itself and not copied. Its parameters have
            the names that they have in the whole network.

    Raises:
        FusionError: `net` cannot be copied.
    """
    # These refer to the cell they were made for. PyNative's recomputation saves memory in training only.
    unlike = ("_recompute_cell", *(f"_cell{hooks}" for hooks in _BACKWARD_HOOKS))
    nothing = [getattr(cell, name, None) for _, cell in net.cells_and_names() for name in unlike]
    # The level 'auto' of automatic mixed precision is settings that have no copy.
    settings = [getattr(cell, "amp_strategy", None) for _, cell in net.cells_and_names()]
    memo: dict[int, Any] = {id(cell): other for cell, other in replaced.items()}
    memo |= {id(thing): None for thing in nothing} | {id(thing): thing for thing in settings}
    try:
        copied = copy.deepcopy(net, memo)
    except TypeError as error:
        raise FusionError(f"{type(net).__name__} cannot be copied: {_culprit(net)}{error}") from None
    for _, cell in copied.cells_and_names():
        cell.compile_cache.clear()
        for kind in _BACKWARD_HOOKS:
            functions = list(getattr(cell, kind).values())
            getattr(cell, kind).clear()
            for function in functions:
                getattr(cell, f"register{kind}")(function)
        if is_sequential(cell):  # where O1 has left the cells of before
            cell.cell_list = list(cell._cells.values())
    return copied


def _culprit(net):
    """The attribute of a cell that cannot be copied, for a message; empty where that is not found."""
    cells = {id(cell): cell for _, cell in net.cells_and_names()}
    for path, cell in net.cells_and_names():
        for attribute, value in vars(cell).items():
            try:
                copy.deepcopy(value, dict(cells))
            except TypeError:
                return f"its attribute {path}.{attribute}: ".replace(" .", " ")
    return ""


class _LeftOut(nn.Cell):
    """Stands for a branch while its block is copied."""


def copy_fused(net: nn.Cell, blocks: dict[str, nn.Cell], probe: bool = True, replaced=None) -> nn.Cell:
    """Copy a network with one convolution in the place of the branches of `blocks`; the branches are never duplicated.

    Args:
        net: a cell; it stays as it was.
        blocks: train-form blocks in it, by name.
        probe: try the blocks whose classes do not vouch for the fusion, see `probe.check_block`.
        replaced: other cells that get a new cell in their places, see `copy_with`.

    Raises:
        FusionError: `net` cannot be copied, or uses a branch elsewhere too, or a block cannot be fused, or its two
            forms differ.
    """
    convs = {name: fused_block(name, block) for name, block in blocks.items()}
    left_out: dict[nn.Cell, nn.Cell] = {
        branch: _LeftOut() for block in blocks.values() for branch in block.branches().values()
    }
    copied = copy_with(net, {**left_out, **(replaced or {})})
    cells = dict(copied.cells_and_names())
    for name in blocks:
        cells[name].take(convs.pop(name))
    for path, cell in copied.cells_and_names():
        if isinstance(cell, _LeftOut):
            raise FusionError(f"{path} is a branch of a block and used elsewhere too: without it nothing can be fused")
    for name, block in blocks.items():
        if probe and needs_probe(block):
            check_block(name, block, cells[name])
    return copied


def fused_block(path, block):
    """The one convolution of a block; FusionError, with its path, where there is none."""
    try:
        return block.equivalent_conv()
    except (AttributeError, ValueError) as error:
        raise FusionError(f"{described(path, block)} cannot be fused: {first_line(error)}") from error


def forget_graphs(changed):
    """Make every live cell that contains `changed` compile anew at its next call.

    In graph mode a cell keeps its compiled graph and does not notice that a cell inside it became another: it would
    go on running the old one. The cells around a block are not known to it, so they are looked for.
    """
    # By type(): isinstance() would ask a dead weak proxy for its class, which raises.
    for cell in [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Cell)]:
        if cell.compile_cache and any(inner is changed for _, inner in cell.cells_and_names()):
            cell.compile_cache.clear()
