"""The picture of what folding does, of a real block of a network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from mindspore import nn

from mindrepvgg.drawing.folding import draw_fold
from mindrepvgg.errors import UserError
from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.finding import outer_blocks
from mindrepvgg.reparam.layers import pair
from mindrepvgg.reparam.maps import Exact, chain_map
from mindrepvgg.text import printable

_WORDS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


class Fold(NamedTuple):
    """A block before and after folding.

    Attributes:
        path: of the block in its network.
        branches: the kernel (out, in, kh, kw) of each branch with its BN, zeros around a smaller one; float64.
        kernel: of the one convolution, as it is saved; float32.
    """

    path: str
    branches: dict[str, np.ndarray]
    kernel: np.ndarray

    def draw(self, target: Any, network: str = "") -> None:
        """Draw it as a PNG, see `drawing.folding.draw_fold`; target: a path or a binary stream."""
        largest = np.abs(self.kernel).max()
        apart = float(np.abs(sum(self.branches.values()) - self.kernel).max() / largest)
        count = len(self.branches)
        heading = f"{_WORDS.get(count, count)} branches become one convolution"
        where = f"block {printable(self.path)}{f' of {network}' if network else ''}"
        exact = f"the sum and the folded kernel differ by {apart:.0e} of the largest weight"
        draw_fold(self.branches, self.kernel, target, heading, f"{where}; each BN is in its kernel; {exact}")


def fold_of(net: nn.Cell, path: str | None = None) -> Fold:
    """A block of a network in train form, and what it is folded into.

    Args:
        net: a network, or a block.
        path: the block's path in it; None: the first one with the most branches whose kernels add up.

    Raises:
        UserError: there is no such block.
    """
    blocks = {name: block for name, block in outer_blocks(net).items() if _can_be_drawn(block)}
    if path is not None:
        blocks = {name: block for name, block in blocks.items() if name == path}
    if not blocks:
        which = "no block" if path is None else f"no block {printable(path)}"
        raise UserError(f"{which} with branches that add up is in this network; give one in train form")
    path, block = max(blocks.items(), key=lambda item: len(item[1].chains))
    read, branches = Exact(), {}
    for chain in block.chains:
        found = chain_map(block, chain, read)
        # A map of zeros on the block's grid: the sum with it has the branch's kernel in its place there.
        empty = np.zeros(block.kernel_shape), None, found[2], block.padding, pair(block.dilation), block.groups
        branches[_name(chain, found)] = np.array(algebra.add(empty, found)[0])
    return Fold(path, branches, block.fused_kernel_bias(np.float32)[0])


def _can_be_drawn(block):
    """Whether the kernels of a block's branches add up to the folded one."""
    return not block.deploy and len(block.chains) > 1 and not block.after_sum and block.groups == 1


def _name(chain, linear_map):
    """What a branch is, in words."""
    if not chain or chain == ("rbr_identity",):
        return "identity: BN alone" if chain else "identity"
    height, width = linear_map[0].shape[2:]
    known = {"rbr_dense", "rbr_1x1"}.issuperset(chain)
    return f"conv {height}×{width}, BN" if known else f"{', '.join(chain)} ({height}×{width})"
