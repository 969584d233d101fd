"""A network of the family in PyTorch, and a fast call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mindrepvgg.errors import UserError
from mindrepvgg.models.block_kinds import FAMILIES, KINDS
from mindrepvgg.models.variants import Variant
from mindrepvgg.reparam.leaves import BN_LEAVES

_TORCH_BN = dict(zip(BN_LEAVES, ("weight", "bias", "running_mean", "running_var"), strict=True))


def torch_call(net, images: np.ndarray, precision: str = "float32", compiled: bool = False) -> Callable[[], np.ndarray]:
    """Make a call of a PyTorch network on these images: in channels-last layout, without gradients.

    Args:
        net: is converted to that layout and precision, in place.
        images: (N, C, H, W) float32.
        precision: 'float32' or 'float16'.
        compiled: by torch.compile, which needs a C++ compiler, and not eager.

    Returns:
        A function that computes the logits, float32.
    """
    import torch

    dtype = getattr(torch, precision)
    net = net.to(dtype=dtype, memory_format=torch.channels_last)
    net = torch.compile(net) if compiled else net
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

    Raises:
        UserError: a block in train form has a branch of several convolutions.
    """
    import torch
    from torch import nn

    family = FAMILIES[variant.family]
    deploy = f"stage0.{family.fused}.weight" in arrays

    def convolution(spec, kernel, bias=False):
        sizes = spec.in_channels, spec.out_channels, kernel, spec.stride, tuple(size // 2 for size in kernel)
        return nn.Conv2d(*sizes, groups=spec.groups, bias=bias)

    def module_of(spec, part):
        if part.inner:
            raise UserError(
                f"PyTorch is measured without blocks of the kind {spec.kind}, as {spec.name} is in train form"
            )
        if part.is_scale:
            return Scale(*part.shape)
        return convolution(spec, part.shape[2:]) if part.is_kernel else nn.BatchNorm2d(*part.shape)

    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(channels))

        def forward(self, x):
            return x * self.weight.reshape(1, -1, 1, 1)

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
            self.adds_input = spec.keeps and KINDS[spec.kind].adds_input
            if deploy:
                branches = [{family.fused: convolution(spec, spec.kernel_shape[2:], bias=True)}]
            else:
                branches = [{part.name: module_of(spec, part) for part in branch} for branch in spec.train_branches]
            for path, module in (item for branch in branches for item in branch.items()):
                *places, name = path.split(".")
                owner = self
                for place in places:
                    if not hasattr(owner, place):
                        owner.add_module(place, nn.Module())
                    owner = owner.get_submodule(place)
                owner.add_module(name, module)
            # In tuples, so that they are not listed twice.
            outer = None if deploy else KINDS[spec.kind].outer
            self.after = tuple(branch[outer] for branch in branches if outer in branch)
            self.branches = tuple(tuple(branch.values()) for branch in branches if outer not in branch)
            self.se = SqueezeExcite(spec.out_channels) if spec.se == "pre" else nn.Identity()
            self.post_se = SqueezeExcite(spec.out_channels) if spec.se == "post" else nn.Identity()

        def forward(self, x):
            y = None
            for branch in self.branches:
                made = x
                for module in branch:
                    made = module(made)
                y = made if y is None else y + made
            for norm in self.after:
                y = norm(y + x if self.adds_input else y)
            return self.post_se(torch.relu_(self.se(y)))

    in_channels = next(
        array.shape[1] for name, array in arrays.items() if name.startswith("stage0.") and array.ndim == 4
    )
    with torch.device("meta"):  # without values of its own, which would only be replaced
        blocks = {spec.name: Block(spec) for spec in variant.block_specs(in_channels)}
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
