"""From train form to deploy form: every network, foreign cells, and a proof that can fail."""

import copy
import gc
import json
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import SMALL, array, context_mode, images, noise, randomise_bn, relative_difference, weights
from support.golden import FAMILY, GOLDEN

from mindrepvgg import create_model, reparam, to_deploy, verify_equivalence
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.evaluation.crosscheck import cross_check
from mindrepvgg.reparam.blocks import RepVGGBlock
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.layers import batch_norm, conv2d
from mindrepvgg.reparam.parts import ConvBN

compat = pytest.mark.compat

KINDS = ["g4", "d2se", "plus"]
# The default suite runs one network of the family, besides small ones of every kind.
QUICK = [("repvgg_a0", "pynative")]


def small(kind="plain", seed=0, **options):
    """A small network with a random history, in inference; the same one for the same seed."""
    ms.set_seed(seed)
    return randomise_bn(create_model("repvgg", 10, **{**SMALL[kind], **options}), seed).set_train(False)


def same(before, after):
    """Whether two sets of named arrays are the same, bit for bit."""
    return before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


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
    assert same(before, weights(net))
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
    assert same(before, weights(net))
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
    weight = deployed[6].lk_origin.weight
    weight.set_data(weight * 1.001)
    report = verify_equivalence(net, deployed, x, raise_on_failure=False)
    assert report.failures[0] == "6: the weights differ from the fused branches by 1.0e-03"
    assert all(failure.startswith(("6: ", "the networks' outputs")) for failure in report.failures), report.failures


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


# --------------------------------------------------------------------------------------------------- verify_equivalence


@compat
@pytest.mark.parametrize("as_given", [np.array, lambda x: (Tensor(x),)], ids=["array", "tuple-of-tensor"])
def test_the_report_tells_what_was_measured(pynative_mode, as_given):
    net = small("d2se")
    report = verify_equivalence(net, to_deploy(net), as_given(images(5, 3, 32, 32)), rtol=1e-3)
    assert (report.passed, report.failures, report.num_inputs, report.rtol) == (True, (), 5, 1e-3)
    assert report.class_agreement == 1
    assert [block.name for block in report.blocks] == [spec.name for spec in net.variant.block_specs()]
    assert all(0 < block.max_rel < 1e-5 and 0 < block.max_abs < 1e-4 for block in report.blocks)
    assert all(block.weight_rel < 2e-7 for block in report.blocks)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["passed"] is True
    assert plain["blocks"][1]["name"] == "stage1.0"
    lines = report.format().splitlines()
    assert lines[0].split() == ["block", "max", "abs", "max", "rel", "weights"]
    assert lines[1].startswith("stage0 ")
    assert lines[-3].startswith("output ")
    assert lines[-2:] == ["same class on 100.00% of 5 inputs", "equivalent (tolerance 0.001 of the largest output)"]


def test_the_measures_are_of_the_outputs(pynative_mode):
    """max_abs, max_rel and class_agreement for an error that is known."""
    net, x = small(), images()
    deployed = to_deploy(net)
    logits = array(net(Tensor(x)))
    other = (logits[0].argmax() + 1) % 10
    edit(deployed.linear.bias, lambda value: value.__setitem__(other, value[other] + 50))
    report = verify_equivalence(net, deployed, x, raise_on_failure=False)
    assert report.max_abs == pytest.approx(50, rel=1e-4)
    assert report.max_rel == pytest.approx(50 / np.abs(logits).max(), rel=1e-4)
    assert report.class_agreement == np.mean(logits.argmax(1) == other) <= 0.5
    assert all(block.max_rel < 1e-5 for block in report.blocks)


def edit(parameter, change):
    """Change a copy of a parameter's array in place and put it back."""
    value = parameter.asnumpy().copy()
    change(value)
    parameter.set_data(Tensor(value))


def off_by_a_thousandth(train, deployed):
    def change(value):
        value[3, 2, 1, 1] += 1e-3

    edit(deployed.stage1[1].rbr_reparam.weight, change)


def dropped_bias(train, deployed):
    edit(deployed.stage1[1].rbr_reparam.bias, lambda value: value.fill(0))


def nan_in_kernel(train, deployed):
    edit(deployed.stage1[1].rbr_reparam.weight, lambda value: value.itemset((0, 0, 0, 0), np.nan))


def nan_in_bias(train, deployed):
    edit(deployed.stage1[1].rbr_reparam.bias, lambda value: value.itemset(0, np.nan))


def changed_se(train, deployed):
    edit(deployed.stage1[1].se.up.bias, lambda value: value.__isub__(1))


def changed_head(train, deployed):
    edit(deployed.linear.weight, lambda value: value.__imul__(1.01))


def branches_swapped(train, deployed):
    """The deploy form of a block in which the 1x1 branch's statistics and the identity's have changed places."""
    block = copy.deepcopy(train.stage1[1])
    for leaf in ("moving_mean", "moving_variance"):
        pointwise, identity = getattr(block.rbr_1x1.bn, leaf), getattr(block.rbr_identity, leaf)
        first, second = pointwise.asnumpy().copy(), identity.asnumpy().copy()
        pointwise.set_data(Tensor(second))
        identity.set_data(Tensor(first))
    kernel, bias = block.fused_kernel_bias()
    deployed.stage1[1].rbr_reparam.weight.set_data(Tensor(kernel, ms.float32))
    deployed.stage1[1].rbr_reparam.bias.set_data(Tensor(bias, ms.float32))


def another_network(train, deployed):
    edit(train.stage1[1].rbr_dense.conv.weight, lambda value: value.__iadd__(noise(*value.shape)))


@compat
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (off_by_a_thousandth, "stage1.1: the weights differ from the fused branches by "),
        (dropped_bias, "stage1.1: the weights differ from the fused branches by 1.0e+00"),
        (nan_in_kernel, "stage1.1: the weights differ from the fused branches by nan"),
        (nan_in_bias, "stage1.1: the weights differ from the fused branches by nan"),
        (branches_swapped, "stage1.1: the weights differ from the fused branches by "),
        (another_network, "stage1.1: the weights differ from the fused branches by "),
        (changed_se, "stage1.1: the outputs differ by "),
        (changed_head, "the two forms differ: the networks' outputs differ by "),
    ],
)
def test_a_wrong_deploy_form_is_found(pynative_mode, damage, text):
    net = small("d2se")
    deployed = to_deploy(net)
    damage(net, deployed)
    with pytest.raises(EquivalenceError) as caught:
        verify_equivalence(net, deployed, images())
    assert str(caught.value).startswith("the two forms differ: ")
    assert text in str(caught.value)
    report = caught.value.report
    assert not report.passed
    # The other blocks are compared on the train network's own activations: one wrong block is told as one.
    assert not any(failure.startswith("stage") and "stage1.1:" not in failure for failure in report.failures)
    assert report.to_dict()["passed"] is False
    assert report.format().splitlines()[-1].startswith("NOT equivalent: ")


@compat
def test_a_nan_in_any_output_fails(pynative_mode):
    net = detector()
    deployed = to_deploy(net)
    edit(deployed.scale, lambda value: value.fill(np.nan))  # reaches the second output only, and no block
    with pytest.raises(EquivalenceError, match="the networks' outputs differ by nan of the largest"):
        verify_equivalence(net, deployed, images())


@compat
def test_the_tolerance_is_the_callers(pynative_mode):
    net = small()
    deployed = to_deploy(net)
    changed_head(net, deployed)
    assert verify_equivalence(net, deployed, images(), rtol=0.1).passed
    assert not verify_equivalence(net, deployed, images(), rtol=1e-3, raise_on_failure=False).passed


@compat
def test_a_network_of_agreeing_blocks_is_told_of_the_tolerance(pynative_mode):
    net = small()
    net.linear.weight.set_data(net.linear.weight * 0)
    deployed = to_deploy(net)
    deployed.linear.bias.set_data(deployed.linear.bias * 1.0002)
    with pytest.raises(EquivalenceError) as caught:
        verify_equivalence(net, deployed, images())
    assert re.search(
        r"^the two forms differ: the networks' outputs differ by 2\.0e-04 of the largest, and every block agrees to "
        r"\S+e-0[67]: either .*, and a larger rtol accepts it \(convert: --rtol\)$",
        str(caught.value),
    )
    assert verify_equivalence(net, deployed, images(), rtol=1e-3).passed


@compat
@pytest.mark.parametrize("rtol", [np.nan, -1e-4, np.inf])
def test_a_tolerance_that_says_nothing_is_refused(rtol):
    with pytest.raises(UserError, match=r"^rtol \(=\S+\) must be a number of at least 0$"):
        verify_equivalence(None, None, None, rtol=rtol)
    with pytest.raises(UserError, match=r"^rtol \(=\S+\) must be a number of at least 0$"):
        cross_check(None, None, [], rtol=rtol)


ORDER = "the first network must be in train form, the second in deploy form"


@compat
@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (lambda: small(deploy=True), small, ORDER),
        (small, small, ORDER),
        (lambda: small(deploy=True), lambda: small(deploy=True), ORDER),
        (small, lambda: small("plus", deploy=True), "do not have the same blocks; they differ at stage3.0, "),
        (
            small,
            lambda: create_model("repvgg", 10, **{**SMALL["plain"], "widths": (8, 8, 16, 24, 40)}, deploy=True),
            "block stage4.0 has a kernel of (32, 24, 3, 3) in one network and (40, 24, 3, 3) in the other",
        ),
        (lambda: nn.Dense(3, 3), lambda: small(deploy=True), "the networks do not have the same blocks"),
        (lambda: nn.Dense(3, 3), lambda: nn.Dense(3, 3), "they differ at every one"),
        (
            small,
            lambda: create_model("repvgg", 7, **SMALL["plain"], deploy=True),
            "outputs have shapes [(2, 10)] and [(2, 7)]: they do not compare",
        ),
    ],
    ids=["reversed", "both-train", "both-deploy", "layouts", "widths", "foreign", "nothing", "classes"],
)
def test_networks_that_are_no_pair_are_refused(pynative_mode, first, second, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared literally below
        verify_equivalence(first(), second(), images())
    assert text in str(caught.value)


def training_flags(*nets):
    return [cell.training for net in nets for _, cell in net.cells_and_names()]


@compat
@pytest.mark.parametrize(
    ("mode", "outcome"), [("graph", "passes"), ("graph", "raises"), ("pynative", "passes"), ("pynative", "fails")]
)
def test_both_networks_and_the_mode_are_left_as_they_were(mode, outcome):
    with context_mode(mode):
        check_left_as_they_were(outcome)


def check_left_as_they_were(outcome):
    net = small("plus", num_blocks=(1, 1, 2, 1)).set_train()
    net.stage2[0].rbr_dense.bn.set_train(False)  # frozen
    deployed = to_deploy(net).set_train(False)
    deployed.stage1.set_train()
    if outcome == "fails":
        edit(deployed.linear.bias, lambda value: value.fill(7))
    before, flags, context = [weights(net), weights(deployed)], training_flags(net, deployed), ms.get_context("mode")
    assert len(set(flags)) == 2
    x = images(2, 5, 32, 32) if outcome == "raises" else images()
    if outcome == "passes":
        verify_equivalence(net, deployed, x)
    else:
        error = EquivalenceError if outcome == "fails" else Exception
        with pytest.raises(error, match="differ" if outcome == "fails" else "(?i)channel|conv"):
            verify_equivalence(net, deployed, x)
    assert ms.get_context("mode") == context
    assert training_flags(net, deployed) == flags
    assert same(before[0], weights(net))
    assert same(before[1], weights(deployed))
    # No comparison is left behind in the blocks either: it would fail on this deploy form.
    deployed.stage0.rbr_reparam = nn.Conv2d(7, 7, 3)
    with context_mode("pynative"):
        assert len(net(Tensor(images()))) == 4


# ------------------------------------------------------------------------------------------------------ the stale graph


def switch_naively(net):
    """What looks like switching in place: the blocks change, the compiled graphs around them do not know."""
    for block in rep_blocks(net).values():
        conv = block.equivalent_conv()
        names = [parameter.name for parameter in conv.get_parameters()]
        for name in block.branches():
            delattr(block, name)
        block.rbr_reparam = conv
        for parameter, name in zip(conv.get_parameters(), names, strict=True):
            parameter.name = name
        block.deploy = True


def ruin(net):
    """Make every convolution of the deploy form return nothing."""
    for block in rep_blocks(net).values():
        for parameter in (block.rbr_reparam.weight, block.rbr_reparam.bias):
            edit(parameter, lambda value: value.fill(0))


@compat
def test_a_stale_graph_would_pass_vacuously_but_not_here(graph_mode):
    train, net = (small(num_blocks=(1, 1, 1, 1)) for _ in range(2))
    x = Tensor(images())
    expected = array(net(x))
    switch_naively(net)
    ruin(net)
    # Comparing outputs before and after proves nothing: the outer graph still runs the branches that are gone.
    np.testing.assert_array_equal(array(net(x)), expected)
    report = verify_equivalence(train, net, x, raise_on_failure=False)
    assert len(report.failures) >= len(report.blocks)
    assert all(block.weight_rel == 1 for block in report.blocks)


@compat
@pytest.mark.parametrize("switch", ["in-place", "to_deploy"])
def test_a_ruined_deploy_form_shows_in_a_compiled_network(graph_mode, switch):
    net, x = small(num_blocks=(1, 1, 1, 1)), Tensor(images())
    expected = array(net(x))
    deployed = to_deploy(net) if switch == "to_deploy" else net
    if switch == "in-place":
        net.switch_to_deploy()
    assert relative_difference(deployed(x), expected) < 1e-4
    ruin(deployed)
    bias = array(deployed.linear.bias)
    np.testing.assert_allclose(array(deployed(x)), np.stack([bias, bias]), rtol=1e-6)
    if switch == "to_deploy":
        np.testing.assert_array_equal(array(net(x)), expected)
