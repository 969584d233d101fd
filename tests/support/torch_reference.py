"""RepVGG in PyTorch, written from the paper for the tests to compare with.

Shares no code with the package: of a `Variant` it takes the numbers only. Parameters carry the names of the authors'
published checkpoints. Sources: arXiv:2101.03697, figure 4 and section 4.1; for RepVGGplus the authors' description.
"""

import copy
import re

import torch
from torch import nn
from torch.nn import functional

# Two thread pools on the same few cores would wait for each other, and these networks are small.
torch.set_num_threads(1)


class ConvBN(nn.Module):
    def __init__(self, in_channels, out_channels, size, stride=1, groups=1, dilation=1):
        super().__init__()
        padding = dilation if size == 3 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return self.bn(self.conv(x))


class ConvBNReLU(ConvBN):
    def forward(self, x):
        return functional.relu(super().forward(x))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.down = nn.Conv2d(channels, squeezed, 1)
        self.up = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(functional.relu(self.down(pooled))))


class Block(nn.Module):
    """The sum of the branches, or in deploy form one convolution; SE before or after the ReLU."""

    def __init__(self, in_channels, out_channels, stride=1, groups=1, dilation=1, se=None, se_ratio=16, deploy=False):
        super().__init__()
        self.rbr_identity = None
        if deploy:
            self.rbr_reparam = nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, groups)
        else:
            self.rbr_dense = ConvBN(in_channels, out_channels, 3, stride, groups, dilation)
            self.rbr_1x1 = ConvBN(in_channels, out_channels, 1, stride, groups)
            if stride == 1 and in_channels == out_channels:
                self.rbr_identity = nn.BatchNorm2d(out_channels)
        self.deploy = deploy
        self.se = SqueezeExcite(out_channels, out_channels // se_ratio) if se == "pre" else nn.Identity()
        self.post_se = SqueezeExcite(out_channels, out_channels // se_ratio) if se == "post" else nn.Identity()

    def branch_sum(self, x):
        if self.deploy:
            return self.rbr_reparam(x)
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        return total if self.rbr_identity is None else total + self.rbr_identity(x)

    def forward(self, x):
        return self.post_se(functional.relu(self.se(self.branch_sum(x))))


class PlusStage(nn.Module):
    """RepVGGplus keeps a stage's blocks one level deeper: `stage1.blocks.0`."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def aux_head(channels, num_classes):
    """`stage1_aux.0.conv`, `.0.bn` and `.3`: convolution of stride 2, BN, ReLU; pooling; flattening; linear."""
    downsample = ConvBNReLU(channels, channels, 3, stride=2)
    return nn.Sequential(downsample, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class Network(nn.Module):
    """RepVGG of a variant's sizes; in the plus form three auxiliary heads answer too while it trains."""

    def __init__(self, variant, num_classes, in_channels=3, deploy=False):
        super().__init__()
        self.plus = variant.aux_heads
        options = {"se": variant.se, "se_ratio": variant.se_ratio, "deploy": deploy}
        depths, widths = list(variant.num_blocks), list(variant.widths[1:])
        names, strides = ["stage1", "stage2", "stage3", "stage4"], [2, 2, 2, 2]
        if self.plus:
            half = depths[2] // 2
            depths[2:3] = [half, depths[2] - half]
            widths[2:3] = [widths[2]] * 2
            names[2:3] = ["stage3_first", "stage3_second"]
            strides[2:3] = [2, 1]
        self.stage0 = Block(in_channels, variant.widths[0], 2, **options)
        self.stage_names = names
        index, channels = 1, variant.widths[0]
        for name, depth, width, stride in zip(names, depths, widths, strides, strict=True):
            blocks = []
            for i in range(depth):
                groups = variant.group_size if index % 2 == 0 else 1
                blocks.append(Block(channels, width, stride if i == 0 else 1, groups, **options))
                index, channels = index + 1, width
            setattr(self, name, PlusStage(blocks) if self.plus else nn.Sequential(*blocks))
            if self.plus and not deploy and name in ("stage1", "stage2", "stage3_first"):
                setattr(self, f"{name}_aux", aux_head(width, num_classes))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        x, answers = self.stage0(x), []
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if self.training and hasattr(self, f"{name}_aux"):
                answers.append(getattr(self, f"{name}_aux")(x))
        logits = self.linear(x.mean((2, 3)))
        return (logits, *answers) if answers else logits


_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def torch_name(name, plus=False):
    """The published name of one of our parameters."""
    stem, _, leaf = name.rpartition(".")
    name = f"{stem}.{_LEAVES.get(leaf, leaf)}"
    name = name.replace("_aux.downsample.", "_aux.0.").replace("_aux.linear.", "_aux.3.")
    return re.sub(r"^(stage\w+)\.(\d+)\.(rbr|post)_", r"\1.blocks.\2.\3_", name) if plus else name


def copy_weights(ms_net, torch_net):
    """Fill the PyTorch network, in its own precision, with every parameter of a MindSpore network; returns it."""
    plus = getattr(torch_net, "plus", False)
    state = {torch_name(p.name, plus): torch.from_numpy(p.asnumpy().copy()) for p in ms_net.get_parameters()}
    counters = {name: value for name, value in torch_net.state_dict().items() if name.endswith("num_batches_tracked")}
    torch_net.load_state_dict({**state, **counters}, strict=True)
    return torch_net


def probe_kernel(block):
    """The one kernel (out, in // groups, 3, 3) and bias (out,) that a train-form block equals in inference.

    Found by what the branches answer to single bright pixels, with no formula of folding; gradients flow through it.
    """
    block = copy.copy(block).eval()
    dense, pointwise = block.rbr_dense, block.rbr_1x1
    out, per_group = dense.conv.weight.shape[:2]
    in_channels, groups = dense.conv.in_channels, dense.conv.groups

    def answer(x):
        total = dense.bn(functional.conv2d(x, dense.conv.weight, padding=1, groups=groups))
        total = total + pointwise.bn(functional.conv2d(x, pointwise.conv.weight, groups=groups))
        return total if block.rbr_identity is None else total + block.rbr_identity(x)

    pixels = torch.zeros(in_channels, in_channels, 5, 5, dtype=dense.conv.weight.dtype)
    pixels[torch.arange(in_channels), torch.arange(in_channels), 2, 2] = 1
    bias = answer(torch.zeros_like(pixels[:1]))[0, :, 2, 2]
    response = answer(pixels) - bias[:, None, None]  # (in, out, 5, 5): the kernel around the pixel, mirrored
    kernel = response[:, :, 1:4, 1:4].flip(2, 3).transpose(0, 1)  # (out, in, 3, 3), zero off the groups
    first = torch.arange(out) // (out // groups) * per_group
    return kernel[torch.arange(out)[:, None], first[:, None] + torch.arange(per_group)], bias
