"""The proof that two forms compute the same: what it measures, what it finds, and what it leaves as it was."""

import copy
import json
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from support import (
    SMALL,
    array,
    context_mode,
    images,
    noise,
    randomise_bn,
    relative_difference,
    same_weights,
    small,
    weights,
)

from mindrepvgg import create_model, to_deploy, verify_equivalence
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.evaluation.crosscheck import cross_check
from mindrepvgg.reparam.blocks import RepVGGBlock
from mindrepvgg.reparam.finding import rep_blocks

compat = pytest.mark.compat


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


class TwoOutputs(nn.Cell):
    """Gives a block's map, and the same scaled."""

    def __init__(self):
        super().__init__()
        self.block = RepVGGBlock(3, 8)
        self.scale = Parameter(Tensor([2.0], ms.float32), name="scale")

    def construct(self, x):
        y = self.block(x)
        return y, {"scaled": y * self.scale}


@compat
def test_a_nan_in_any_output_fails(pynative_mode):
    net = randomise_bn(TwoOutputs()).set_train(False)
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
def test_half_precision_is_named_where_it_does_not_pass(pynative_mode):
    net = small()
    deployed = to_deploy(net)
    changed_head(net, deployed)
    with pytest.raises(EquivalenceError) as caught:
        verify_equivalence(net, deployed, images(), rtol=1e-3)
    assert "half precision" not in str(caught.value)
    with pytest.raises(EquivalenceError, match=r"; they compute in half precision: give a larger rtol$"):
        verify_equivalence(net.to_float(ms.float16), deployed, images(), rtol=1e-3)


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


@pytest.mark.parametrize(
    "wrong", [images(2, 1, 32, 32), (images(), images()), "x"], ids=["channels", "arguments", "type"]
)
@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_inputs_that_the_network_does_not_take_are_refused_in_a_line(mode, wrong):
    net = nn.SequentialCell(RepVGGBlock(3, 4)).set_train(False)
    with context_mode(mode), pytest.raises(UserError) as caught:
        verify_equivalence(net, to_deploy(net), wrong)
    assert str(caught.value).startswith("SequentialCell cannot be run on the inputs that were given: ")
    assert str(caught.value).endswith("; several arguments are given as a tuple")
    assert "\n" not in str(caught.value)


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
    assert same_weights(before[0], weights(net))
    assert same_weights(before[1], weights(deployed))
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
