"""Whole networks in PyTorch with blocks of any kind, made of ours block by block, in float64."""

import torch
from mindspore import nn as ms_nn
from torch import nn

from support.block_pairs import PAIRS
from support.torch_reference import copy_weights

_ACTIVATIONS = {ms_nn.ReLU: nn.ReLU, ms_nn.SiLU: nn.SiLU, ms_nn.Identity: None}


class Network(nn.Module):
    """The stages of one of our networks in train form, the mean of the map, and the classifier."""

    def __init__(self, net):
        super().__init__()
        self.stages = ["stage0", *(stage.name for stage in net.variant.stages)]
        for stage in self.stages:
            cell = getattr(net, stage)
            blocks = [_block(inner) for inner in cell] if type(cell) is ms_nn.SequentialCell else _block(cell)
            setattr(self, stage, nn.Sequential(*blocks) if isinstance(blocks, list) else blocks)
        self.linear = nn.Linear(net.linear.in_channels, net.linear.out_channels)

    def forward(self, x):
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.linear(x.mean((2, 3)))


def in_float64(net):
    """PyTorch's network with the weights of one of ours, in evaluation."""
    return copy_weights(net, Network(net).double()).eval()


def _block(ours):
    """PyTorch's block of the same kind and arguments. A block in a branch is made by itself."""
    options = {name: getattr(ours, name) for name in ("stride", "padding", "dilation", "groups", "se_ratio")}
    if hasattr(ours, "num_branches"):
        options["num_branches"] = ours.num_branches
    place = ours.in_channels, ours.out_channels, ours.kernel_size
    options |= {"se": ours.se_place, "activation": _ACTIVATIONS[type(ours.activation)]}
    made = PAIRS[type(ours)](*place, **options)
    for name, branch in ours.branches().items():
        inner = getattr(branch, "conv", None)
        if type(inner) in PAIRS:
            pair = getattr(made, name)
            pair.conv, pair.bn = _block(inner), nn.Identity()
            # The outer block has put its zeros around the input, and the inner one puts its own.
            pair.conv.register_forward_pre_hook(lambda _, given, sides=ours.padding: _cut(given[0], sides))
    return made


def _cut(x, sides):
    top, bottom, left, right = sides
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def outputs(net, x):
    """What it makes of an array, as an array."""
    with torch.no_grad():
        return net(torch.from_numpy(x).double()).numpy()
