"""RepVGG's, QARepVGG's, RepOptimizer's, ACNet's and the diverse branch block in PyTorch, for the tests to compare with.

Written from the papers; parameters carry the names of the authors' code. What a BN puts around its output is asked of
PyTorch's own batch_norm, a mean of windows of its own avg_pool2d or unfold: so no formula is shared with the package.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from support.torch_large_blocks import Block


class RepVGG(Block):
    """Of any kernel size; the networks' own is `torch_reference.Block`."""

    def __init__(self, in_channels, out_channels, kernel_size=3, activation=nn.ReLU, **options):
        super().__init__(in_channels, out_channels, kernel_size, activation=activation, **options)
        self.rbr_dense, self.rbr_1x1 = self.new_pair(kernel_size), self.new_pair(1)
        self.rbr_identity = self.new_bn() if self.keeps_shape() else None

    def branch_sum(self, x):
        total = self.rbr_dense(self.padded(x)) + self.rbr_1x1(self.under(self.padded(x), 1))
        return total if self.rbr_identity is None else total + self.rbr_identity(x)


class QARepVGG(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, activation=nn.ReLU, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, activation=activation, **options)
        self.rbr_dense, self.rbr_1x1, self.bn = self.new_pair(kernel_size), self.new_conv(1), self.new_bn()
        self.adds_input = self.keeps_shape()

    def branch_sum(self, x):
        around = self.padded(x)
        total = self.rbr_dense(around) + self.rbr_1x1(self.under(around, 1))
        return self.bn(total + x if self.adds_input else total)


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.weight[:, None, None]


class LinearAddition(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, activation=nn.ReLU, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, activation=activation, **options)
        self.conv, self.conv_1x1, self.bn = self.new_conv(kernel_size), self.new_conv(1), self.new_bn()
        self.scale_conv, self.scale_1x1 = Scale(out_channels), Scale(out_channels)
        self.scale_identity = Scale(out_channels) if self.keeps_shape() else None

    def branch_sum(self, x):
        around = self.padded(x)
        total = self.scale_conv(self.conv(around)) + self.scale_1x1(self.conv_1x1(self.under(around, 1)))
        return self.bn(total if self.scale_identity is None else total + self.scale_identity(x))


class Asymmetric(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, **options)
        height, width = self.size
        self.sizes = {"square": self.size, "ver": (height, 1), "hor": (1, width)}
        for name, size in self.sizes.items():
            setattr(self, f"{name}_conv", self.new_conv(size))
            setattr(self, f"{name}_bn", self.new_bn())

    def branch_sum(self, x):
        total, around = 0, self.padded(x)
        for name, size in self.sizes.items():
            conv, bn = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
            total = total + bn(conv(self.under(around, size)))
        return total


class BorderBN(nn.Module):
    """A BN on a canvas that has, around its output, what it makes of zeros by its moving statistics."""

    def __init__(self, channels, sides, numbers):
        super().__init__()
        self.bn, self.sides, self.filled = nn.BatchNorm2d(channels, **numbers), sides, True

    def forward(self, x):
        y, bn = self.bn(x), self.bn
        point = torch.zeros(1, x.shape[1], 1, 1, dtype=x.dtype)
        if self.filled:
            values = bn.running_mean, bn.running_var, bn.weight.detach(), bn.bias.detach()
            point = functional.batch_norm(point, *values, eps=bn.eps)
        (top, bottom, left, right), (height, width) = self.sides, y.shape[2:]
        canvas = point.repeat(len(y), 1, top + height + bottom, left + width + right)
        canvas[:, :, top : top + height, left : left + width] = y
        return canvas


class Mean(nn.Module):
    """The means of windows; `sides`: zeros around the input that count, or not."""

    def __init__(self, size, stride, steps, sides=(0, 0, 0, 0)):
        super().__init__()
        self.size, self.stride, self.steps, self.sides, self.counts_zeros = size, stride, steps, sides, True

    def forward(self, x):
        top, bottom, left, right = self.sides
        if self.steps == (1, 1) and (top, left) == (bottom, right):
            return functional.avg_pool2d(x, self.size, self.stride, (top, left), count_include_pad=self.counts_zeros)
        x = functional.pad(x, (left, right, top, bottom))
        reach = [step * (size - 1) for step, size in zip(self.steps, self.size, strict=True)]
        places = [(x.shape[2 + i] - reach[i] - 1) // self.stride[i] + 1 for i in (0, 1)]
        windows = functional.unfold(x, self.size, self.steps, 0, self.stride)
        return windows.reshape(len(x), x.shape[1], -1, windows.shape[-1]).mean(2).reshape(*x.shape[:2], *places)


class PlusIdentity(nn.Conv2d):
    """A 1x1 convolution with W + I."""

    adds_identity = True

    def forward(self, x):
        per_group = self.in_channels // self.groups
        identity = torch.eye(per_group, dtype=x.dtype).repeat(self.groups, 1)[:, :, None, None]
        kernel = self.weight + identity if self.adds_identity else self.weight
        return functional.conv2d(x, kernel, groups=self.groups)


class DiverseBranch(Block):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, internal_channels=None, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, **options)
        depthwise = in_channels == out_channels == self.groups
        self.dbb_origin = self.new_pair(kernel_size)
        mean = Mean(self.size, self.stride, self.steps, self.sides if depthwise else (0, 0, 0, 0))
        before = {}
        if not depthwise:
            self.dbb_1x1 = self.new_pair(1)
            point = nn.Conv2d(in_channels, out_channels, 1, groups=self.groups, bias=False)
            before = {"conv": point, "bn": BorderBN(out_channels, self.sides, self.numbers)}
        self.dbb_avg = nn.Sequential(OrderedDict(**before, avg=mean, avgbn=self.new_bn()))
        width = internal_channels or in_channels * (2 if depthwise else 1)
        kind, name = (PlusIdentity, "idconv1") if width == in_channels else (nn.Conv2d, "conv1")
        first = {name: kind(in_channels, width, 1, groups=self.groups, bias=False)}
        border = BorderBN(width, self.sides, self.numbers)
        place = self.size, self.stride, 0, self.steps, self.groups
        second = nn.Conv2d(width, out_channels, *place, bias=False)
        self.dbb_1x1_kxk = nn.Sequential(OrderedDict(**first, bn1=border, conv2=second, bn2=self.new_bn()))

    def branch_sum(self, x):
        around = self.padded(x)
        total = self.dbb_origin(around) + self.dbb_avg(x) + self.dbb_1x1_kxk(x)
        return total + self.dbb_1x1(self.under(around, 1)) if hasattr(self, "dbb_1x1") else total
