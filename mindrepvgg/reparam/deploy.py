"""From train form to deploy form, at any depth of any cell."""

from __future__ import annotations

import copy
import logging
from collections import Counter

from mindspore import nn

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam.adapters import Adapted, FusedCell, adapted_cells
from mindrepvgg.reparam.copying import copy_fused
from mindrepvgg.reparam.equivalence import verify_equivalence
from mindrepvgg.reparam.finding import hidden_blocks, is_block, outer_blocks
from mindrepvgg.reparam.layers import fill_conv, prefix_of
from mindrepvgg.reparam.maps import folded_pair
from mindrepvgg.reparam.precision import computes_in_half
from mindrepvgg.reparam.probe import HALF_TOLERANCE, TOLERANCE, check_forms, folds_exactly
from mindrepvgg.reparam.tracing import trace
from mindrepvgg.text import counted, first_line, listed

log = logging.getLogger(__name__)


def to_deploy(net, inputs=None, fold_bn=False):
    """Make a new network in deploy form, which computes what `net` computes in inference; `net` stays as it was.

    Each block's branches are fused in float64, those of blocks in their branches with them. Other projects' cells are
    fused where an adapter knows them, see `register`. The rest is copied: classes, attributes, hooks, flags such as
    mixed precision, what is frozen. What only training knows, as auxiliary heads, a cell drops itself with its method
    `drop_aux_heads`. No parameter is shared with `net`. The new network has no compiled graph: its first call compiles
    the deploy form.

    A block that is not quite this package's (a subclass, other methods, other cells in its branches), and a cell that
    an adapter knows, is run in both forms, in PyNative mode, and refused where they differ.

    Args:
        net: a RepVGG, a block of this package, or any Cell that contains what can be fused at any depth.
        inputs: what `net` is called with, a Tensor or array, or a tuple of arguments. Both networks are compared on
            them with `verify_equivalence`. None: blocks that must be tried, are tried on noise, and so is what
            `fold_bn` looks at.
        fold_bn: fold every other BN that follows a convolution into it as well. The convolution gets a bias, and
            `nn.Identity` takes the place of the BN. Which BN follows which convolution is found by `trace`; pairs that
            it refuses stay as they are, and are logged with the reason. A network with the attribute `folds_bn`, as
            MindCV's have that `create_model` makes, has it so in every deploy form, and may have nothing to fold.

    Raises:
        TypeError: `net` is no Cell.
        FusionError: there is nothing to fuse, a block cannot be fused, or MindSpore does not see it.
        EquivalenceError: the two networks differ on `inputs`.
    """
    if not isinstance(net, nn.Cell):
        kind = type(net).__name__
        raise TypeError(f"to_deploy takes a mindspore.nn.Cell, and got a {kind}; mindrepvgg.load_weights reads a file")
    hidden = hidden_blocks(net)
    if hidden:
        raise FusionError(
            f"{type(net).__name__} keeps blocks where MindSpore sees no cells, so that they are neither trained nor "
            f"saved nor fused: {listed(hidden)}; put them in a mindspore.nn.CellList or SequentialCell"
        )
    whole = getattr(net, "folds_bn", False)
    fold_bn = fold_bn or whole
    known = adapted_cells(net)
    cells, left = _fused_cells(known)
    paths = dict(net.cells_and_names())
    inside = {id(inner) for path in cells for _, inner in paths[path].cells_and_names()}
    blocks = {path: block for path, block in outer_blocks(net).items() if id(block) not in inside}
    trained = {path: block for path, block in blocks.items() if not block.deploy}
    folded = _folded_pairs(net, inside, inputs) if fold_bn else {}
    foreign = _foreign_blocks(net, known, left)
    if not (trained or cells or folded or whole):
        if blocks:
            raise FusionError(f"{type(net).__name__} is in deploy form already: there is nothing to fuse")
        raise FusionError(f"{type(net).__name__} contains no block with branches: there is nothing to fuse{foreign}")
    if foreign:
        log.warning("%s: not all is fused%s", type(net).__name__, foreign)
    replaced = {**{paths[path]: fused for path, fused in cells.items()}, **folded}
    deployed = copy_fused(net, trained, inputs is None, replaced)
    if inputs is None:
        for path, fused in cells.items():
            remedy = "correct the adapter that its class is registered with"
            check_forms(path, paths[path], fused, fused.deploy_conv.in_channels, remedy)
    for _, cell in deployed.cells_and_names():
        if hasattr(cell, "drop_aux_heads"):  # what only training knows, a cell drops itself
            cell.drop_aux_heads()
    if inputs is not None:
        verify_equivalence(net, deployed, inputs, HALF_TOLERANCE if computes_in_half(net) else TOLERANCE)
    return deployed


def _fused_cells(known: dict[str, Adapted]) -> tuple[dict[str, FusedCell], dict[str, str]]:
    """The deploy forms of other projects' cells, by path; and the paths of those that have none, with the reasons."""
    fused, left = {}, {}
    for path, cell in known.items():
        try:
            fused[path] = cell.deployed(path)
        except Exception as error:  # an adapter is anybody's code
            left[path] = first_line(error)
    return fused, left


def _folded_pairs(net, inside, inputs) -> dict[nn.Cell, nn.Cell]:
    """New cells for the convolutions and the BNs of plain pairs, outside of what is fused as a whole."""
    cells = dict(net.cells_and_names())
    inside = inside | {id(inner) for block in outer_blocks(net).values() for _, inner in block.cells_and_names()}
    found = trace(net, inputs)
    replaced: dict[nn.Cell, nn.Cell] = {}
    refused = {path: why for path, why in found.refused.items() if id(cells[path]) not in inside}
    for path, bn_path in found.pairs.items():
        conv, bn = cells[path], cells[bn_path]
        if id(conv) in inside or id(bn) in inside:
            continue
        if not folds_exactly(conv) or not folds_exactly(bn):
            refused[path] = f"it, or {bn_path}, is of a class or has hooks that no formula knows"
            continue
        replaced[conv] = _with_bn(conv, bn, path, bn_path)
        replaced[bn] = nn.Identity()
    if refused:
        reasons = [f"{path} {why}" for path, why in refused.items()]
        log.info(
            "%s: %s keep what follows: %s",
            type(net).__name__,
            counted(len(refused), "convolution"),
            listed(reasons, None, "; "),
        )
    return replaced


def _with_bn(conv, bn, path, bn_path):
    """A convolution with a bias that computes what `conv` and `bn` do; where it goes over its input, is not asked."""
    kernel, bias = folded_pair(conv, bn)
    parameters = [*conv.get_parameters(), *bn.get_parameters()]
    memo = {id(parameter): None for parameter in parameters}
    folded = copy.deepcopy(conv, memo)
    folded.has_bias = True
    folded.folded_bn = bn_path  # for the proof
    dtype = conv.weight.asnumpy().dtype
    prefix = prefix_of(conv.weight, "weight", path)
    return fill_conv(folded, conv, kernel.astype(dtype), bias.astype(dtype), parameters, prefix)


def _foreign_blocks(net, known, left) -> str:
    """What a message says of other projects' re-parameterisable blocks in a network; empty where there are none.

    Args:
        net: any cell.
        known: the cells that an adapter knows, by path.
        left: the paths of those that could not be fused, with the reasons.
    """
    names = ("get_equivalent_kernel_bias", "rbr_dense", "rbr_reparam")
    within = {id(inner) for cell in known.values() for _, inner in cell.cell.cells_and_names()}
    cells = [
        cell
        for _, cell in net.cells_and_names()
        if not (is_block(cell) or isinstance(cell, FusedCell) or id(cell) in within)
        and any(hasattr(cell, name) for name in names)
        and not getattr(cell, "rbr_reparam", None)
    ]
    text = ""
    kinds = Counter(f"{type(cell).__module__}.{type(cell).__qualname__}" for cell in cells)
    if kinds:
        text += "; it has " + listed([f"{count} cells of {kind}" for kind, count in kinds.items()])
        text += ", which this package does not fuse; tell it how with mindrepvgg.reparam.register"
    if left:
        text += "; it cannot fuse " + listed([f"{path}: {why}" for path, why in left.items()])
    return text
