"""Other people's cells that fold into one convolution: what is known of them, found in a network, and fused.

An adapter is a function from a cell to what it computes, registered under the cell's dotted class name. So nothing is
imported for it, and nothing is asked of the other project.

    from mindrepvgg.reparam import algebra, maps, register

    def two_branches(cell):
        def linear_map(read):
            return algebra.add(maps.map_of(cell.large, read), maps.map_of(cell.small, read))

        return linear_map, ("act",), "fused"

    register("my_project.blocks.TwoBranches", two_branches)

Another package can do the same without a call, by an entry point of the group `mindrepvgg.reparam`, whose name is the
dotted class name and whose object is the adapter. It is loaded when a cell of that name is met.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import FusionError, UserError
from mindrepvgg.reparam.algebra import LinearMap
from mindrepvgg.reparam.copying import copy_with
from mindrepvgg.reparam.finding import outer_blocks
from mindrepvgg.reparam.known_cells import KNOWN
from mindrepvgg.reparam.layers import conv2d, fill_conv, grouped_of, prefix_of
from mindrepvgg.reparam.maps import Exact, chain_output, is_convolution
from mindrepvgg.text import first_line, quoted

GROUP = "mindrepvgg.reparam"

Adapter = Callable[[Any], Any]

_ADAPTERS: dict[str, Adapter] = dict(KNOWN)


def register(name: str, adapter: Adapter):
    """Let `to_deploy` fuse the cells of a class of another project, and of classes that derive from it.

    What an adapter says is tried: a cell and its fused form are compared on noise, or the whole network on the inputs
    that `to_deploy` is given.

    Args:
        name: the dotted name of the class, such as 'mindcv.models.repvgg.RepVGGBlock'.
        adapter: a function of a cell. It returns None where the cell has nothing to fuse, or three things: a function
            linear_map(read) that says with `maps` and `algebra` which convolution the cell equals; the attributes of
            the cells that follow that convolution, in their order; and what the convolution is called in deploy form.

    Raises:
        UserError: `name` is no dotted name.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise UserError(f"name (={quoted(name)}) must be the dotted name of a class, such as package.module.Block")
    _ADAPTERS[name] = adapter


@functools.cache
def _entry_points():
    return {found.name: found for found in importlib.metadata.entry_points(group=GROUP)}


def _adapter_of(cell) -> Adapter | None:
    """The adapter of a cell's class, or of the nearest class that it derives from."""
    for base in type(cell).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name not in _ADAPTERS and name in _entry_points():
            _ADAPTERS[name] = _entry_points()[name].load()
        if name in _ADAPTERS:
            return _ADAPTERS[name]
    return None


class Adapted(NamedTuple):
    """Another project's cell, as its adapter sees it.

    Attributes:
        cell: in train form.
        linear_map: linear_map(read), see `maps.map_of`.
        after: the attributes of the cells that follow.
        fused: what the convolution is called in deploy form.
    """

    cell: nn.Cell
    linear_map: Callable
    after: tuple[str, ...]
    fused: str

    def exact(self) -> LinearMap:
        """The one convolution, in float64.

        Raises:
            ValueError: the cell is no single convolution, or has hooks, which would see other cells.
        """
        cells = [cell for _, cell in self.cell.cells_and_names()]
        if any(cell._forward_hook or cell._forward_pre_hook for cell in cells):
            raise ValueError("there are hooks on it")
        kernel, bias, *place = self.linear_map(Exact())
        return LinearMap(kernel, np.zeros(len(kernel)) if bias is None else bias, *place)

    def deployed(self, path: str) -> FusedCell:
        """The cell in deploy form; `path` is its place in the network, for the names of the convolution's parameters.

        Raises:
            ValueError: see `exact`.
        """
        found = self.exact()
        if self.fused in self.after:
            raise ValueError(f"its adapter calls the convolution {self.fused}, as a cell that follows it")
        inner, trained = next((path, cell) for path, cell in self.cell.cells_and_names() if is_convolution(cell))
        dtype = trained.weight.asnumpy().dtype
        size, channels = found.kernel.shape[2:], found.kernel.shape[1] * found.groups
        with no_init_parameters():
            conv = conv2d(channels, len(found.kernel), size, *found[2:], bias=True, grouped=grouped_of(trained))
        followers = {name: copy_with(getattr(self.cell, name), {}) for name in self.after}
        behind = {id(p) for name in self.after for p in getattr(self.cell, name).get_parameters()}
        parameters = [p for p in self.cell.get_parameters() if id(p) not in behind]
        prefix = prefix_of(trained.weight, f"{inner}.weight", path)
        values = found.kernel.astype(dtype), found.bias.astype(dtype)
        fill_conv(conv, trained, *values, parameters, f"{prefix}{self.fused}.")
        return FusedCell(self.fused, conv, followers)


class FusedCell(nn.Cell):
    """Another project's cell in deploy form: one convolution, and the cells that follow it.

    (N, in, H, W) -> (N, out, H', W').

    Args:
        name, conv: the convolution, and what it is called.
        followers: the cells that follow, by their names.
    """

    def __init__(self, name, conv, followers):
        super().__init__()
        # Not setattr: it would put the attributes' names before those of the parameters.
        self.insert_child_to_cell(name, conv)
        for after, cell in followers.items():
            self.insert_child_to_cell(after, cell)
        self.chain = (name, *followers)

    def construct(self, x):
        """Convolve (N, in, H, W), and go through the cells that follow."""
        return chain_output(self, self.chain, x)

    @property
    def deploy_conv(self) -> nn.Conv2d:
        """The convolution."""
        return getattr(self, self.chain[0])


def adapted(cell: nn.Cell) -> Adapted | None:
    """What an adapter says of a cell; None where there is none, or nothing to fuse.

    Raises:
        FusionError: the adapter raises, or does not return what it must.
    """
    adapter = _adapter_of(cell)
    if adapter is None:
        return None
    try:
        said = adapter(cell)
        return Adapted(cell, *said) if said else None
    except Exception as error:  # an adapter is anybody's code
        text = f"the adapter of {type(cell).__name__} fails: {type(error).__name__}: {first_line(error)}"
        raise FusionError(f"{text}; it must return None, or (linear_map, after, fused)") from error


def adapted_cells(net: nn.Cell) -> dict[str, Adapted]:
    """Other projects' cells that fold, by their path: outside of this package's blocks and of each other."""
    within = {id(cell) for block in outer_blocks(net).values() for _, cell in block.cells_and_names()}
    found = {}
    for path, cell in net.cells_and_names():
        known = None if id(cell) in within else adapted(cell)
        if known:
            found[path] = known
            within |= {id(inner) for _, inner in cell.cells_and_names()}
    return found
