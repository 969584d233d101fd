"""A network of the family in PyTorch, and a fast eager call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

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

    deploy = "stage0.rbr_reparam.weight" in arrays

    def conv_bn(spec, size):
        sizes = (spec.in_channels, spec.out_channels, size, spec.stride, size // 2)
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(*sizes, groups=spec.groups, bias=False))
        net.add_module("bn", nn.BatchNorm2d(spec.out_channels))
        return net

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
            if deploy:
                sizes = (spec.in_channels, spec.out_channels, 3, spec.stride, 1)
                self.rbr_reparam = nn.Conv2d(*sizes, groups=spec.groups)
            else:
                self.rbr_dense, self.rbr_1x1 = conv_bn(spec, 3), conv_bn(spec, 1)
                keeps = spec.in_channels == spec.out_channels and spec.stride == 1
                self.rbr_identity = nn.BatchNorm2d(spec.out_channels) if keeps else None
            self.se = SqueezeExcite(spec.out_channels) if variant.se == "pre" else nn.Identity()
            self.post_se = SqueezeExcite(spec.out_channels) if variant.se == "post" else nn.Identity()

        def forward(self, x):
            if deploy:
                y = self.rbr_reparam(x)
            else:
                y = self.rbr_dense(x) + self.rbr_1x1(x)
                y = y if self.rbr_identity is None else y + self.rbr_identity(x)
            return self.post_se(torch.relu_(self.se(y)))

    with torch.device("meta"):  # without values of its own, which would only be replaced
        blocks = {spec.name: Block(spec) for spec in variant.block_specs(arrays[_stem(deploy)].shape[1])}
        net = nn.Sequential()
        net.add_module("stage0", blocks["stage0"])
        for stage in variant.stages:
            inside = [blocks[f"{stage.name}.{number}"] for number in range(stage.num_blocks)]
            net.add_module(stage.name, nn.Sequential(*inside))
        net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        net.add_module("linear", nn.Linear(variant.widths[-1], len(arrays["linear.bias"])))
    net.load_state_dict({_torch_name(name): torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
    return net.eval()


def _stem(deploy):
    return "stage0.rbr_reparam.weight" if deploy else "stage0.rbr_dense.conv.weight"


def _torch_name(name):
    """Return our name of a parameter with PyTorch's names of a BN's parameters."""
    prefix, _, leaf = name.rpartition(".")
    return f"{prefix}.{_TORCH_BN.get(leaf, leaf)}"
