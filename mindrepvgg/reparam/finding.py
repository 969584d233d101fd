"""The blocks in a network: those that MindSpore sees, at any depth, and those that it does not see."""

from __future__ import annotations

from collections.abc import Iterator

from mindspore import nn

# What a block can be hidden in.
_MAY_HIDE = (nn.Cell, list, tuple, set, dict)


def is_block(cell) -> bool:
    """Whether a cell is a block that can be fused.

    By its methods: a block that is the whole network gets another class from MindSpore's automatic mixed precision O1.
    Its methods are written anew, with the imports of the block's module but without its functions: so no method of a
    block calls a function of its own module.
    """
    return isinstance(cell, nn.Cell) and hasattr(type(cell), "equivalent_conv")


def rep_blocks(net: nn.Cell) -> dict[str, nn.Cell]:
    """The blocks in a cell, at any depth, by their path in it; in either form."""
    return {name: cell for name, cell in net.cells_and_names() if is_block(cell)}


def outer_blocks(net: nn.Cell) -> dict[str, nn.Cell]:
    """`rep_blocks` without those that stand in a branch of another one, with which they are fused."""
    blocks = rep_blocks(net)
    inner = {id(cell) for block in blocks.values() for _, cell in block.cells_and_names() if cell is not block}
    return {name: block for name, block in blocks.items() if id(block) not in inner}


def hidden_blocks(net: nn.Cell) -> list[str]:
    """The paths of train-form blocks in lists, tuples, sets and dicts, where MindSpore sees no cells."""
    seen = {id(cell) for _, cell in net.cells_and_names()}
    found = []
    for path, cell in net.cells_and_names():
        for attribute, value in vars(cell).items():
            # Asked first: most of a cell's attributes are neither, and a large network has many of them.
            if not isinstance(value, _MAY_HIDE) or (attribute == "cell_list" and is_sequential(cell)):
                continue
            for place, hidden in _cells_within(value, f"{path}.{attribute}".lstrip("."), seen):
                inner = hidden.cells_and_names(name_prefix=place)
                found += [name for name, block in inner if is_block(block) and not block.deploy]
    return found


def is_sequential(cell: nn.Cell) -> bool:
    """Whether a cell is a SequentialCell, by name: automatic mixed precision O1 imports that class anew as well."""
    return any(base.__name__ == "SequentialCell" for base in type(cell).__mro__)


def _cells_within(value, path, seen) -> Iterator[tuple[str, nn.Cell]]:
    """(path, cell) of all cells in nested containers that were not seen before."""
    if id(value) in seen:
        return
    if isinstance(value, nn.Cell):
        seen.add(id(value))
        yield path, value
    elif isinstance(value, (list, tuple, set, dict)):
        seen.add(id(value))
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _cells_within(inner, f"{path}[{key!r}]", seen)
