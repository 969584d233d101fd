"""The networks of the self-check: published ones, and a small one for each kind of block, with values by a rule."""

from __future__ import annotations

from collections.abc import Callable

from mindspore import Tensor, nn

from mindrepvgg import reparam
from mindrepvgg.errors import UserError
from mindrepvgg.models import variants
from mindrepvgg.models.repvgg import build
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.synthetic import parameter_value, parameter_values
from mindrepvgg.reparam.layers import kernel_init
from mindrepvgg.reparam.parts import ConvBN
from mindrepvgg.text import quoted

# Every network with RepVGG's blocks, and of the other families the smallest, and one with what only it has: grouped
# convolutions, squeeze-and-excitation.
NETWORKS = (
    *(name for name in variants.published_models() if variants.find(name).family == "repvgg"),
    *("qarepvgg_a0", "qarepvgg_b1g4", "mobileone_s0", "mobileone_s4"),
)

_CHANNELS, _CLASSES = 16, 32

# What makes a block in a small network, as f(channels, stride).
_BLOCKS: dict[str, Callable[..., nn.Cell]] = {
    "block_plain": lambda channels, stride: reparam.PlainBlock(channels, channels, stride=stride),
    "block_qarepvgg": lambda channels, stride: reparam.QARepVGGBlock(channels, channels, stride=stride),
    "block_linear_addition": lambda channels, stride: reparam.LinearAdditionBlock(channels, channels, stride=stride),
    "block_acb": lambda channels, stride: reparam.ACBlock(channels, channels, stride=stride),
    "block_dbb": lambda channels, stride: reparam.DiverseBranchBlock(channels, channels, stride=stride),
    "block_mobileone": lambda channels, stride: reparam.MobileOneBlock(
        channels, channels, num_branches=2, stride=stride, groups=channels, se="pre", se_ratio=4
    ),
    "block_large": lambda channels, stride: reparam.LargeKernelBlock(
        channels, channels, 13, stride=stride, groups=channels
    ),
    "block_dilated": lambda channels, stride: reparam.DilatedBlock(channels, 7, stride=stride),
    "block_repconv": lambda channels, stride: reparam.RepConv(channels, channels, stride=stride),
    "block_repvggdw": lambda channels, stride: reparam.RepVGGDW(channels, stride=stride),
}

# A network without blocks, into which blocks are inserted.
_INSERTED = "inserted_dbb"

BLOCK_NETWORKS = (*_BLOCKS, _INSERTED)


def names(given) -> list[str]:
    """The names of networks to check.

    Args:
        given: names of networks in any spelling, and those in BLOCK_NETWORKS; 'blocks' stands for all of these.

    Raises:
        UserError: a name is unknown.
    """
    found = []
    for name in given:
        if name == "blocks":
            found += BLOCK_NETWORKS
        elif name.startswith(("block_", "inserted_")):
            if name not in BLOCK_NETWORKS:
                raise UserError(f"models (={quoted(name)}) must be one of {', '.join(BLOCK_NETWORKS)}, or blocks")
            found.append(name)
        else:
            found.append(variants.find(name).name)
    return found


def network(name: str, form: str, images: Tensor) -> nn.Cell:
    """A network with values by `synthetic.parameter_value`: (4, 3, H, W) -> (4, classes).

    Args:
        name: one of `names`.
        form: 'train' or 'deploy'. The deploy form of a small network is folded here, on the device.
        images: (N, 3, H, W), on which an inserted network is traced.
    """
    if name not in BLOCK_NETWORKS:
        variant = variants.find(name)
        shapes = parameter_shapes(variant, form)
        return build(variant, form=form, arrays=parameter_values(shapes))
    if name == _INSERTED:
        net = _Small(lambda channels, stride: ConvBN(channels, channels, 3, stride))
        net = reparam.insert(net, "dbb", ["first.conv", "second.conv"], images)
    else:
        net = _Small(_BLOCKS[name])
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(parameter_value(parameter.name, parameter.shape)))
    if form == variants.TRAIN:
        return net
    return reparam.to_deploy(net.set_train(False), fold_bn=True, inputs=images)


class _Small(nn.Cell):
    """A stem of stride 2, a block that keeps the map's size, one of stride 2, a classifier; SiLU after each.

    A ReLU's gradient would be turned on or off where rounding moves its input over zero.
    """

    def __init__(self, make_block):
        super().__init__()
        self.stem = ConvBN(3, _CHANNELS, 3, 2)
        self.first = make_block(_CHANNELS, 1)
        self.second = make_block(_CHANNELS, 2)
        self.silu = nn.SiLU()
        self.linear = nn.Dense(_CHANNELS, _CLASSES, weight_init=kernel_init())

    def construct(self, x):
        """Classify images (N, 3, H, W)."""
        x = self.silu(self.stem(x))
        x = self.silu(self.second(self.silu(self.first(x))))
        return self.linear(x.mean((2, 3)))
