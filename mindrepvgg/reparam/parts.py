"""The cells that branches are made of: convolutions with BN, sums; and squeeze-and-excitation, which follows them."""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.layers import batch_norm, conv2d
from mindrepvgg.reparam.maps import map_of, sequence_map


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


class Sum(nn.Cell):
    """The sum of cells over one input; the cells are called `0`, `1`, ...

    Not a CellList: a slice of one gives its parameters other names, and in graph mode its `construct` is not seen.
    """

    def __init__(self, cells):
        super().__init__()
        self.names = tuple(str(i) for i in range(len(cells)))
        for name, cell in zip(self.names, cells, strict=True):
            setattr(self, name, cell)

    def construct(self, x):
        """(N, in, H, W) -> (N, out, H', W')."""
        total = getattr(self, self.names[0])(x)
        for name in self.names[1:]:
            total = total + getattr(self, name)(x)
        return total

    def linear_map(self, read):
        """The sum of the cells' maps, see `maps.map_of`."""
        total = map_of(getattr(self, self.names[0]), read)
        for name in self.names[1:]:
            total = algebra.add(total, map_of(getattr(self, name), read))
        return total


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
