"""A copy of a network with other cells in the place of some."""

from __future__ import annotations

import copy
from typing import Any

from mindspore import nn

from mindrepvgg.errors import FusionError

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


def is_sequential(cell: nn.Cell) -> bool:
    """Whether a cell is a SequentialCell, by name: automatic mixed precision O1 imports that class anew as well."""
    return any(base.__name__ == "SequentialCell" for base in type(cell).__mro__)


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
