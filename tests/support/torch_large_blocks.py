"""MobileOne's, RepLKNet's, UniRepLKNet's and YOLO's blocks in PyTorch, for the tests to compare with.

Written from the papers. Parameters carry the names of the authors' code. The zeros of the block's padding are put
around the input once. Each branch convolves, without padding, the part of it over which a kernel in the centre slides:
so no formula for a branch's padding is shared with the package.
"""

import torch
from torch import nn
from torch.nn import functional

from support.torch_reference import SqueezeExcite


def two(value):
    return value if isinstance(value, tuple) else (value, value)


class ConvBN(nn.Module):
    def __init__(self, conv, bn):
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, x):
        return self.bn(self.conv(x))


class Block(nn.Module):
    """Branches, their sum, SE and activation; a subclass makes the branches and sums them in `branch_sum`."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=None,
        dilation=1,
        groups=1,
        activation=None,
        se=None,
        se_ratio=16,
        eps=1e-5,
        momentum=0.1,
    ):
        super().__init__()
        self.channels, self.size, self.steps = (in_channels, out_channels), two(kernel_size), two(dilation)
        self.stride, self.groups, self.numbers = two(stride), groups, {"eps": eps, "momentum": momentum}
        if padding is None:
            padding = tuple(step * (size // 2) for step, size in zip(self.steps, self.size, strict=True))
        if not isinstance(padding, tuple):
            padding = (padding, padding)
        self.sides = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
        squeezed = out_channels // se_ratio
        self.se = SqueezeExcite(out_channels, squeezed) if se == "pre" else nn.Identity()
        self.post_se = SqueezeExcite(out_channels, squeezed) if se == "post" else nn.Identity()
        self.activation = nn.Identity() if activation is None else activation()

    def new_conv(self, size, rate=(1, 1)):
        """A convolution with `rate` times the block's dilation."""
        dilation = tuple(r * step for r, step in zip(rate, self.steps, strict=True))
        return nn.Conv2d(*self.channels, two(size), self.stride, 0, dilation, self.groups, bias=False)

    def new_bn(self):
        return nn.BatchNorm2d(self.channels[1], **self.numbers)

    def new_pair(self, size):
        return ConvBN(self.new_conv(size), self.new_bn())

    def padded(self, x):
        top, bottom, left, right = self.sides
        return functional.pad(x, (left, right, top, bottom))

    def under(self, x, size, rate=(1, 1)):
        """What a smaller kernel in the centre of the block's sees of the padded input."""
        for axis, length in enumerate(two(size)):
            spare = self.steps[axis] * (self.size[axis] - 1 - rate[axis] * (length - 1))
            before = spare // 2 // self.steps[axis] * self.steps[axis]
            x = x.narrow(2 + axis, before, x.shape[2 + axis] - spare)
        return x

    def keeps_shape(self):
        probe = torch.zeros(1, 1, *(step * size + 1 for step, size in zip(self.steps, self.size, strict=True)))
        large = functional.conv2d(self.padded(probe), torch.zeros(1, 1, *self.size), None, self.stride, 0, self.steps)
        return self.channels[0] == self.channels[1] and self.stride == (1, 1) and large.shape == probe.shape

    def forward(self, x):
        return self.post_se(self.activation(self.se(self.branch_sum(x))))


class MobileOne(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, num_branches=1, activation=nn.ReLU, **options):
        super().__init__(in_channels, out_channels, kernel_size, activation=activation, **options)
        self.rbr_skip = self.new_bn() if self.keeps_shape() else None
        self.rbr_conv = nn.ModuleList([self.new_pair(kernel_size) for _ in range(num_branches)])
        self.rbr_scale = self.new_pair(1) if self.size != (1, 1) else None

    def branch_sum(self, x):
        total, around = 0 if self.rbr_skip is None else self.rbr_skip(x), self.padded(x)
        for branch in self.rbr_conv:
            total = total + branch(around)
        return total if self.rbr_scale is None else total + self.rbr_scale(self.under(around, 1))


class LargeKernel(Block):
    def __init__(self, in_channels, out_channels, kernel_size=31, small_kernel=5, **options):
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.lkb_origin, self.small_kernel = self.new_pair(kernel_size), small_kernel
        if small_kernel is not None:
            self.small_conv = self.new_pair(small_kernel)

    def branch_sum(self, x):
        total = self.lkb_origin(self.padded(x))
        if self.small_kernel is None:
            return total
        return total + self.small_conv(self.under(self.padded(x), self.small_kernel))


class Dilated(Block):
    def __init__(self, channels, kernel_size, small_kernels, groups=None, **options):
        super().__init__(channels, channels, kernel_size, groups=channels if groups is None else groups, **options)
        self.small_kernels = small_kernels
        self.lk_origin, self.origin_bn = self.new_conv(kernel_size), self.new_bn()
        for size, rate in small_kernels:
            setattr(self, f"dil_conv_k{size}_{rate}", self.new_conv(size, (rate, rate)))
            setattr(self, f"dil_bn_k{size}_{rate}", self.new_bn())

    def branch_sum(self, x):
        around = self.padded(x)
        total = self.origin_bn(self.lk_origin(around))
        for size, rate in self.small_kernels:
            conv, bn = getattr(self, f"dil_conv_k{size}_{rate}"), getattr(self, f"dil_bn_k{size}_{rate}")
            total = total + bn(conv(self.under(around, size, (rate, rate))))
        return total


class YoloV7(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, identity=True, **options):
        numbers = {"activation": nn.SiLU, "eps": 1e-3, "momentum": 0.03, **options}
        super().__init__(in_channels, out_channels, kernel_size, stride, **numbers)
        self.rbr_dense = nn.Sequential(self.new_conv(kernel_size), self.new_bn())
        self.rbr_1x1 = nn.Sequential(self.new_conv(1), self.new_bn())
        self.rbr_identity = self.new_bn() if identity and self.keeps_shape() else None

    def branch_sum(self, x):
        total = self.rbr_dense(self.padded(x)) + self.rbr_1x1(self.under(self.padded(x), 1))
        return total if self.rbr_identity is None else total + self.rbr_identity(x)


class YoloV9(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, identity=False, **options):
        numbers = {"activation": nn.SiLU, "eps": 1e-3, "momentum": 0.03, **options}
        super().__init__(in_channels, out_channels, kernel_size, stride, **numbers)
        self.conv1, self.conv2 = self.new_pair(kernel_size), self.new_pair(1)
        self.bn = self.new_bn() if identity and self.keeps_shape() else None

    def branch_sum(self, x):
        total = self.conv1(self.padded(x)) + self.conv2(self.under(self.padded(x), 1))
        return total if self.bn is None else total + self.bn(x)


class YoloV10(Block):
    def __init__(self, channels, kernel_size=7, small_kernel=3, groups=None, **options):
        numbers = {"activation": nn.SiLU, "eps": 1e-3, "momentum": 0.03, **options}
        super().__init__(channels, channels, kernel_size, groups=channels if groups is None else groups, **numbers)
        conv, conv1 = self.new_pair(kernel_size), self.new_pair(small_kernel)
        self.small_kernel, self.conv, self.conv1 = small_kernel, conv, conv1

    def branch_sum(self, x):
        return self.conv(self.padded(x)) + self.conv1(self.under(self.padded(x), self.small_kernel))
