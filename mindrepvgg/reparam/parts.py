"""The cells that branches are made of, and squeeze-and-excitation, which follows them."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.container import Container
from mindrepvgg.reparam.layers import batch_norm, conv2d
from mindrepvgg.reparam.maps import average, differentiable, fold_norm, identity, map_of, padding_of, sequence_map


class ConvBN(nn.Cell):
    """A bias-free convolution and its BN: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride).

    Args:
        in_channels, out_channels, size, stride, groups, dilation, padding: of the convolution, see `layers.conv2d`.
        norm: makes a BN of a number of channels.
    """

    def __init__(
        self, in_channels, out_channels, size, stride=1, groups=1, dilation=1, norm=nn.BatchNorm2d, padding=None
    ):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, size, stride, padding, dilation, groups)
        self.bn = batch_norm(out_channels, norm)

    def construct(self, x):
        """Convolve (N, in, H, W) and normalise."""
        return self.bn(self.conv(x))

    def linear_map(self, read):
        """The map of both, see `maps.map_of`."""
        return sequence_map((self.conv, self.bn), read)


class Sum(Container):
    """The sum of cells over one input; the cells are called `0`, `1`, ..."""

    def construct(self, x):
        """(N, in, H, W) -> (N, out, H', W')."""
        total = self.cell_list[0](x)
        for cell in self.cell_list[1:]:
            total = total + cell(x)
        return total

    def linear_map(self, read):
        """The sum of the cells' maps, see `maps.map_of`."""
        total = map_of(self.cell_list[0], read)
        for cell in self.cell_list[1:]:
            total = algebra.add(total, map_of(cell, read))
        return total


class BorderBN(Container):
    """A BN, and around its output a border of what it makes of zeros in inference, instead of zeros.

    (N, C, H, W) -> (N, C, top + H + bottom, left + W + right). With it a convolution, this BN and another convolution
    are one convolution, at the border too. The border has no gradient. Source: arXiv:2103.13425, section 3.2.

    Args:
        channels: of the input.
        padding: (top, bottom, left, right), the border.
        norm: makes a BN of a number of channels.

    Raises:
        ValueError: a side of the border is negative.
    """

    # What comes before this is the input of another convolution.
    BY_ROWS = False

    def __init__(self, channels, padding, norm):
        super().__init__()
        if min(padding) < 0:
            raise ValueError(f"padding (={padding}) must not be negative where a BN fills it")
        self.channels, self.padding = channels, padding
        self.bn = norm(channels)
        top, bottom, left, right = padding
        # Not ops.pad, see `algebra`.
        self.pad = ops.Pad(((0, 0), (0, 0), (top, bottom), (left, right)))

    def construct(self, x):
        """Normalise (N, C, H, W), and put the border around it."""
        y = self.bn(x)
        if max(self.padding) == 0:
            return y
        point = fold_norm(identity(self.channels, self.channels, differentiable), self.bn, differentiable)
        border = ops.stop_gradient(point[1]).astype(y.dtype).reshape((1, -1, 1, 1))
        return self.pad(y) + (1 - self.pad(ops.ones_like(y[:1, :1]))) * border

    def map_after(self, linear_map, read):
        """The map of a 1x1 convolution and this, see `maps`."""
        return algebra.fill_border(fold_norm(linear_map, self.bn, read), *self.padding)


class PointThenConv(Container):
    """A 1x1 convolution, a BN that fills the border, a convolution, a BN: (N, C_in, H, W) -> (N, C_out, H', W').

    Where the 1x1 keeps the number of channels, the input is added to what it gives, and its weights are zeros at first:
    it starts as the identity, and is called `idconv1` instead of `conv1`.

    Args:
        in_channels, out_channels, size, stride, padding, dilation, groups: of both convolutions as one; see
            `layers.conv2d`, but the padding is (top, bottom, left, right).
        width: the channels in between.
        norm: makes a BN of a number of channels.
    """

    def __init__(self, in_channels, out_channels, size, stride, padding, dilation, groups, width, norm):
        super().__init__()
        self.groups = groups
        self.adds_input = width == in_channels
        self.first = "idconv1" if self.adds_input else "conv1"
        first = conv2d(in_channels, width, 1, groups=groups)
        if self.adds_input:
            first.weight.set_data(initializer("zeros", first.weight.shape))
        setattr(self, self.first, first)
        self.bn1 = BorderBN(width, padding, norm)
        self.conv2 = conv2d(width, out_channels, size, stride, 0, dilation, groups)
        self.bn2 = norm(out_channels)

    def construct(self, x):
        """Convolve (N, in, H, W) twice."""
        y = getattr(self, self.first)(x)
        if self.adds_input:
            y = y + x
        return self.bn2(self.conv2(self.bn1(y)))

    def linear_map(self, read):
        """The map of all of them, see `maps.map_of`."""
        first = map_of(getattr(self, self.first), read)
        if self.adds_input:
            first = algebra.add(first, identity(first[0].shape[0], self.groups, read))
        return sequence_map((self.bn1, self.conv2, self.bn2), read, first)


class Average(nn.Cell):
    """An average pooling that counts what is padded: (N, C, H, W) -> (N, C, H', W').

    By a depthwise convolution: MindSpore's average poolings have no dilation.

    Args:
        channels: of the input.
        size, stride, padding, dilation: as of `layers.conv2d`.
        groups: of the map that this is in a block.
    """

    def __init__(self, channels, size, stride=1, padding=None, dilation=1, groups=1):
        super().__init__()
        conv = conv2d(channels, channels, size, stride, padding, dilation, channels)
        self.channels, self.groups = channels, groups
        self.place = conv.kernel_size, conv.stride, padding_of(conv), conv.dilation
        self.pool = conv.conv2d
        height, width = conv.kernel_size
        self.kernel = Tensor(np.full(conv.weight.shape, 1 / (height * width), np.float32))

    def construct(self, x):
        """The means of the windows of x (N, C, H, W)."""
        return self.pool(x, self.kernel.astype(x.dtype))

    def linear_map(self, read):
        """The map of this in `groups` groups, see `maps.map_of`."""
        return average(self.channels, self.groups, *self.place, read)


class ChannelScale(nn.Cell):
    """Each channel times a number of its own, `weight` (C,): (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
        start: all numbers at first.
    """

    def __init__(self, channels, start=1.0):
        super().__init__()
        self.weight = Parameter(initializer("ones", channels) if start == 1 else Tensor(np.full(channels, start, "f4")))

    def construct(self, x):
        """Scale the channels of (N, C, H, W)."""
        return x * self.weight.reshape((1, -1, 1, 1))

    def map_after(self, linear_map, read):
        """The map before it and this, see `maps`."""
        return algebra.scale(linear_map, read(self, "weight"))


class SqueezeExcite(nn.Cell):
    """Scale each channel by a weight computed from the map's mean: x * sigmoid(up(relu(down(mean(x))))).

    (N, C, H, W) -> (N, C, H, W), for a map of any size and shape. Source: arXiv:1709.01507.
    """

    def __init__(self, channels, squeezed):
        super().__init__()
        self.down = conv2d(channels, squeezed, 1, bias=True)
        self.up = conv2d(squeezed, channels, 1, bias=True)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def construct(self, x):
        """Scale each channel of x (N, C, H, W) by a weight between 0 and 1."""
        weights = self.relu(self.down(x.mean((2, 3), keep_dims=True)))  # (N, squeezed, 1, 1)
        return x * self.sigmoid(self.up(weights))
