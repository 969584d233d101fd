"""The linear maps of cells: of a convolution, of a chain of cells, of a block in a block.

A cell's values are read by a function read(cell, leaf), which decides what the algebra runs on: `differentiable` gives
the parameters themselves, `Exact` float64 arrays. A cell that knows its own map has the method `linear_map(read)`;
one whose map depends on what is before it has `map_after(linear_map, read)`, which gives the map of both.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.layers import epsilon_of, geometry


def differentiable(cell, leaf):
    """Read a parameter, or the number `eps`, of a cell as it is.

    With the leaf 'identity', `cell` is the arguments of `algebra.identity_kernel`: channels, groups, size, value.
    """
    if leaf == "identity":
        return Tensor(algebra.identity_kernel(*cell), ms.float32)
    return getattr(cell, leaf)


class Exact:
    """Read parameters as arrays: float64 vectors, and kernels of their own type, whose products are float64.

    Attributes:
        rows: the output channels that are read; all of them where one map is the input of another.
    """

    def __init__(self):
        self.rows = slice(None)
        self._arrays = {}

    def of(self, rows: slice) -> Exact:
        """A reader of some output channels; what either has read, both have."""
        some = Exact()
        some.rows, some._arrays = rows, self._arrays
        return some

    def __call__(self, cell, leaf):
        """Read one as `differentiable` does; raises ValueError for a variance that is negative or NaN."""
        if leaf == "identity":
            channels, groups, size, value = cell
            return algebra.identity_kernel(channels, groups, size, value, self.rows)
        key = id(cell), leaf
        if key not in self._arrays:
            self._arrays[key] = float(epsilon_of(cell)) if leaf == "eps" else _array(getattr(cell, leaf), leaf)
        return self._arrays[key] if leaf == "eps" else self._arrays[key][self.rows]


def _array(parameter, leaf):
    array = parameter.asnumpy()
    if array.ndim == 1:  # a kernel becomes float64 where it meets one: a copy would only cost time and memory
        array = array.astype(np.float64)
    if leaf == "moving_variance" and not array.min() >= 0:  # NaN as well
        kind = "negative" if array.min() < 0 else "not a number"
        raise ValueError(f"{parameter.name} is {kind} ({array.min():g}): damaged statistics")
    array.flags.writeable = False  # sums are made in place, and this is not theirs
    return array


def norm_of(cell: nn.Cell) -> nn.Cell:
    """A BN without what MindSpore's automatic mixed precision O2 puts around it: a cell each time it is applied."""
    return norm_of(cell._backbone) if hasattr(cell, "_backbone") else cell


def is_norm(cell) -> bool:
    """Whether a cell is a BN of any class: by the statistics that it keeps."""
    return hasattr(cell, "moving_mean")


def fold_norm(linear_map, norm, read):
    """The map with the BN after it; `norm` is the BN's cell."""
    bn = norm_of(norm)
    return algebra.fold_bn(
        linear_map,
        read(bn, "gamma"),
        read(bn, "beta"),
        read(bn, "moving_mean"),
        read(bn, "moving_variance"),
        read(bn, "eps"),
    )


def folded_pair(conv, bn) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and the bias, in float64, of a convolution and the BN after it; in any padding."""
    read = Exact()
    bias = read(conv, "bias") if conv.has_bias else None
    alone = read(conv, "weight").astype(np.float64), bias, (1, 1), (0, 0, 0, 0), (1, 1), 1
    kernel, bias, *_ = fold_norm(alone, bn, read)
    return kernel, bias


def constant_scale(norm):
    """A BN's gamma / sqrt(moving variance + eps) as (out, 1, 1, 1), a constant for the gradient."""
    bn = norm_of(norm)
    return ops.stop_gradient(bn.gamma / ops.sqrt(bn.moving_variance + bn.eps)).reshape((-1, 1, 1, 1))


def identity(channels, groups, read):
    """The map of a branch that returns its input."""
    return average(channels, groups, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), read)


def average(channels, groups, size, stride, padding, dilation, read):
    """The map of an average pooling that counts what is padded; arguments as the attributes of `LinearMap`."""
    share = 1 / (size[0] * size[1])
    return read((channels, groups, size, share), "identity"), None, stride, padding, dilation, groups


def map_of(cell, read):
    """The map of a cell that knows it, of a convolution, or of a SequentialCell that begins with one.

    Raises:
        ValueError: the cell is something else, or what it computes is no single convolution.
    """
    if hasattr(cell, "linear_map"):
        return cell.linear_map(read)
    if hasattr(cell, "cell_list"):
        return sequence_map(cell.cell_list, read)
    if not is_convolution(cell):
        raise ValueError(f"what {cell.cls_name} computes is not known as a convolution")
    bias = read(cell, "bias") if cell.has_bias else None
    groups = cell.in_channels // cell.weight.shape[1]
    return read(cell, "weight"), bias, cell.stride, padding_of(cell), cell.dilation, groups


def is_convolution(cell) -> bool:
    """Whether a cell is a convolution: by what it knows of itself, as it may be of a class of our own."""
    return hasattr(cell, "has_bias") and hasattr(cell, "pad_mode")


def sequence_map(cells, read, total=None):
    """The map of cells that follow each other; `total` is the map before them, None for nothing.

    Raises:
        ValueError: what the cells compute is no single convolution.
    """
    for cell in cells:
        if hasattr(cell, "map_after") or is_norm(norm_of(cell)):
            if total is None:
                raise ValueError("a BN with nothing before it says nothing of its groups")
            total = cell.map_after(total, read) if hasattr(cell, "map_after") else fold_norm(total, cell, read)
        elif cell.cls_name != "Identity":
            following = map_of(cell, read)
            total = following if total is None else algebra.compose(total, following)
    if total is None:
        raise ValueError("a sequence without a convolution is not known as one")
    return total


def padding_of(conv):
    """(top, bottom, left, right) of a convolution's zeros."""
    if conv.pad_mode == "pad":
        padding = conv.padding
        return padding if isinstance(padding, tuple) else (padding, padding, padding, padding)
    if conv.pad_mode == "valid":
        return (0, 0, 0, 0)
    if conv.stride != (1, 1):
        raise ValueError("a strided convolution of pad_mode 'same' pads by its input's size")
    height = conv.dilation[0] * (conv.kernel_size[0] - 1)
    width = conv.dilation[1] * (conv.kernel_size[1] - 1)
    return (height // 2, height - height // 2, width // 2, width - width // 2)


def chain_output(block, chain, x):
    """What comes out of a chain of a block's cells, by their attributes, for x; x itself for none."""
    for name in chain:
        x = getattr(block, name)(x)
    return x


def chain_map(block, chain, read):
    """The map of a chain of a block's cells over the block's input."""
    cells = [getattr(block, name) for name in chain]
    # What has a map after another one changes each channel: at the beginning of a chain, that is the input's.
    starts_bare = not cells or is_norm(norm_of(cells[0])) or cells[0].cls_name == "Identity"
    starts_bare = starts_bare or hasattr(cells[0], "map_after")
    start = identity(block.in_channels, block.groups, read) if starts_bare else None
    return sequence_map(cells, read, start)


def check_convolution(conv: nn.Conv2d):
    """Raise ValueError where a convolution's operator goes over its input in another way than its attributes say."""
    said = {"stride": conv.stride, "dilation": conv.dilation, "pad": conv.padding}
    found = geometry(conv)
    if conv.pad_mode == found["pad_mode"] == "pad":
        wanted = {key: _spread(value, 4 if key == "pad" else 2) for key, value in said.items()}
        actual = {key: _spread(found[key], len(value)) for key, value in wanted.items()}
        if wanted == actual:
            return
    raise ValueError(f"a convolution computes with {found}, and its attributes say {said}")


def _spread(value, count):
    """A number or a tuple as a tuple of `count`; an operator says (1, 1, height, width)."""
    return (value,) * count if isinstance(value, int) else tuple(value)[-count:]
