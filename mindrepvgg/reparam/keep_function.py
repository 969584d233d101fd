"""Blocks that compute what the convolution and the BN in whose place they stand computed."""

from __future__ import annotations

from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.reparam.compare import difference
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import epsilon_of
from mindrepvgg.reparam.leaves import BN_LEAVES
from mindrepvgg.reparam.maps import folded_pair, is_convolution, is_norm, norm_of
from mindrepvgg.reparam.parts import Sum
from mindrepvgg.runtime.device import execution_mode, inference_mode

# What the weights of a block and of what it replaces may differ by, over the largest: float32 rounds them.
_ROUNDING = 1e-5


def take_over(block: FoldableBlock, conv: nn.Cell, bn: nn.Cell) -> bool:
    """Give a new block values with which it computes, in inference, what a convolution and its BN compute.

    The branch with the large kernel takes the convolution's weights. Every other branch that ends in a BN starts with
    gamma and beta 0. What the rest computes, the large kernel is without.

    Args:
        block: as built, without activation and SE.
        conv, bn: in the block's geometry.

    Returns:
        Whether the block computes the same in training mode too.

    Raises:
        ValueError: it is not known how for this block, or the convolution's weights are not finite.
    """
    kernel, bias = folded_pair(conv, bn)
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise ValueError("its weights, or those of its BN, are not finite: there is no function to keep")
    branches = _branches(block)
    main = _main(branches, block)
    if main is None:
        raise ValueError(f"{type(block).__name__} has no branch of one {block.kernel_size} convolution to take it over")
    bare = False
    for cells in branches:
        if cells is main:
            continue
        if cells and is_norm(cells[-1]):
            _set(cells[-1], gamma=0, beta=0)
        else:
            bare = True
    after = [norm_of(getattr(block, name)) for name in block.after_sum]
    simple = not after and not bare and len(main) == 2
    large, norms = main[0], [*main[1:], *after]
    if simple:
        _become(norms[0], bn, conv)
        _set(large, weight=conv.weight.asnumpy())
    else:
        # All BNs do nothing at first, and the large kernel makes up for the other branches. A BN after the sum becomes
        # the old one; without it, the old one is part of what the large kernel has to be.
        for norm in norms:
            _neutral(norm)
        _set(large, weight=0)
        rest_kernel, rest_bias = block.fused_kernel_bias()
        wanted, shift = (conv.weight.asnumpy(), -rest_bias) if after else (kernel, bias - rest_bias)
        _set(large, weight=wanted - rest_kernel)
        if after:
            _become(after[-1], bn, conv)
        if main[1:]:
            _set(main[-1], beta=shift)
        elif after:
            _set(after[-1], moving_mean=after[-1].moving_mean.asnumpy() - shift)
    for expected, actual in zip((kernel, bias), block.fused_kernel_bias(), strict=True):
        if not difference(expected, actual)[1] <= _ROUNDING:
            raise ValueError(f"{type(block).__name__} cannot be given the function of a convolution")
    return simple


def _branches(block) -> list[list[nn.Cell]]:
    """For each branch, its convolutions and BNs in their order; the cells of a sum are branches of their own."""
    found = []
    for chain in block.chains:
        cells = [getattr(block, name) for name in chain]
        parts = [[cell] for cell in cells[0].cells()] if len(cells) == 1 and isinstance(cells[0], Sum) else [cells]
        for part in parts:
            inner = [norm_of(c) for cell in part for _, c in cell.cells_and_names()]
            found.append([c for c in dict.fromkeys(inner) if is_convolution(c) or is_norm(c)])
    return found


def _main(branches, block) -> list[nn.Cell] | None:
    """The first branch that is one convolution of the block's kernel, and a BN or none; None without one."""
    for cells in branches:
        kinds = [is_convolution(cell) for cell in cells]
        if kinds in ([True], [True, False]) and cells[0].weight.shape == block.kernel_shape and not cells[0].has_bias:
            return cells
    return None


def _become(norm, bn, conv):
    """Give a BN what another one has; the bias of the convolution before that goes into the mean."""
    values = {leaf: getattr(bn, leaf).asnumpy() for leaf in BN_LEAVES}
    if conv.has_bias:
        values["moving_mean"] = values["moving_mean"] - conv.bias.asnumpy()
    _set(norm, **values)


def _neutral(norm):
    """Let a BN return its input in inference."""
    _set(norm, gamma=np.sqrt(1 + epsilon_of(norm)), beta=0, moving_mean=0, moving_variance=1)


def _set(cell, **values):
    """Set parameters of a cell, by name, to arrays or one number."""
    for leaf, value in values.items():
        parameter = getattr(cell, leaf)
        array = np.broadcast_to(value, parameter.shape).astype(parameter.asnumpy().dtype)
        parameter.set_data(Tensor(np.ascontiguousarray(array)))


def calibrate(net: nn.Cell, blocks: Iterable[nn.Cell], arguments: tuple):
    """Set the moving statistics in the branches that `take_over` gave a gamma of 0, by running a network in inference.

    Args:
        net: contains the blocks; it computes the same afterwards.
        blocks: after `take_over`.
        arguments: what `net` is called with.
    """

    def observe(norm, inputs):
        maps = inputs[0].asnumpy().astype(np.float64)
        _set(norm, moving_mean=maps.mean((0, 2, 3)), moving_variance=maps.var((0, 2, 3)))

    handles = []
    for block in blocks:
        branches = _branches(block)
        main = _main(branches, block)
        for cells in branches:
            if cells is not main and cells and is_norm(cells[-1]):
                norms = [cell for cell in cells if is_norm(cell)]
                handles += [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        with inference_mode(net), execution_mode(ms.PYNATIVE_MODE):
            net(*arguments)
    finally:
        for handle in handles:
            handle.remove()
