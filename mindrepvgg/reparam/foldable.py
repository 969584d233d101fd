"""Blocks whose branches fold into one convolution, whatever the branches are: found in a network, copied, and fused."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

from mindspore import nn, ops

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam.probe import check_block, described, needs_probe
from mindrepvgg.text import first_line

_BACKWARD_HOOKS = ("_backward_pre_hook", "_backward_hook")


class FoldableBlock(nn.Cell):
    """The base of blocks whose branches equal one convolution in inference.

    A subclass has the attributes `in_channels` and `deploy`, and says what its branches are and what they fold into:
    see `branches` and `fused_conv`. In deploy form the convolution is called as the class attribute FUSED says.
    """

    FUSED = "rbr_reparam"

    def branches(self) -> dict[str, nn.Cell]:
        """The cells that only the train form has, by their attributes."""
        raise NotImplementedError

    def fused_conv(self) -> nn.Cell:
        """The one convolution that the branches equal, as a new cell; its parameters carry their final names."""
        raise NotImplementedError

    def take(self, conv: nn.Cell):
        """Put `conv` in the place of the branches. Its parameters keep their names, and come before the others."""
        for name in self.branches():
            delattr(self, name)
        # Not setattr: it would put the attribute's name, and nothing of what is around the block, before the names.
        self.insert_child_to_cell(self.FUSED, conv)
        self._cells.move_to_end(self.FUSED, last=False)
        self.deploy = True

    def switch_to_deploy(self):
        """Replace the branches, in place, by the one convolution they equal; does nothing in deploy form.

        Compiled graphs that contain this block are forgotten, so that the next call of any network around it runs the
        new form. An optimizer made before still holds the branches' parameters: make a new one. To keep the trained
        network, use `mindrepvgg.to_deploy`, which builds a new one.

        Raises:
            FusionError: the block cannot be fused, see `mindrepvgg.to_deploy`; it stays as it was.
        """
        if self.deploy:
            return
        conv = _fused("", self)
        if needs_probe(self):
            self.deployed()
        self.take(conv)
        _forget_graphs(self)

    def deployed(self) -> nn.Cell:
        """Make a new block in deploy form that computes the same, under the same names; this one stays as it was.

        Class, attributes, hooks, flags and other cells are those of this block.

        Raises:
            FusionError: the block is in deploy form already, or cannot be fused, see `mindrepvgg.to_deploy`.
        """
        self.check_train_form()
        return copy_fused(self, {"": self})

    def check_train_form(self):
        """Raise FusionError where the block is fused already."""
        if self.deploy:
            raise FusionError("the block is in deploy form: its branches are fused already")


def norm_of(cell: nn.Cell) -> nn.Cell:
    """A BN without what MindSpore's automatic mixed precision O2 puts around it: a cell each time it is applied."""
    return norm_of(cell._backbone) if hasattr(cell, "_backbone") else cell


def bn_terms(cell):
    """What `arithmetic.fold` needs of a BN cell."""
    bn = norm_of(cell)
    return bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance, bn.eps


def add_padded(kernel, kernel_1x1):
    """A 3x3 and a 1x1 kernel's sum, as `arithmetic.add_1x1`, in differentiable operators."""
    return kernel + ops.pad(kernel_1x1, (1, 1, 1, 1))


def is_block(cell) -> bool:
    """Whether a cell is a block that can be fused.

    By its methods: MindSpore's automatic mixed precision O1 imports this module anew, under another name. It writes
    a block's methods anew, with the imports of the block's module but without its functions: so no method of a block
    calls a function of its own module.
    """
    return isinstance(cell, nn.Cell) and hasattr(cell, "fused_conv")


def rep_blocks(net: nn.Cell) -> dict[str, FoldableBlock]:
    """The blocks in a cell, at any depth, by their path in it; in either form."""
    return {name: cell for name, cell in net.cells_and_names() if is_block(cell)}


def hidden_blocks(net: nn.Cell) -> list[str]:
    """The paths of train-form blocks in lists, tuples, sets and dicts, where MindSpore sees no cells."""
    seen = {id(cell) for _, cell in net.cells_and_names()}
    found = []
    for path, cell in net.cells_and_names():
        for attribute, value in vars(cell).items():
            if attribute == "cell_list" and _is_sequential(cell):
                continue
            for place, hidden in _cells_within(value, f"{path}.{attribute}".lstrip("."), seen):
                inner = hidden.cells_and_names(name_prefix=place)
                found += [name for name, block in inner if is_block(block) and not block.deploy]
    return found


def _is_sequential(cell):
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


class _LeftOut(nn.Cell):
    """Stands for a branch while its block is copied."""


def copy_fused(net: nn.Cell, blocks: dict[str, FoldableBlock], probe: bool = True) -> nn.Cell:
    """Copy a network with one convolution in the place of the branches of `blocks`; the branches are never duplicated.

    Nothing is shared with `net`. What is shared within `net`, is shared within the copy. No cell has a compiled graph.
    Hooks stay, those of the backward pass as well.

    Args:
        net: a cell; it stays as it was.
        blocks: train-form blocks in it, by name.
        probe: try the blocks whose classes do not vouch for the fusion, see `probe.check_block`.

    Raises:
        FusionError: `net` cannot be copied, or uses a branch elsewhere too, or a block cannot be fused, or its two
            forms differ.
    """
    left_out = [branch for block in blocks.values() for branch in block.branches().values()]
    # These refer to the cell they were made for. PyNative's recomputation saves memory in training only.
    unlike = ("_recompute_cell", *(f"_cell{hooks}" for hooks in _BACKWARD_HOOKS))
    nothing = [getattr(cell, name, None) for _, cell in net.cells_and_names() for name in unlike]
    # The level 'auto' of automatic mixed precision is settings that have no copy.
    settings = [getattr(cell, "amp_strategy", None) for _, cell in net.cells_and_names()]
    memo: dict[int, Any] = {id(branch): _LeftOut() for branch in left_out}
    memo |= {id(thing): None for thing in nothing} | {id(thing): thing for thing in settings}
    convs = {name: _fused(name, block) for name, block in blocks.items()}
    try:
        copied = copy.deepcopy(net, memo)
    except TypeError as error:
        raise FusionError(f"{type(net).__name__} cannot be copied: {_culprit(net)}{error}") from None
    for name, block in blocks.items():
        memo[id(block)].take(convs.pop(name))
    for path, cell in copied.cells_and_names():
        cell.compile_cache.clear()
        for kind in _BACKWARD_HOOKS:
            functions = list(getattr(cell, kind).values())
            getattr(cell, kind).clear()
            for function in functions:
                getattr(cell, f"register{kind}")(function)
        if _is_sequential(cell):  # where O1 has left the cells of before
            cell.cell_list = list(cell._cells.values())
        if isinstance(cell, _LeftOut):
            raise FusionError(f"{path} is a branch of a block and used elsewhere too: without it nothing can be fused")
    for name, block in blocks.items():
        if probe and needs_probe(block):
            check_block(name, block, memo[id(block)])
    return copied


def _fused(path, block):
    """The one convolution of a block; FusionError, with its path, where there is none."""
    try:
        return block.fused_conv()
    except (AttributeError, ValueError) as error:
        raise FusionError(f"{described(path, block)} cannot be fused: {first_line(error)}") from error


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


def _forget_graphs(changed):
    """Make every live cell that contains `changed` compile anew at its next call.

    In graph mode a cell keeps its compiled graph and does not notice that a cell inside it became another: it would
    go on running the old one. The cells around a block are not known to it, so they are looked for.
    """
    # By type(): isinstance() would ask a dead weak proxy for its class, which raises.
    for cell in [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Cell)]:
        if cell.compile_cache and any(inner is changed for _, inner in cell.cells_and_names()):
            cell.compile_cache.clear()
