"""A network of the family in PyTorch, and a fast eager call of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from mindrepvgg.models.block_kinds import KINDS
from mindrepvgg.models.variants import Variant
from mindrepvgg.reparam.leaves import BN_LEAVES

_TORCH_BN = dict(zip(BN_LEAVES, ("weight", "bias", "running_mean", "running_var"), strict=True))


def torch_eager(net, images: np.ndarray, precision: str = "float32") -> Callable[[], np.ndarray]:
    """Make a call of a PyTorch network on these images: eager, in channels-last layout, without gradients.

    Args:
        net: is converted to that layout and precision, in place.
        images: (N, C, H, W) float32.
        precision: 'float32' or 'float16'.

    Returns:
        A function that computes the logits, float32.
    """
    import torch

    dtype = getattr(torch, precision)
    net = net.to(dtype=dtype, memory_format=torch.channels_last)
    batch = torch.from_numpy(images).to(dtype=dtype, memory_format=torch.channels_last)

    def call():
        with torch.inference_mode():
            return net(batch).float().numpy()

    return call


def torch_network(variant: Variant, arrays: Mapping[str, np.ndarray]):
    """Build a network in torch.nn, as the authors' code builds it, set to inference; without auxiliary heads.

    Args:
        variant: the layout.
        arrays: name -> array, as `parameters.network_arrays` gives them, of the train or the deploy form. They become
            the network's memory.
    """
    import torch
    from torch import nn

    kind = KINDS[variant.block]
    deploy = f"stage0.{kind.fused}.weight" in arrays

    def convolution(spec, size, bias=False):
        sizes = spec.in_channels, spec.out_channels, size, spec.stride, size // 2
        return nn.Conv2d(*sizes, groups=spec.groups, bias=bias)

    def module_of(spec, branch):
        if branch.kernel_size is None:
            return nn.BatchNorm2d(spec.out_channels)
        conv = convolution(spec, branch.kernel_size)
        if not branch.norm:
            return conv
        return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(spec.out_channels)))

    class SqueezeExcite(nn.Module):
        def __init__(self, channels):
            super().__init__()
            squeezed = channels // variant.se_ratio
            self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))

    class Block(nn.Module):
        def __init__(self, spec):
            super().__init__()
            self.keeps = spec.keeps
            if deploy:
                modules = {kind.fused: convolution(spec, spec.kernel_size, bias=True)}
            else:
                modules = {branch.name: module_of(spec, branch) for branch in spec.train_branches}
            for path, module in modules.items():
                place, _, name = path.rpartition(".")
                if place and not hasattr(self, place):
                    self.add_module(place, nn.Module())
                self.get_submodule(place).add_module(name, module)
            # In tuples, so that they are not listed twice.
            self.after = tuple(module for name, module in modules.items() if name == kind.outer)
            self.branches = tuple(module for name, module in modules.items() if name != kind.outer)
            self.se = SqueezeExcite(spec.out_channels) if spec.se == "pre" else nn.Identity()
            self.post_se = SqueezeExcite(spec.out_channels) if spec.se == "post" else nn.Identity()

        def forward(self, x):
            y = self.branches[0](x)
            for branch in self.branches[1:]:
                y = y + branch(x)
            for norm in self.after:
                y = norm(y + x if self.keeps else y)
            return self.post_se(torch.relu_(self.se(y)))

    stem = f"stage0.{kind.fused if deploy else kind.dense}.weight"
    with torch.device("meta"):  # without values of its own, which would only be replaced
        blocks = {spec.name: Block(spec) for spec in variant.block_specs(arrays[stem].shape[1])}
        net = nn.Sequential()
        net.add_module("stage0", blocks["stage0"])
        for stage in variant.stages:
            inside = [blocks[f"{stage.name}.{number}"] for number in range(stage.num_blocks)]
            net.add_module(stage.name, nn.Sequential(*inside))
        net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        net.add_module("linear", nn.Linear(variant.widths[-1], len(arrays["linear.bias"])))
    net.load_state_dict({_torch_name(name): torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
    return net.eval()


def _torch_name(name):
    """Return our name of a parameter with PyTorch's names of a BN's parameters."""
    prefix, _, leaf = name.rpartition(".")
    return f"{prefix}.{_TORCH_BN.get(leaf, leaf)}"
