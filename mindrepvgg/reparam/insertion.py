"""Blocks with branches in the place of a network's convolutions: any network, to be trained and folded again."""

from __future__ import annotations

import fnmatch
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import mindspore as ms
from mindspore import nn

from mindrepvgg.errors import FusionError, UserError
from mindrepvgg.reparam.copying import copy_with
from mindrepvgg.reparam.finding import is_block, rep_blocks
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.keep_function import calibrate, take_over
from mindrepvgg.reparam.layers import (
    NORMS,
    arguments_of,
    batch_norm,
    epsilon_of,
    grouped_of,
    pair,
    prefix_of,
    set_grouped,
)
from mindrepvgg.reparam.maps import Exact, is_convolution, is_norm, map_of
from mindrepvgg.reparam.named_blocks import block_class
from mindrepvgg.reparam.probe import folds_exactly
from mindrepvgg.reparam.tracing import example_inputs, trace
from mindrepvgg.text import counted, first_line, listed, patterns, quoted

log = logging.getLogger(__name__)


class Insertion(NamedTuple):
    """What `insert` did; the new network has it as its attribute `insertion`.

    Attributes:
        replaced: the path of each convolution that became a block, and the class of the block.
        refused: the path of each other convolution that was chosen, and the reason.
        remarks: what else there is to know, in sentences.
    """

    replaced: dict[str, str]
    refused: dict[str, str]
    remarks: tuple[str, ...] = ()

    def format(self) -> str:
        """Lines for people: what was replaced, and what was not."""
        kinds = Counter(self.replaced.values())
        became = listed([f"{count} became {kind}" for kind, count in kinds.items()], None) or "nothing was replaced"
        chosen = counted(len(self.replaced) + len(self.refused), "convolution")
        lines = [f"of {chosen}, {became}", *self.remarks]
        return "\n".join([*lines, *(f"{path} stays: {why}" for path, why in self.refused.items())])


def insert(
    net: nn.Cell,
    block: str | Callable = "dbb",
    where: str | Iterable[str] | Callable | None = None,
    inputs=None,
    keep_function: bool = False,
) -> nn.Cell:
    """Make a new network in which convolutions, each with its BN, became blocks; `net` stays as it was.

    A block takes the place of the convolution, and `nn.Identity` the place of the BN. Which BN follows which
    convolution is found by running the network, see `trace`. Blocks in blocks are possible: name a convolution in a
    block with `where`. The new network is trained as any other, and `to_deploy` folds it into the layout of before.
    Insert before mixed precision is set.

    The new network has the attribute `insertion`, see `Insertion`: what was replaced, and what was not with the reason.
    The same is logged.

    Args:
        net: any cell.
        block: the name of a block, one of `named_blocks.BLOCKS`; a `FoldableBlock`, or a function that returns one. It
            is called with those of these arguments that it takes: in_channels, out_channels, kernel_size, stride,
            padding, dilation, groups, activation (None), norm (makes a BN like the one that is replaced, of a number of
            channels); with channels in the place of the first two where it takes that.
        where: which convolutions: a pattern of paths, or several, as of `fnmatch` ('layer1.*'), or a function
            (path, convolution) -> bool. None: those whose kernel is larger than 1x1, outside of blocks.
        inputs: what `net` is called with, a Tensor or array, or a tuple of arguments; None: see `trace`.
        keep_function: give the blocks values with which the new network computes in inference what `net` computes, to
            rounding. In training too, where every further branch ends in a BN: it starts with gamma 0, and its
            statistics are those of `inputs`. A block with a BN after the sum (QARepVGG), or with a branch without BN,
            keeps the function in inference alone; `insertion.remarks` says so. False: the blocks are as new, and what
            the convolutions had learnt is gone.

    Returns:
        The new network.

    Raises:
        TypeError: `net` is no Cell.
        UserError: `block` is unknown, or `where` is none of what it can be.
        FusionError: nothing was replaced, or the network cannot be run or copied.
    """
    if not isinstance(net, nn.Cell):
        raise TypeError(f"insert takes a mindspore.nn.Cell, and got a {type(net).__name__}")
    make, arguments = block_class(block) if isinstance(block, str) else block, example_inputs(net, inputs)
    if not callable(make):
        raise UserError(f"block (={quoted(make)}) must be the name of a block, or a class or function that makes one")
    cells = dict(net.cells_and_names())
    chosen, remarks = _chosen(net, where)
    found = trace(net, inputs if inputs is None else arguments)
    paired = [path for path in chosen if path in found.pairs]
    refused = {path: found.refused.get(path, "is no convolution of two dimensions") for path in chosen}
    made, kept_in_training = {}, True
    for path in paired:
        conv, bn = cells[path], cells[found.pairs[path]]
        try:
            made[path] = _block_for(make, conv, bn)
            if keep_function:
                kept_in_training &= take_over(made[path], conv, bn)
            else:
                made[path].fused_kernel_bias()  # its branches make the convolution that it was built for
            del refused[path]
        except ValueError as error:
            refused[path] = first_line(error)
            made.pop(path, None)
    for path, new in made.items():
        _settle(new, path, cells[path], cells[found.pairs[path]])
    remarks += () if kept_in_training else (_INFERENCE_ALONE,)
    report = Insertion({path: type(new).__name__ for path, new in made.items()}, refused, remarks)
    if not made:
        raise FusionError(f"{type(net).__name__}: no convolution was replaced; {_why(report, where)}")
    replaced: dict[nn.Cell, nn.Cell] = {cells[path]: new for path, new in made.items()}
    replaced |= {cells[found.pairs[path]]: nn.Identity() for path in made}
    result = copy_with(net, replaced)
    if keep_function:
        calibrate(result, made.values(), arguments)
    result.insertion = report
    level = logging.WARNING if refused or report.remarks else logging.INFO
    log.log(level, "%s: %s", type(net).__name__, report.format().replace("\n", "; "))
    return result


_INFERENCE_ALONE = (
    "the function is kept in inference alone: in training, a branch without BN, or a BN after the sum, normalises by "
    "other statistics than the BN of before"
)


def _why(report, where):
    reasons = [f"{path or 'the whole network'}: {why}" for path, why in report.refused.items()]
    none = "where chooses none" if where is not None else "outside of blocks, none is larger than 1x1"
    return listed(reasons, 3, "; ") or none


def _chosen(net, where) -> tuple[list[str], tuple[str, ...]]:
    """The paths of the convolutions that `where` chooses; and a remark, where a pattern matches none."""
    convs = {path: cell for path, cell in net.cells_and_names() if is_convolution(cell)}
    if where is None:
        within = {id(inner) for block in rep_blocks(net).values() for _, inner in block.cells_and_names()}
        return [p for p, c in convs.items() if math.prod(pair(c.kernel_size)) > 1 and id(c) not in within], ()
    if callable(where):
        return [path for path, conv in convs.items() if where(path, conv)], ()
    wanted = patterns(where)
    if wanted is None:
        kind = type(where).__name__
        raise UserError(f"where (of type {kind}) must be a pattern of paths, several, or a function (path, conv)")
    matches = {pattern: [path for path in convs if fnmatch.fnmatchcase(path, pattern)] for pattern in wanted}
    idle = [quoted(pattern) for pattern, paths in matches.items() if not paths]
    matched = {path for paths in matches.values() for path in paths}
    if not matched:
        raise FusionError(
            f"{type(net).__name__}: no convolution was replaced; {listed(idle)} matches none of "
            f"{listed(list(convs), 60) or 'no convolutions'}"
        )
    remarks = (f"where: no convolution is called {listed(idle)}",) if idle else ()
    return [path for path in convs if path in matched], remarks


def _block_for(make, conv, bn) -> FoldableBlock:
    """A new block of the geometry of a convolution, with BN like the one after it; ValueError where there is none."""
    norm = next((known for known in NORMS if isinstance(bn, known)), None)
    if norm is None or not folds_exactly(bn) or getattr(bn, "process_groups", None):
        raise ValueError(f"its BN is of a class ({type(bn).__name__}), or has hooks or a switch, that no block copies")
    if not folds_exactly(conv):
        raise ValueError(f"is of a class ({type(conv).__name__}), or has hooks, that no block copies")
    if conv.weight.dtype in (ms.float16, ms.bfloat16):
        raise ValueError(f"its weights are {conv.weight.dtype}; blocks are inserted before half precision is set")
    kernel, _, stride, padding, dilation, groups = map_of(conv, Exact())
    wanted = {
        "in_channels": kernel.shape[1] * groups,
        "out_channels": kernel.shape[0],
        "kernel_size": kernel.shape[2] if kernel.shape[2] == kernel.shape[3] else kernel.shape[2:],
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "activation": None,
        "norm": functools.partial(batch_norm, norm=norm, eps=epsilon_of(bn), momentum=bn.momentum),
    }
    taken = arguments_of(make)
    if "channels" in taken:  # a depthwise block
        wanted["channels"] = wanted.pop("in_channels")
        del wanted["out_channels"]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    try:
        block = make(**{name: value for name, value in wanted.items() if takes_all or name in taken})
    except TypeError as error:
        raise ValueError(f"no block was made: {first_line(error)}") from error
    if not is_block(block) or block.deploy:
        raise ValueError(f"block (={quoted(make)}) makes a {type(block).__name__}, and no FoldableBlock in train form")
    own = block.kernel_shape, pair(block.stride), block.padding, pair(block.dilation), block.groups
    if own != (kernel.shape, stride, padding, dilation, groups):
        raise ValueError(
            f"{type(block).__name__} makes kernel, stride, padding, dilation and groups {own} of "
            f"{(kernel.shape, stride, padding, dilation, groups)}"
        )
    return set_grouped(block, grouped_of(conv))


def _settle(block, path, conv, bn):
    """Let a new block be called, trained, frozen and computed as what it replaces."""
    block.update_parameters_name(prefix_of(conv.weight, "weight", path))
    block.set_train(conv.training)
    for _, cell in block.cells_and_names():
        like = bn if is_norm(cell) else conv
        cell.set_train(like.training)
        if is_convolution(cell) or like is bn:
            cell.add_flags_recursive(**{k: v for k, v in like.get_flags().items() if k in ("fp16", "fp32", "bf16")})
        trainable = like.gamma.requires_grad if like is bn else conv.weight.requires_grad
        for parameter in cell.trainable_params(recurse=False):
            parameter.requires_grad = trainable
