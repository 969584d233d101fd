"""The algebra of branches: what a block does to its input, as one value, and what can be done with such values.

A linear map is a convolution with a bias: the tuple (kernel, bias, stride, padding, dilation, groups), see `LinearMap`.
The fold of every block is a short expression of the functions here. They run on float64 NumPy arrays, for the exact
fusion of a finished network, and on tensors, for a kernel that a loss can use. The formulas stand once.

In graph mode a named tuple's fields are not constants, and the sizes here must be. So these functions return plain
tuples; `LinearMap(*result)` names the fields.

Sources: arXiv:2101.03697 (BN, 1x1, identity), arXiv:2103.13425 (sequences, average pooling), arXiv:1908.03930 (kernels
that are not square), arXiv:2203.06717 and arXiv:2311.15599 (large and dilated kernels).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, ops


class LinearMap(NamedTuple):
    """A convolution with a bias: (N, in, H, W) -> (N, out, H', W').

    Attributes:
        kernel: (out, in // groups, kh, kw), an array or a tensor.
        bias: (out,); None for zeros.
        stride: (height, width).
        padding: (top, bottom, left, right), zeros; negative ones cut the input's border off.
        dilation: (height, width).
        groups: of inputs and outputs.
    """

    kernel: Any
    bias: Any = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def identity_kernel(
    channels: int,
    groups: int = 1,
    size: tuple[int, int] = (1, 1),
    value: float = 1.0,
    rows: slice = slice(None),
) -> np.ndarray:
    """The kernel that returns its input: output i takes input i, everywhere times `value`.

    Args:
        channels: inputs and outputs.
        groups: the convolution's groups. Input i is number i % (channels // groups) of its group.
        size: (kh, kw). With `value` 1 / (kh * kw) the kernel is an average pooling.
        value: of the non-zero entries.
        rows: which outputs; all of them unless given.

    Returns:
        (channels, channels // groups, kh, kw) float64, or its rows.

    Raises:
        ValueError: `groups` does not divide `channels`.
    """
    if channels % groups:
        raise ValueError(f"channels (={channels}) must be divisible by groups (={groups})")
    outputs = np.arange(channels)[rows]
    kernel = np.zeros((len(outputs), channels // groups, *size))
    kernel[np.arange(len(outputs)), outputs % (channels // groups)] = value
    return kernel


def centre_mask(size: tuple[int, int]) -> np.ndarray:
    """(1, 1, kh, kw) for `size` (kh, kw): one in the middle, zeros around it."""
    mask = np.zeros((1, 1, *size))
    mask[0, 0, size[0] // 2, size[1] // 2] = 1
    return mask


def fold_bn(linear_map, gamma, beta, mean, var, eps):
    """The map and the BN after it, which normalises by its moving statistics: K * gamma / sigma, (b - mean) * gamma /
    sigma + beta.

    Args:
        linear_map: what the BN follows.
        gamma, beta, mean, var: (out,); var is the moving variance, and sigma = sqrt(var + eps).
        eps: the BN's epsilon.

    Raises:
        ValueError: the BN has another number of channels.
    """
    kernel, bias, stride, padding, dilation, groups = linear_map
    for vector in (gamma, beta, mean, var):
        if vector.shape != kernel.shape[:1]:
            raise ValueError(f"a BN of {vector.shape[0]} channels follows {kernel.shape[0]} outputs")
    factor = gamma / _root(var + eps)
    shift = beta - (mean if bias is None else mean - bias) * factor
    return kernel * factor.reshape((-1, 1, 1, 1)), shift, stride, padding, dilation, groups


def scale(linear_map, factor):
    """The map, each output times its own number: `factor` (out,)."""
    kernel, bias, stride, padding, dilation, groups = linear_map
    scaled = None if bias is None else bias * factor
    return kernel * factor.reshape((-1, 1, 1, 1)), scaled, stride, padding, dilation, groups


def enlarge(linear_map, top, bottom, left, right):
    """The same map with zeros around its kernel, and as many more rows and columns of padding, each of a dilation."""
    kernel, bias, stride, _, dilation, groups = linear_map
    grown = (top, bottom, left, right)
    return _surround(kernel, grown), bias, stride, _grown_padding(linear_map, grown), dilation, groups


def fill_border(linear_map, top, bottom, left, right):
    """The map with as many more rows and columns of outputs, which have what it makes of zeros: its bias.

    Raises:
        ValueError: the map is not 1x1 of stride 1, and would see values of its input from there.
    """
    kernel, bias, stride, padding, dilation, groups = linear_map
    if (*kernel.shape[2:], *stride) != (1, 1, 1, 1):
        raise ValueError(f"a border around the outputs of a kernel {kernel.shape[2:]} of stride {stride} is no padding")
    sides = padding[0] + top, padding[1] + bottom, padding[2] + left, padding[3] + right
    return kernel, bias, stride, sides, dilation, groups


def to_dense(linear_map, dilation=(1, 1)):
    """The same map with less dilation: zeros stand between the entries of its kernel.

    Args:
        linear_map: any.
        dilation: (height, width), what is left of it; each divides the map's.
    """
    kernel, bias, stride, padding, own, groups = linear_map
    rows, columns = own[0] // dilation[0], own[1] // dilation[1]
    if rows * columns > 1:
        out, per_group, height, width = kernel.shape
        corner = np.zeros((rows, 1, columns))
        corner[0, 0, 0] = 1
        spread = kernel.reshape((out, per_group, height, 1, width, 1)) * _constant(corner, kernel)
        spread = spread.reshape((out, per_group, height * rows, width * columns))
        kernel = spread[:, :, : rows * (height - 1) + 1, : columns * (width - 1) + 1]
    return kernel, bias, stride, padding, dilation, groups


def ungroup(linear_map):
    """The same map in one group: zeros stand where an output does not see an input."""
    kernel, bias, stride, padding, dilation, groups = linear_map
    if groups > 1:
        out, per_group, height, width = kernel.shape
        own = _constant(np.eye(groups).reshape((groups, 1, groups, 1, 1, 1)), kernel)
        kernel = kernel.reshape((groups, out // groups, 1, per_group, height, width)) * own
        kernel = kernel.reshape((out, groups * per_group, height, width))
    return kernel, bias, stride, padding, dilation, 1


def add(*maps, in_place=False):
    """The sum of maps over one input. Small kernels are enlarged, and dilated ones made dense where they must be.

    Args:
        maps: at least one.
        in_place: of arrays, the first map's kernel may be used for the sum where it is float64 and can be written.

    Raises:
        ValueError: the sum is no convolution: strides, channels or groups differ, or the outputs' sizes would.
    """
    total = maps[0]
    for other in maps[1:]:
        total = _add_two(total, other, in_place)
        in_place = True
    return total


def _add_two(one, other, in_place):
    if one[2] != other[2]:
        raise ValueError(f"a sum of strides {one[2]} and {other[2]} is no convolution")
    if one[5] != other[5]:
        raise ValueError(f"a sum of {one[5]} and {other[5]} groups: ungroup one of them first")
    if one[0].shape[:2] != other[0].shape[:2]:
        raise ValueError(f"a sum of kernels {one[0].shape} and {other[0].shape}, whose channels differ")
    one, other = _on_one_grid(one, other, 0)
    one, other = _on_one_grid(one, other, 1)
    one_sides, other_sides = _sides_to_grow(one, other), _sides_to_grow(other, one)
    one_size, other_size = _grown_size(one, one_sides), _grown_size(other, other_sides)
    if one_size != other_size:
        raise ValueError(
            f"a sum of kernels {one[0].shape[2:]} and {other[0].shape[2:]} with paddings {one[3]} and {other[3]}, "
            "whose outputs have other sizes"
        )
    bias = one[1] if other[1] is None else (other[1] if one[1] is None else one[1] + other[1])
    padding = _grown_padding(one, one_sides)
    return _sum(one[0], one_sides, other[0], other_sides, in_place), bias, one[2], padding, one[4], one[5]


def _on_one_grid(one, other, axis):
    """Two maps with one dilation along an axis: the largest one that has a place for all that either of them sees."""
    length, other_length = one[0].shape[2 + axis], other[0].shape[2 + axis]
    if length == 1 and (other_length > 1 or other[4][axis] > one[4][axis]):  # a single place has any dilation
        one = _to_dilation(one, axis, other[4][axis])
    if other_length == 1:
        other = _to_dilation(other, axis, one[4][axis])
    grid = _common_divisor(one[4][axis], other[4][axis])
    grid = _common_divisor(grid, abs(one[3][2 * axis] - other[3][2 * axis]))
    return _to_grid(one, axis, grid), _to_grid(other, axis, grid)


def _common_divisor(a, b):
    """Not math.gcd, which graph mode does not know."""
    while b > 0:
        a, b = b, a % b
    return a


def _to_grid(linear_map, axis, dilation):
    own = linear_map[4]
    return to_dense(linear_map, (dilation, own[1]) if axis == 0 else (own[0], dilation))


def _to_dilation(linear_map, axis, dilation):
    kernel, bias, stride, padding, own, groups = linear_map
    pair = (dilation, own[1]) if axis == 0 else (own[0], dilation)
    return kernel, bias, stride, padding, pair, groups


def _sides_to_grow(linear_map, other):
    """How many rows and columns (top, bottom, left, right) a kernel lacks where the other map's padding is larger."""
    (rows, columns), own, wanted = linear_map[4], linear_map[3], other[3]
    return (
        max(0, wanted[0] - own[0]) // rows,
        max(0, wanted[1] - own[1]) // rows,
        max(0, wanted[2] - own[2]) // columns,
        max(0, wanted[3] - own[3]) // columns,
    )


def _grown_size(linear_map, grown):
    """A kernel's (height, width), and the map's padding, with that many more rows and columns on each side."""
    height, width = linear_map[0].shape[2:]
    return height + grown[0] + grown[1], width + grown[2] + grown[3], _grown_padding(linear_map, grown)


def _grown_padding(linear_map, grown):
    padding, (rows, columns) = linear_map[3], linear_map[4]
    return (
        padding[0] + grown[0] * rows,
        padding[1] + grown[1] * rows,
        padding[2] + grown[2] * columns,
        padding[3] + grown[3] * columns,
    )


def concatenate(*maps):
    """The outputs of maps over one input, one map's after the other's.

    Raises:
        ValueError: they differ in stride, padding, dilation, kernel size or inputs, or are grouped.
    """
    first = maps[0]
    bias = first[1]
    for other in maps[1:]:
        if first[2:] != other[2:] or first[0].shape[1:] != other[0].shape[1:]:
            raise ValueError(f"outputs of kernels {first[0].shape} and {other[0].shape} do not fit side by side")
        if (first[1] is None) != (other[1] is None):
            raise ValueError("of two maps side by side, one has a bias and one has none")
        bias = None if bias is None else _join(bias, other[1])
    if first[5] != 1:
        raise ValueError("outputs of grouped maps side by side: ungroup them first")
    kernel = first[0]
    for other in maps[1:]:
        kernel = _join(kernel, other[0])
    return kernel, bias, *first[2:]


def compose(first, second):
    """The second map after the first, as one; one of the two is 1x1, and both have the same groups.

    Args:
        first, second: maps; the first's outputs are the second's inputs. In each group of the one are the channels of
            one group of the other. Where the first has a bias, the second must not pad with zeros, which leave
            something at the border that no single convolution has: see `fill_border`.

    Raises:
        ValueError: the two are no single convolution.
    """
    kernel, bias, stride, padding, dilation, groups = first
    kernel_2, bias_2, stride_2, padding_2, dilation_2, groups_2 = second
    kernel, kernel_2 = _wide(kernel), _wide(kernel_2)
    out, width, rows, columns = kernel_2.shape
    middle, inputs, first_rows, first_columns = kernel.shape
    if groups != groups_2:
        raise ValueError(f"{groups} groups and then {groups_2}: ungroup them first")
    if middle != groups * width:
        raise ValueError(f"a kernel {kernel_2.shape} of {groups} groups cannot follow {middle} outputs")
    first_is_point = (first_rows, first_columns, *stride) == (1, 1, 1, 1)
    if not first_is_point and (rows, columns, *stride_2, *padding_2) != (1, 1, 1, 1, 0, 0, 0, 0):
        raise ValueError(
            f"a kernel {kernel.shape[2:]} and then {kernel_2.shape[2:]} are not one: neither is 1x1 of stride 1"
        )
    if first_is_point and min(padding) < 0 and max(padding_2) > 0 and _cut_and_padded(padding, padding_2):
        raise ValueError("a border is cut off and padded again: zeros stand where the input has values")
    if first_is_point and bias is not None and max(padding_2) > 0:
        raise ValueError("zeros are padded between two convolutions of which the first has a bias: the border differs")
    # Of each group, a matrix for each place of the larger kernel: (groups, out, places, middle) x (middle, inputs).
    left = kernel_2.reshape((groups, out // groups, width, rows * columns)).swapaxes(2, 3)
    if first_is_point:
        product = (left @ kernel.reshape((groups, 1, width, inputs))).swapaxes(2, 3)
        size = (rows, columns)
    else:
        places = first_rows * first_columns
        flat = kernel.reshape((groups, width, inputs * places))
        product = left.reshape((groups, out // groups, width)) @ flat
        size = (first_rows, first_columns)
    total = kernel_2.sum((2, 3)).reshape((groups, out // groups, width))
    through = None if bias is None else (total * bias.reshape((groups, 1, width))).sum(2).reshape((-1,))
    if through is not None and bias_2 is not None:
        through = through + bias_2
    elif through is None:
        through = bias_2
    sides = (
        padding[0] + padding_2[0],
        padding[1] + padding_2[1],
        padding[2] + padding_2[2],
        padding[3] + padding_2[3],
    )
    return (
        product.reshape((out, inputs, size[0], size[1])),
        through,
        stride_2 if first_is_point else stride,
        sides,
        dilation_2 if first_is_point else dilation,
        groups,
    )


def _cut_and_padded(cut, padded):
    """Whether one side is cut off by the first of two maps and padded by the second."""
    return any([a < 0 and b > 0 for a, b in zip(cut, padded)])  # noqa: B905, C419 - compiled


def _root(x):
    """The square root of any array type. Not x ** 0.5: MindSpore's power gives other last bits in a process's first
    steps than later, and a resumed run would not repeat the one that was stopped.
    """
    return x.sqrt() if hasattr(x, "sqrt") else np.sqrt(x)


def _surround(kernel, sides):
    """Zeros around the last two axes: (top, bottom, left, right) of them."""
    top, bottom, left, right = sides
    if sides == (0, 0, 0, 0):
        return kernel
    if hasattr(kernel, "sqrt"):
        # Not ops.pad: on a CPU, its gradient in a compiled step never ends after some steps (MindSpore 2.10).
        return ops.Pad(((0, 0), (0, 0), (top, bottom), (left, right)))(kernel)
    return np.pad(kernel, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _sum(one, one_sides, other, other_sides, in_place):
    """The sum of two kernels with zeros around them; of arrays, in the first one where that is its own and as large."""
    if hasattr(one, "sqrt"):
        return _surround(one, one_sides) + _surround(other, other_sides)
    total = _surround(one, one_sides)
    own = total is not one or (in_place and total.flags.writeable)
    total = total.astype(np.float64, copy=not own)
    top, left = other_sides[0], other_sides[2]
    total[:, :, top : top + other.shape[2], left : left + other.shape[3]] += other
    return total


def _wide(kernel):
    """A kernel in float64, where it is an array."""
    return kernel if hasattr(kernel, "sqrt") else kernel.astype(np.float64, copy=False)


def _join(one, other):
    """Two arrays of one type, one after the other along the first axis."""
    return ops.concat((one, other)) if hasattr(one, "sqrt") else np.concatenate((one, other))


def _constant(array, kernel):
    """A NumPy array beside a kernel of any array type."""
    return Tensor(array, kernel.dtype) if hasattr(kernel, "sqrt") else array
