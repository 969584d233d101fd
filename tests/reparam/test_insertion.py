"""Blocks inserted into networks that know nothing of them, trained or not, and folded out again."""

import copy
import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import array, context_mode, images, randomise_bn, relative_difference

from mindrepvgg.errors import EquivalenceError, FusionError, UserError
from mindrepvgg.reparam import RepVGGBlock, insert, to_deploy, verify_equivalence
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import batch_norm, conv2d

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("pynative_mode")]

SLOW = pytest.mark.slow

# What insert() can put in the place of a 3x3 convolution of any groups.
SMALL_BLOCKS = ["repvgg", "qarepvgg", "acb", "dbb", "mobileone", "repconv"]


class Residual(nn.Cell):
    """A network of the kind that ResNets are; the attributes of its BNs stand in another order than they are called."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = conv2d(3, 8, 3, 2), batch_norm(8, eps=1e-3, momentum=0.03)
        self.bn2, self.bn1 = batch_norm(8), batch_norm(8)
        self.conv1, self.conv2 = conv2d(8, 8, 3, groups=4, bias=True), conv2d(8, 8, 3)
        self.tail = nn.SequentialCell(
            conv2d(8, 8, 5, groups=8), batch_norm(8), nn.ReLU(), conv2d(8, 12, 1), batch_norm(12)
        )
        self.raw = conv2d(12, 4, 3, 2)
        self.relu = nn.ReLU()

    def construct(self, x):
        x = self.relu(self.stem_bn(self.stem(x)))
        y = self.relu(self.bn1(self.conv1(x)))
        return self.raw(self.tail(self.relu(self.bn2(self.conv2(y)) + x)))


def residual(seed=0):
    net = randomise_bn(Residual(), seed)
    net.conv1.bias.set_data(Tensor(np.linspace(-1, 1, 8), net.conv1.bias.dtype))
    return net.set_train(False)


def layers(net):
    """How many convolutions and BNs a network has."""
    cells = [cell for _, cell in net.cells_and_names()]
    return sum(isinstance(cell, nn.Conv2d) for cell in cells), sum(hasattr(cell, "moving_mean") for cell in cells)


def outputs(net, training=False):
    """What a copy of a network gives."""
    return copy.deepcopy(net).set_train(training)(Tensor(images()))


def check_fold(net, convolutions, norms, **options):
    """Fold a network and compare; the folded network."""
    deployed = to_deploy(net, **options)
    assert layers(deployed) == (convolutions, norms)
    assert verify_equivalence(net, deployed, images(), 1e-5).passed
    names = [parameter.name for parameter in deployed.get_parameters()]
    assert len(set(names)) == len(names)
    return deployed


# ---------------------------------------------------------------------------------------------------- what is replaced


def test_a_network_gets_blocks_and_loses_them_again():
    net = residual()
    before = {name: parameter.asnumpy() for name, parameter in net.parameters_dict().items()}
    grown = randomise_bn(insert(net, "repvgg"), 1)
    assert grown.insertion.replaced == dict.fromkeys(["stem", "conv1", "conv2", "tail.0"], "RepVGGBlock")
    assert grown.insertion.refused == {"raw": "no BN takes its output as it is"}
    assert grown.insertion.format().splitlines() == [
        "of 5 convolutions, 4 became RepVGGBlock",
        "raw stays: no BN takes its output as it is",
    ]
    assert list(rep_blocks(grown)) == list(grown.insertion.replaced)
    assert layers(grown) == (2 + 4 * 2, 1 + 4 * 2 + 3)
    bn = grown.stem.rbr_dense.bn
    assert (bn.eps, round(bn.momentum, 6), grown.conv1.rbr_dense.bn.eps) == (1e-3, 0.03, 1e-5)
    assert {"stem.rbr_dense.conv.weight", "tail.0.rbr_1x1.bn.gamma"} <= grown.parameters_dict().keys()
    assert not grown.training
    # The network itself is what it was.
    assert isinstance(net.stem, nn.Conv2d)
    assert all(np.array_equal(before[name], value.asnumpy()) for name, value in net.parameters_dict().items())
    assert check_fold(grown, 6, 1).stem.deploy
    check_fold(grown, 6, 0, fold_bn=True)


@pytest.mark.parametrize("block", SMALL_BLOCKS)
def test_every_block_is_folded_out_of_any_convolution(block):
    grown = randomise_bn(insert(residual(), block, ["stem", "conv1", "tail.0"], images()), 1)
    assert len(grown.insertion.replaced) == 3
    deployed = check_fold(grown, 6, 0, fold_bn=True)
    assert relative_difference(deployed(Tensor(images(seed=1))), grown(Tensor(images()))) > 0.01
    deployed.conv1.fused.weight.set_data(deployed.conv1.fused.weight * 1.0001)
    with pytest.raises(EquivalenceError, match=r"the two forms differ: conv1: the weights"):
        verify_equivalence(grown, deployed, images())


def test_where_chooses_by_name_and_by_what_a_convolution_is():
    net = residual()
    assert list(insert(net, "repvgg", "conv*").insertion.replaced) == ["conv1", "conv2"]
    depthwise = insert(net, "dilated", lambda path, conv: path.startswith("tail") and conv.kernel_size == (5, 5))
    assert depthwise.insertion.replaced == {"tail.0": "DilatedBlock"}
    check_fold(randomise_bn(depthwise), 6, 4)
    assert list(insert(net, "mobileone", "tail.3").insertion.replaced) == ["tail.3"]


def test_a_class_or_a_function_makes_the_block():
    def wide(in_channels, out_channels, **place):
        return RepVGGBlock(in_channels, out_channels, place["stride"], place["groups"], norm=place["norm"])

    with pytest.raises(FusionError, match=r"no convolution was replaced; tail\.0: RepVGGBlock makes kernel"):
        insert(residual(), wide, "tail.0")
    grown = insert(residual(), RepVGGBlock, "stem")
    assert isinstance(grown.stem, RepVGGBlock)


def test_what_cannot_be_replaced_is_listed_with_its_reason(caplog):
    net = residual()
    net.stem = conv2d(3, 8, 3, 2, padding=0)  # RepVGG's block has a padding of its own
    net.conv2.register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING):
        grown = insert(net, "repvgg")
    assert list(grown.insertion.replaced) == ["conv1", "tail.0"]
    assert grown.insertion.refused["stem"].startswith("RepVGGBlock makes kernel, stride, padding")
    assert grown.insertion.refused["conv2"].endswith("or has hooks, that no block copies")
    assert "Residual: of 5 convolutions, 2 became RepVGGBlock; stem stays: RepVGGBlock makes" in caplog.text


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"block \(='dbbb'\) must be one of .*; did you mean dbb\?"):
        insert(residual(), "dbbb")
    with pytest.raises(FusionError, match=r"was replaced; 'layer1\.\*' matches none of stem, "):
        insert(residual(), "repvgg", "layer1.*")
    with pytest.raises(FusionError, match="no convolution was replaced; where chooses none"):
        insert(residual(), "repvgg", lambda _path, _conv: False)
    with pytest.raises(FusionError, match="no convolution was replaced; raw: no BN takes its output"):
        insert(residual(), "repvgg", "raw")
    with pytest.raises(FusionError, match="replaced; the whole network: no BN takes its output"):
        insert(conv2d(3, 4, 3), "repvgg")
    with pytest.raises(FusionError, match="replaced; outside of blocks, none is larger than 1x1"):
        insert(conv2d(3, 4, 1), "repvgg")
    with pytest.raises(UserError, match=r"block \(=None\) must be the name of a block"):
        insert(residual(), None)
    for where in (5, Tensor(images()), ("conv1", 5)):
        with pytest.raises(UserError, match="must be a pattern of paths"):
            insert(residual(), "repvgg", where)
    with pytest.raises(TypeError, match=r"insert takes a mindspore\.nn\.Cell, and got a NoneType"):
        insert(None)


def test_a_pattern_that_matches_nothing_is_told():
    grown = insert(residual(), "repvgg", ["conv1", "layer9.*", "conv*"])
    assert list(grown.insertion.replaced) == ["conv1", "conv2"]
    assert grown.insertion.remarks == ("where: no convolution is called 'layer9.*'",)
    assert insert(residual(), "repvgg", ["conv1"]).insertion.remarks == ()


def test_weights_of_half_precision_are_refused():
    net = nn.SequentialCell(conv2d(3, 4, 3), batch_norm(4))
    for parameter in net.get_parameters():
        parameter.set_dtype(ms.float16)
    with pytest.raises(FusionError, match="0: its weights are Float16; blocks are inserted before half precision"):
        insert(net, "repvgg", None, images().astype(np.float16))


def test_frozen_parts_stay_frozen():
    net = residual().set_train()
    net.stem.weight.requires_grad = False
    net.bn1.gamma.requires_grad = False
    net.bn1.set_train(False)
    grown = insert(net, "repvgg")
    frozen = {parameter.name for parameter in grown.get_parameters() if not parameter.requires_grad}
    assert {"stem.rbr_dense.conv.weight", "stem.rbr_1x1.conv.weight", "conv1.rbr_1x1.bn.gamma"} <= frozen
    assert not {"conv1.rbr_dense.conv.weight", "stem.rbr_dense.bn.gamma", "conv2.rbr_dense.conv.weight"} & frozen
    assert not grown.conv1.rbr_dense.bn.training
    assert grown.conv2.rbr_dense.bn.training


# -------------------------------------------------------------------------------------------------------- the function


@pytest.mark.parametrize("block", SMALL_BLOCKS)
def test_the_function_is_kept(block):
    net = residual()
    net.bn2.gamma.set_data(
        net.bn2.gamma * Tensor(np.arange(8) > 3, net.bn2.gamma.dtype)
    )  # as a residual's last BN starts
    grown = insert(net, block, ["stem", "conv*"], images(), keep_function=True)
    assert relative_difference(outputs(grown), outputs(net)) < 1e-5
    apart = relative_difference(outputs(grown, training=True), outputs(net, training=True))
    if block == "qarepvgg":
        assert apart > 1e-3
        assert grown.insertion.remarks[0].startswith("the function is kept in inference alone")
    else:
        assert apart < 1e-6
        assert not grown.insertion.remarks
    check_fold(grown, 6, 0, fold_bn=True)


def test_without_keep_function_another_one_is_computed():
    net = residual()
    assert relative_difference(outputs(insert(net, "repvgg")), outputs(net)) > 0.01


class Bare(FoldableBlock):
    """A convolution beside its bare input; neither has a BN."""

    def make_branches(self, norm):
        self.large = conv2d(self.in_channels, self.out_channels, self.kernel_size, groups=self.groups)
        self.after = norm(self.out_channels)
        self.after_sum = ("after",) if self.groups == 1 else ()
        return ("large",), ()


def test_the_function_is_kept_by_a_block_of_ones_own():
    net = residual()
    grown = insert(net, Bare, "conv2", images(), keep_function=True)
    assert relative_difference(outputs(grown), outputs(net)) < 1e-5
    with pytest.raises(FusionError, match="conv1: Bare cannot be given the function of a convolution"):
        insert(net, Bare, "conv1", images(), keep_function=True)  # its BN has nobody to stand for its shift


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [("gamma", "not finite: there is no function to keep"), ("moving_variance", "bn1.moving_variance is not a number")],
)
def test_a_damaged_function_is_not_kept(leaf, reason):
    net = residual()
    getattr(net.bn1, leaf).set_data(Tensor(np.full(8, np.nan, np.float32)))
    assert reason in insert(net, "repvgg", "conv*", keep_function=True).insertion.refused["conv1"]


def test_new_branches_know_the_statistics_of_their_inputs():
    net, x = residual(), images()
    grown = insert(net, "repvgg", "stem", x, keep_function=True)
    bn = grown.stem.rbr_1x1.bn
    maps = array(grown.stem.rbr_1x1.conv(Tensor(x)))
    assert relative_difference(bn.moving_mean, maps.mean((0, 2, 3))) < 1e-5
    assert relative_difference(bn.moving_variance, maps.var((0, 2, 3))) < 1e-5
    assert not bn.gamma.asnumpy().any()
    assert np.array_equal(grown.stem.rbr_dense.bn.moving_variance.asnumpy(), net.stem_bn.moving_variance.asnumpy())


# ----------------------------------------------------------------------------------------------------- blocks in blocks


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("repvgg", "acb"), pytest.param("acb", "repvgg", marks=SLOW), pytest.param("mobileone", "dbb", marks=SLOW)],
)
def test_blocks_nest(outer, inner):
    net = residual()
    grown = insert(net, outer, ["conv1", "conv2"], images(), keep_function=True)
    place = {"repvgg": "*.rbr_dense.conv", "acb": "*.square_conv", "mobileone": "*.rbr_conv.0.conv"}[outer]
    nested = insert(grown, inner, place, images(), keep_function=True)
    assert len(nested.insertion.replaced) == 2
    assert list(insert(nested, "repvgg").insertion.replaced) == [
        "stem",
        "tail.0",
    ]  # not within blocks, unless asked for
    assert relative_difference(outputs(nested), outputs(net)) < 1e-5
    randomise_bn(nested, 1)
    deployed = check_fold(nested, 6, 3)
    with context_mode("graph"):
        assert relative_difference(deployed(Tensor(images())), nested(Tensor(images()))) < 1e-5


# -------------------------------------------------------------------------------------------------------------- ResNet


@pytest.mark.slow
@pytest.mark.parametrize("block", ["acb", "dbb"])
def test_mindcvs_mobilenet_is_grown_and_folded(block):
    net = randomise_bn(pytest.importorskip("mindcv.models").create_model("mobilenet_v2_100", num_classes=5))
    grown = randomise_bn(insert(net.set_train(False), block, inputs=images()), 1)
    assert len(grown.insertion.replaced) == 18  # the stem and 17 depthwise convolutions
    check_fold(grown, 52, 0, fold_bn=True)


@pytest.mark.parametrize(
    "block", [block if block == "repvgg" else pytest.param(block, marks=SLOW) for block in SMALL_BLOCKS]
)
def test_mindcvs_resnet18_is_grown_and_folded(block, pytestconfig):
    if pytestconfig.getoption("--announced-signatures"):
        pytest.skip("MindCV makes its convolutions by today's signatures")
    net = randomise_bn(pytest.importorskip("mindcv.models").create_model("resnet18", num_classes=5)).set_train(False)
    grown = insert(net, block, lambda _, conv: conv.kernel_size == (3, 3), images())
    assert len(grown.insertion.replaced) == 16
    assert layers(net) == (20, 20)
    randomise_bn(grown, 1)
    check_fold(grown, 20, 0, fold_bn=True)
