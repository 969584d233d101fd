"""Blocks in MindSpore's mixed precision: whatever calls their cells, the convolutions compute in half."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from support import context_mode, images, randomise_bn, relative_difference, weights

from mindrepvgg import reparam
from mindrepvgg.reparam import to_deploy
from mindrepvgg.reparam.layers import set_grouped
from mindrepvgg.reparam.named_blocks import BLOCKS
from mindrepvgg.reparam.precision import set_precision

SLOW = pytest.mark.slow

# Every kind of block, and what else has branches of its own.
MADE = {
    "plain": lambda: reparam.PlainBlock(8, 8),
    "repvgg": lambda: reparam.RepVGGBlock(8, 8, se="pre", se_ratio=4),
    "qarepvgg": lambda: reparam.QARepVGGBlock(8, 8),
    "repopt_vgg": lambda: reparam.RepOptBlock(8, 8),
    "linear_addition": lambda: reparam.LinearAdditionBlock(8, 8),
    "acb": lambda: reparam.ACBlock(8, 8),
    "dbb": lambda: reparam.DiverseBranchBlock(8, 8),
    "mobileone": lambda: reparam.MobileOneBlock(8, 8, num_branches=2),
    "large": lambda: reparam.LargeKernelBlock(8, 8, 7, groups=8),
    "dilated": lambda: reparam.DilatedBlock(8, 5),
    "repconv": lambda: reparam.RepConv(8, 8),
    "repvggdw": lambda: reparam.RepVGGDW(8),
    "RepConvN": lambda: reparam.RepConvN(8, 8, identity=True),
    "dbb depthwise": lambda: reparam.DiverseBranchBlock(8, 8, groups=8),
    "acb split": lambda: set_grouped(reparam.ACBlock(8, 8, groups=2), "split"),
    "acb cut": lambda: reparam.ACBlock(8, 8, 5, padding=1),
}

# MindSpore's levels, and ours.
LEVELS = ("O1", "O2", "O3", "auto", "our O2", "our O3")


def network(*kinds):
    """Blocks one after the other, with random statistics, in inference."""
    ms.set_seed(0)
    return randomise_bn(nn.SequentialCell([MADE[kind]() for kind in kinds])).set_train(False)


def in_half(net, level):
    if level.startswith("our "):
        return set_precision(net, level.removeprefix("our "))
    return ms.amp.auto_mixed_precision(net, level, ms.float16)


@pytest.fixture
def types(monkeypatch):
    """The types in which convolutions and BN have computed, in PyNative mode: {"Conv2D": [...], "BatchNorm": [...]}."""
    found = {"Conv2D": [], "BatchNorm": []}
    for operator in (ops.Conv2D, ops.BatchNorm):
        called = operator.__call__

        def watched(self, *arguments, called=called, into=found[operator.__name__]):
            result = called(self, *arguments)
            into.append((result[0] if isinstance(result, tuple) else result).dtype)
            return result

        monkeypatch.setattr(operator, "__call__", watched)
    return found


def check(kinds, level, types):
    """All convolutions in half; BN as the level has it; near float32, and not the same; parameters stay."""
    x, net = Tensor(images(2, 8, 9, 7)), network(*kinds)
    expected, before = net(x), weights(net)
    assert {dtype for found in types.values() for dtype in found} == {ms.float32}, "negative control"
    single = {name: len(found) for name, found in types.items()}
    net = in_half(net, level)
    for found in types.values():
        found.clear()
    half = net(x)
    assert types["Conv2D"] == [ms.float16] * single["Conv2D"]
    assert len(types["BatchNorm"]) == single["BatchNorm"]
    # In O3 the BN of a block's input takes what the network is given.
    assert set(types["BatchNorm"]) - {ms.float32} == ({ms.float16} if level.endswith("O3") else set())
    assert 1e-5 < relative_difference(half.astype(ms.float32), expected) < 1e-2
    after = weights(net)
    assert list(after) == list(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    deployed = to_deploy(net, x)
    assert relative_difference(deployed(x).astype(ms.float32), expected) < 1e-2


def test_all_kinds_are_here():
    assert set(BLOCKS) <= set(MADE)


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "O1"])
@pytest.mark.parametrize("kind", MADE)
def test_each_level_by_flags(kind, level, types, pynative_mode):
    check([kind], level, types)


# Of a split convolution O1 lets the BN take what the convolution gives: half.
@pytest.mark.parametrize(
    "kinds",
    [
        ("qarepvgg",),
        ("repconv", "RepConvN", "dbb"),
        *(pytest.param((kind,), marks=SLOW) for kind in MADE if kind != "acb split"),
        pytest.param(tuple(kind for kind in MADE if kind != "acb split"), marks=SLOW),
    ],
    ids="-".join,
)
def test_o1_rewrites_every_block_in_one_network(kinds, types, pynative_mode, rewriting):
    """RepConvN among them, whose class derives from RepConv's."""
    check(kinds, "O1", types)


class Nested(nn.Cell):
    """Blocks in cells of the user's own, called by their names; one of them in a branch of another."""

    def __init__(self):
        super().__init__()
        self.stem = reparam.ACBlock(8, 8, activation=nn.ReLU)
        self.body = nn.SequentialCell(reparam.insert(network("repvgg"), "dbb", "*.rbr_dense.conv", images(2, 8, 9, 7)))

    def construct(self, x):
        return self.body(self.stem(x)) + x


def test_o1_reaches_blocks_in_cells_of_the_users_own(types, pynative_mode, rewriting):
    x, net = Tensor(images(2, 8, 9, 7)), randomise_bn(Nested()).set_train(False)
    expected, names = net(x), list(weights(net))
    types["Conv2D"].clear()
    net = in_half(net, "O1")
    half = net(x)
    assert types["Conv2D"] == [ms.float16] * len(types["Conv2D"])
    assert len(types["Conv2D"]) == 3 + 6 + 1 + 2  # ACB, DBB, 1x1, SE
    assert 1e-5 < relative_difference(half, expected) < 1e-2
    assert list(weights(net)) == names


@pytest.mark.parametrize(
    ("kinds", "level"),
    [
        (("acb",), "O1"),
        (("mobileone", "repconv"), "our O2"),
        *(pytest.param((kind,), level, marks=SLOW) for kind in MADE for level in LEVELS),
        pytest.param(tuple(MADE), "O1", marks=SLOW),
    ],
    ids=str,
)
def test_a_step_in_graph_mode_trains(kinds, level, rewriting):
    with context_mode("graph"):
        net = in_half(network(*kinds).set_train(), level)
        before = weights(net)
        step = nn.TrainOneStepCell(Loss(net), nn.SGD(net.trainable_params(), 1e-4), sens=128.0).set_train()
        x = Tensor(images(4, 8, 9, 7))
        losses = [float(step(x)) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    after = weights(net)
    assert all(values.dtype == np.float32 for values in after.values())
    # A beta before a BN has no gradient.
    same = [name for name in before if np.array_equal(before[name], after[name])]
    assert [name for name in same if name.endswith(("weight", "gamma", "moving_mean"))] == []


class Loss(nn.Cell):
    """The mean square of a network's outputs to 1."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x):
        return ((self.net(x).astype(ms.float32) - 1) ** 2).mean()
