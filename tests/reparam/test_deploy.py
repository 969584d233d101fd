"""From train form to deploy form: every network, foreign cells, and mixed precision."""

import gc

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import array, context_mode, images, randomise_bn, relative_difference, same_weights, small, weights
from support.golden import FAMILY, GOLDEN

from mindrepvgg import create_model, reparam, to_deploy, verify_equivalence
from mindrepvgg.reparam.blocks import RepVGGBlock
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.layers import batch_norm, conv2d
from mindrepvgg.reparam.parts import ConvBN

compat = pytest.mark.compat

KINDS = ["g4", "d2se", "plus"]
# The default suite runs one network of the family, besides small ones of every kind.
QUICK = [("repvgg_a0", "pynative")]


# ----------------------------------------------------------------------------------------------------------- the family


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=() if (name, mode) in QUICK else pytest.mark.slow)
        for name in FAMILY
        for mode in ("graph", "pynative")
    ],
)
def test_every_network_equals_its_deploy_form_in_both_modes(name, mode):
    net = randomise_bn(create_model(name)).set_train(False)
    deployed = to_deploy(net)
    for form, count in zip((net, deployed), GOLDEN[name], strict=False):
        assert sum(parameter.size for parameter in form.trainable_params()) == count
    x = images()
    with context_mode(mode):
        report = verify_equivalence(net, deployed, x)
        expected = net(Tensor(x))
    assert report.max_rel < 1e-4
    assert len(report.blocks) == len(net.variant.block_specs())
    # Logits that do not move with the image would agree whatever happened in between.
    assert relative_difference(expected[:1], expected[1:]) > 0.02
    del net, deployed, report
    gc.collect()


@compat
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("pynative", kind) for kind in KINDS),
        ("graph", "plus"),
        *(pytest.param("graph", kind, marks=pytest.mark.slow) for kind in ("g4", "d2se")),
    ],
)
def test_small_networks_of_every_kind_equal_their_deploy_form(mode, kind):
    net = small(kind)
    with context_mode(mode):
        report = verify_equivalence(net, to_deploy(net), images())
    assert report.passed
    assert report.max_rel < 1e-5


# ------------------------------------------------------------------------------------------------------------ to_deploy


@compat
@pytest.mark.parametrize("kind", KINDS)
def test_to_deploy_leaves_the_original_and_shares_nothing(pynative_mode, kind):
    net, x = small(kind), Tensor(images())
    net.metadata = {"classes": ["cat"]}
    before, output = weights(net), array(net(x))
    deployed = to_deploy(net)
    ours, theirs = list(net.get_parameters()), list(deployed.get_parameters())
    assert not any(np.shares_memory(p.asnumpy(), q.asnumpy()) for p in ours for q in theirs)
    for parameter in deployed.get_parameters():
        parameter.set_data(Tensor(np.zeros(parameter.shape), parameter.dtype))
    deployed.metadata["classes"].append("dog")
    assert same_weights(before, weights(net))
    assert net.metadata == {"classes": ["cat"]}
    np.testing.assert_array_equal(array(net(x)), output)


@compat
@pytest.mark.parametrize("kind", KINDS)
def test_to_deploy_gives_the_names_of_a_network_built_in_deploy_form(kind):
    deployed, built = to_deploy(small(kind)), small(kind, deploy=True)
    assert [(p.name, p.shape, p.dtype) for p in deployed.get_parameters()] == [
        (p.name, p.shape, p.dtype) for p in built.get_parameters()
    ]
    assert weights(deployed)  # unique names
    assert deployed.deploy
    ms.load_param_into_net(built, {p.name: p for p in deployed.get_parameters()}, strict_load=True)
    x = Tensor(images())
    np.testing.assert_array_equal(array(built(x)), array(deployed(x)))


@compat
def test_a_partly_switched_network_is_completed(pynative_mode):
    net, x = small(), Tensor(images())
    before = net(x)
    net.stage1[0].switch_to_deploy()
    deployed = to_deploy(net)
    assert [block.deploy for block in rep_blocks(deployed).values()] == [True] * 7
    assert not net.stage0.deploy
    assert relative_difference(deployed(x), before) < 1e-5
    report = verify_equivalence(net, deployed, images())
    assert "stage1.0" not in [block.name for block in report.blocks]
    assert len(report.blocks) == 6


@compat
def test_there_must_be_something_to_fuse():
    with pytest.raises(ValueError, match="Dense contains no block with branches: there is nothing to fuse"):
        to_deploy(nn.Dense(3, 4))
    with pytest.raises(ValueError, match="RepVGG is in deploy form already: there is nothing to fuse"):
        to_deploy(small(deploy=True))


# -------------------------------------------------------------------------------------------------------- foreign cells


class Neck(nn.Cell):
    """Applies one shared block to every map."""

    def __init__(self, channels, **options):
        super().__init__()
        self.shared = RepVGGBlock(channels, channels, groups=2, **options)

    def construct(self, *maps):
        return tuple(self.shared(x) for x in maps)


class Detector(nn.Cell):
    """Blocks at several depths, strided, grouped, dilated, with SE, in a SequentialCell, a CellList, and one shared."""

    def __init__(self, **options):
        super().__init__()
        self.stem = nn.SequentialCell(conv2d(3, 8, 3), batch_norm(8), nn.ReLU())
        self.stages = nn.CellList(
            [
                nn.SequentialCell(
                    RepVGGBlock(8, 8, 2, **options),
                    nn.SequentialCell(RepVGGBlock(8, 8, se="pre", se_ratio=4, **options), nn.MaxPool2d(2, 2)),
                ),
                RepVGGBlock(8, 8, dilation=2, groups=4, se="post", se_ratio=2, **options),
            ]
        )
        self.neck = Neck(8, **options)
        self.scale = ms.Parameter(Tensor([2.0], ms.float32), name="scale")

    def construct(self, x):
        first = self.stages[0](self.stem(x))
        first, second = self.neck(first, self.stages[1](first))
        return first, {"scaled": second * self.scale}


def maps(output):
    """The detector's two maps."""
    return output[0], output[1]["scaled"]


def detector(**options):
    return randomise_bn(Detector(**options)).set_train(False)


@compat
@pytest.mark.parametrize(
    ("mode", "norm"), [("graph", nn.BatchNorm2d), ("pynative", nn.BatchNorm2d), ("pynative", nn.SyncBatchNorm)]
)
def test_foreign_cells_are_deployed_with_all_their_blocks(mode, norm):
    with context_mode(mode):
        check_foreign_cells(norm)


def check_foreign_cells(norm):
    net, x = detector(norm=norm), images(2, 3, 32, 48)
    assert sum(isinstance(cell, norm) for _, cell in net.cells_and_names()) >= 11
    before = weights(net)
    expected = net(Tensor(x))
    deployed = to_deploy(net)
    assert same_weights(before, weights(net))
    assert list(weights(deployed)) == list(weights(Detector(deploy=True)))
    for one, truth in zip(maps(deployed(Tensor(x))), maps(expected), strict=True):
        assert relative_difference(one, truth) < 1e-5
        assert relative_difference(truth[:1], truth[1:]) > 0.02
    report = verify_equivalence(net, deployed, x)
    assert [block.name for block in report.blocks] == [
        "stages.0.0",
        "stages.0.1.0",
        "stages.1",
        "neck.shared",
    ]
    assert report.class_agreement is None
    assert "same class" not in report.format()


class Siamese(nn.Cell):
    """One block under two names."""

    def __init__(self):
        super().__init__()
        self.left = RepVGGBlock(3, 8)
        self.right = self.left

    def construct(self, x, y):
        return self.left(x) - self.right(y)


@compat
def test_a_shared_block_stays_shared(mode):
    net = randomise_bn(Siamese()).set_train(False)
    deployed = to_deploy(net)
    assert deployed.left is deployed.right
    assert deployed.left.deploy
    assert not net.left.deploy
    assert verify_equivalence(net, deployed, (images(seed=1), images(seed=2))).passed


@compat
def test_a_bare_block_is_deployed(mode):
    block = randomise_bn(RepVGGBlock(8, 8)).set_train(False)
    report = verify_equivalence(block, to_deploy(block), images(2, 8, 9, 7))
    assert [found.name for found in report.blocks] == [""]


# -------------------------------------------------------------------------------------- the user's own mixed precision


def in_half(net, way):
    if way == "to_float":
        return net.to_float(ms.float16)
    if way == "one block":
        net[1].to_float(ms.float16)
        return net
    if way == "O2 twice":
        net = in_half(net, "O2")
        way = "O2"
    return ms.amp.auto_mixed_precision(net, way, ms.float16)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("way", "mode"),
    [
        ("to_float", "pynative"),
        ("one block", "pynative"),
        ("O2", "pynative"),
        ("O3", "pynative"),
        ("O2", "graph"),
        ("O2 twice", "pynative"),
        ("auto", "pynative"),
        pytest.param("O1", "pynative", marks=SLOW),
        *(pytest.param(way, "graph", marks=SLOW) for way in ("to_float", "one block", "O1", "O3", "auto")),
    ],
)
def test_a_network_in_the_users_mixed_precision_is_fused(way, mode, rewriting):
    with context_mode(mode):
        check_mixed_precision(way)


def check_mixed_precision(way):
    def blocks():
        ms.set_seed(0)
        first, second = RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8, se="pre", se_ratio=4)
        return randomise_bn(nn.SequentialCell(first, second)).set_train(False)

    x = Tensor(images())
    with context_mode("pynative"):
        single = array(blocks()(x))
    net = in_half(blocks(), way)
    half = net(x)
    deployed = to_deploy(net, x)
    fused = deployed(x)
    assert fused.dtype == half.dtype
    assert relative_difference(fused, half) < 5e-3
    # Both are float16's error away from float32: the fused network computes in half precision as well.
    assert 1e-5 < relative_difference(half, single) < 5e-3
    assert 1e-5 < relative_difference(fused, single) < 5e-3
    assert list(weights(deployed)) == list(weights(to_deploy(blocks())))
    assert all(parameter.dtype == ms.float32 for parameter in deployed.get_parameters())


@compat
def test_blocks_of_every_kind_fuse_in_one_network(pynative_mode):
    """Each keeps the name its authors gave the convolution; the report names the block that is off."""
    blocks = {
        reparam.RepVGGBlock(8, 8): "rbr_reparam",
        reparam.QARepVGGBlock(8, 8): "rbr_reparam",
        reparam.LinearAdditionBlock(8, 8): "rbr_reparam",
        reparam.ACBlock(8, 8): "fused_conv",
        reparam.DiverseBranchBlock(8, 8, groups=2): "dbb_reparam",
        reparam.MobileOneBlock(8, 8, num_branches=2): "reparam_conv",
        reparam.LargeKernelBlock(8, 8, 7, groups=8): "lkb_reparam",
        reparam.DilatedBlock(8, 5): "lk_origin",
        reparam.RepConv(8, 8): "rbr_reparam",
        reparam.RepConvN(8, 8): "conv",
        reparam.RepVGGDW(8): "conv",
    }
    net, x = randomise_bn(nn.SequentialCell(*blocks)).set_train(False), Tensor(images(2, 8, 9, 7))
    deployed = to_deploy(net, x)
    names = [f"{i}.{name}.{leaf}" for i, name in enumerate(blocks.values()) for leaf in ("weight", "bias")]
    assert list(weights(deployed)) == names
    assert relative_difference(deployed(x), net(x)) < 1e-5
    weight = deployed[7].lk_origin.weight
    weight.set_data(weight * 1.001)
    report = verify_equivalence(net, deployed, x, raise_on_failure=False)
    assert report.failures[0] == "7: the weights differ from the fused branches by 1.0e-03"
    assert all(failure.startswith(("7: ", "the networks' outputs")) for failure in report.failures), report.failures


def test_a_block_whose_cells_o1_rewrote_is_fused(pynative_mode, rewriting):
    block, x = randomise_bn(RepVGGBlock(8, 8)).set_train(False), Tensor(images(2, 8, 9, 7))
    expected = block.fused_kernel_bias()
    net = ms.amp.auto_mixed_precision(nn.SequentialCell(block), "O1", ms.float16)
    assert type(net.cell_list[0].rbr_dense).__module__ != ConvBN.__module__
    half, deployed = net(x), to_deploy(net)
    assert 1e-5 < relative_difference(deployed(x), half) < 5e-3
    for value, truth in zip(net.cell_list[0].get_equivalent_kernel_bias(), expected, strict=True):
        assert relative_difference(value, truth) < 1e-6


@pytest.mark.parametrize("way", ["to_float", "O2", "O3"])
def test_bfloat16_stays(way):
    """By its flags only: MindSpore has no bfloat16 convolution on CPU."""
    net = small("d2se")
    net = net.to_float(ms.bfloat16) if way == "to_float" else ms.amp.auto_mixed_precision(net, way, ms.bfloat16)
    for block in rep_blocks(to_deploy(net)).values():
        for cell in (block, block.rbr_reparam, block.se.up, block.activation):
            assert cell.get_flags()["bf16"] is True
            assert not cell.get_flags()["fp16"]


class EquivalentKernel(nn.Cell):
    """Gives a block's equivalent kernel and bias."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def construct(self):
        return self.block.get_equivalent_kernel_bias()


def test_the_equivalent_kernel_in_the_users_mixed_precision(mode):
    block = randomise_bn(RepVGGBlock(8, 8)).set_train(False)
    expected = block.fused_kernel_bias()
    ms.amp.auto_mixed_precision(block, "O2", ms.float16)
    block.to_float(ms.float32)
    for value, truth in zip(EquivalentKernel(block)(), expected, strict=True):
        assert relative_difference(value, truth) < 1e-6
