"""What a block keeps when it is fused, and what is found, or said, of cells that cannot be."""

import logging
import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from support import SMALL, array, images, randomise_bn, relative_difference, torch_reference, weights

from mindrepvgg import create_model, to_deploy
from mindrepvgg.errors import UserError
from mindrepvgg.reparam import foldable
from mindrepvgg.reparam.blocks import RepVGGBlock
from mindrepvgg.reparam.finding import hidden_blocks
from mindrepvgg.reparam.layers import batch_norm, conv2d
from mindrepvgg.training.freeze import freeze

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("pynative_mode")]


class Scaled(RepVGGBlock):
    """A user's block: a parameter, an attribute and a method of its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = Parameter(Tensor([3.0], ms.float32), name="gain")
        self.label = ["mine"]

    def construct(self, x):
        return super().construct(x) * self.gain


def ready(block):
    return randomise_bn(block).set_train(False)


def check_same(net, deployed, shape=(2, 8, 9, 7)):
    x = Tensor(images(*shape))
    expected = net(x)
    assert relative_difference(deployed(x), expected) < 1e-5
    assert relative_difference(expected[:1], expected[1:]) > 0.02


@pytest.mark.parametrize("around", [lambda block: block, nn.SequentialCell], ids=["bare", "inside"])
def test_a_subclass_stays_what_it_is(around):
    net = ready(around(Scaled(8, 8)))
    deployed = to_deploy(net)
    block = deployed if around is not nn.SequentialCell else deployed[0]
    assert type(block) is Scaled
    assert block.label == ["mine"]
    check_same(net, deployed)
    names = [name.rpartition("0.")[2] for name in weights(deployed)]
    assert names == ["gain", "rbr_reparam.weight", "rbr_reparam.bias"]
    source = net if around is not nn.SequentialCell else net[0]
    assert block.label is not source.label
    assert not np.shares_memory(block.gain.asnumpy(), source.gain.asnumpy())


def test_another_activation_stays():
    block = ready(RepVGGBlock(8, 8))
    block.activation = nn.LeakyReLU(0.1)
    check_same(block, to_deploy(block))
    assert array(to_deploy(block)(Tensor(images(2, 8, 9, 7)))).min() < 0


def test_hooks_stay():
    block, calls = ready(RepVGGBlock(8, 8)), []
    block.register_forward_hook(lambda cell, inputs, output: calls.append(cell) or output * 2)
    block.register_forward_pre_hook(lambda cell, inputs: (inputs[0] + 1,))
    deployed = to_deploy(block)
    assert calls == []
    check_same(block, deployed)
    assert calls == [block, deployed]


@pytest.mark.parametrize("kind", ["hook", "pre_hook"])
def test_hooks_of_the_backward_pass_stay(kind):
    net, calls = ready(nn.SequentialCell(RepVGGBlock(8, 8))), []
    for cell in (net, net[0]):
        getattr(cell, f"register_backward_{kind}")(lambda cell, *gradients: calls.append(cell))
    for form in (to_deploy(net), net):
        calls.clear()
        ms.grad(lambda x, form=form: form(x).sum())(Tensor(images(2, 8, 9, 7)))
        assert sorted(map(id, calls)) == sorted(map(id, (form, form[0])))


def test_bn_counts_with_the_epsilon_that_it_computes_with():
    """MindSpore's BN looks at its attribute once, when it is made."""
    block = ready(RepVGGBlock(8, 8))
    block.rbr_dense.bn.eps = 0.5
    check_same(block, to_deploy(block))


def test_every_branch_counts_with_its_own_epsilon():
    values = 1e-5, 1e-1, 1e-2
    left = iter(values)
    block = ready(RepVGGBlock(8, 8, norm=lambda channels: batch_norm(channels, eps=next(left))))
    reference = torch_reference.copy_weights(block, torch_reference.Block(8, 8).double()).eval()
    norms = reference.rbr_dense.bn, reference.rbr_1x1.bn, reference.rbr_identity
    for bn, eps in zip(norms, values, strict=True):
        bn.eps = eps
    for exact, truth in zip(block.fused_kernel_bias(), torch_reference.probe_kernel(reference), strict=True):
        assert relative_difference(exact, truth) < 1e-12
    for bn in norms:  # a check that could not tell them apart would pass here too
        bn.eps = 1e-5
    assert relative_difference(block.fused_kernel_bias()[0], array(torch_reference.probe_kernel(reference)[0])) > 1e-3


@pytest.mark.parametrize(("rows", "parts"), [(3, 3), (8, 1), (9, 1), (0.5, 8)])
def test_many_channels_are_fused_in_parts(monkeypatch, rows, parts):
    monkeypatch.setattr(foldable, "_BYTES_AT_ONCE", int(rows * 4 * 3 * 3 * 8))
    block = ready(RepVGGBlock(8, 8, groups=2))
    reference = torch_reference.copy_weights(block, torch_reference.Block(8, 8, groups=2).double())
    exact, calls = block.linear_map, []
    monkeypatch.setattr(block, "linear_map", lambda read: calls.append(read.rows) or exact(read))
    for got, truth in zip(block.fused_kernel_bias(), torch_reference.probe_kernel(reference), strict=True):
        assert relative_difference(got, truth) < 1e-12
    assert len(calls) == parts


def test_the_fused_kernel_is_rounded_once_at_the_end():
    block = ready(RepVGGBlock(8, 8))
    for rounded, exact in zip(block.fused_kernel_bias(np.float32), block.fused_kernel_bias(), strict=True):
        assert (rounded.dtype, exact.dtype) == (np.float32, np.float64)
        np.testing.assert_array_equal(rounded, exact.astype(np.float32))


def test_arrays_that_others_have_become_no_parameters():
    class Seen(RepVGGBlock):
        def fused_kernel_bias(self, dtype=np.float64):
            return self.rbr_dense.conv.weight.asnumpy(), self.rbr_dense.bn.beta.asnumpy()

    block = ready(Seen(8, 8))
    conv, given = block.equivalent_conv(), block.fused_kernel_bias()
    for parameter, part in zip((conv.weight, conv.bias), given, strict=True):
        np.testing.assert_array_equal(parameter.asnumpy(), part)
        assert not np.shares_memory(parameter.asnumpy(), part)


def test_mindspores_own_copies_of_a_fused_parameter_have_its_values():
    for parameter in ready(RepVGGBlock(8, 8)).equivalent_conv().get_parameters():
        for copied in (parameter.clone(), pickle.loads(pickle.dumps(parameter))):
            np.testing.assert_array_equal(copied.asnumpy(), parameter.asnumpy())


def test_flags_and_the_training_mode_stay():
    net = nn.SequentialCell(RepVGGBlock(8, 8), RepVGGBlock(8, 8))
    net[0].set_train()
    net[1].set_train(False)
    net[1].to_float(ms.bfloat16)
    net.add_flags_recursive(of_mine=7)
    deployed = to_deploy(net)
    for block, training, half in ((deployed[0], True, None), (deployed[1], False, True)):
        for cell in (block, block.rbr_reparam, block.activation):
            assert cell.training is training
            assert cell.get_flags().get("bf16") is half
            assert cell.get_flags()["of_mine"] == 7


@pytest.mark.parametrize("part", ["stages", "bn"])
def test_what_is_frozen_stays_frozen(part):
    net = create_model("repvgg", 10, **SMALL["d2se"])
    freeze(net, stages=2) if part == "stages" else freeze(net, bn=True)
    trainable = {parameter.name for parameter in to_deploy(net).trainable_params()}
    assert trainable >= {"stage2.0.rbr_reparam.weight", "linear.weight", "stage2.0.se.up.weight"}
    assert ("stage2.0.rbr_reparam.bias" in trainable) is (part == "stages")
    assert any(name.startswith(("stage0.", "stage1.")) for name in trainable) is (part == "bn")


def test_what_blocks_share_they_share_in_the_copy():
    net = nn.SequentialCell(Scaled(8, 8), Scaled(8, 8))
    net[1].gain = net[0].gain
    net[1].activation = net[0].activation
    deployed = to_deploy(ready(net))
    assert deployed[0].gain is deployed[1].gain
    assert deployed[0].activation is deployed[1].activation
    assert deployed[0].gain is not net[0].gain
    check_same(net, deployed)


def test_recomputation_is_left_out():
    net = ready(nn.SequentialCell(RepVGGBlock(8, 8), RepVGGBlock(8, 8)))
    net[0].recompute()
    check_same(net, to_deploy(net))


class TwoWays(nn.Cell):
    """Uses a branch of its block for itself as well."""

    def __init__(self):
        super().__init__()
        self.block = RepVGGBlock(8, 8)
        self.shortcut = self.block.rbr_1x1

    def construct(self, x):
        return self.block(x) + self.shortcut(x)


def test_a_branch_that_is_used_elsewhere_cannot_be_fused():
    with pytest.raises(ValueError, match=r"^shortcut is a branch of a block and used elsewhere too: "):
        to_deploy(TwoWays())


def test_another_convolution_in_a_branch_cannot_be_fused():
    block = RepVGGBlock(8, 8)
    block.rbr_dense.conv = conv2d(8, 8, 3, dilation=2)
    reason = (
        r" cannot be fused: the branches make a kernel of \(8, 3, 3\) .* \(2, 2\), 1\); the block was built for .*1\)"
    )
    with pytest.raises(ValueError, match=rf"^1 \(RepVGGBlock\){reason}"):
        to_deploy(nn.SequentialCell(nn.ReLU(), block))
    with pytest.raises(ValueError, match=rf"^the block \(RepVGGBlock\){reason}"):
        block.switch_to_deploy()


@pytest.mark.parametrize(
    ("branch", "cell", "reason"),
    [
        ("rbr_dense", nn.SequentialCell, "a sequence without a convolution is not known as one"),
        ("rbr_identity", nn.Tanh, "what Tanh computes is not known as a convolution"),
    ],
)
def test_a_branch_of_another_kind_cannot_be_fused(branch, cell, reason):
    net = nn.SequentialCell(RepVGGBlock(8, 8))
    setattr(net[0], branch, cell())
    with pytest.raises(ValueError, match=rf"^0 \(RepVGGBlock\) cannot be fused: {reason}"):
        to_deploy(net)


def test_a_bare_identity_is_known():
    net = ready(RepVGGBlock(8, 8))
    net.rbr_identity = nn.Identity()
    check_same(net, to_deploy(net))


def test_damaged_statistics_are_the_users_error():
    net = create_model("repvgg", 10, **SMALL["plain"])
    variance = net.stage1[0].rbr_1x1.bn.moving_variance
    variance.set_data(-variance)
    with pytest.raises(
        UserError,
        match=r"^stage1\.0 \(RepVGGBlock\) cannot be fused: stage1\.0\.rbr_1x1\.bn\.moving_variance is negative",
    ):
        to_deploy(net)


def test_what_cannot_be_copied_is_said():
    net = nn.SequentialCell(nn.ReLU(), RepVGGBlock(8, 8))
    net[1].numbers = "abc", (number for number in range(3))
    reason = r"^\w+ cannot be copied: its attribute {}numbers: cannot pickle 'generator' object$"
    for cell, path in ((net, r"1\."), (net[1], "")):
        with pytest.raises(ValueError, match=reason.format(path)):
            to_deploy(cell)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match=r"^to_deploy takes a mindspore\.nn\.Cell, and got a str; mindrepvgg\.load_w"):
        to_deploy("best.ckpt")


class Lists(nn.Cell):
    """Keeps most of its blocks where MindSpore does not see them."""

    def __init__(self, visible=True):
        super().__init__()
        if visible:
            self.stem = RepVGGBlock(3, 8)
            self.again = [self.stem]
        self.stages = [[RepVGGBlock(8, 8), RepVGGBlock(8, 8, deploy=True)], (nn.SequentialCell(RepVGGBlock(8, 8)),)]
        self.named = {"head": RepVGGBlock(8, 8)}
        self.stages.append(self.stages)


@pytest.mark.parametrize("visible", [True, False])
def test_blocks_in_lists_are_named(visible):
    net = nn.SequentialCell(Lists(visible))
    assert hidden_blocks(net) == ["0.stages[0][0]", "0.stages[1][0].0", "0.named['head']"]
    with pytest.raises(ValueError, match=r"sees no cells.*: 0\.stages\[0\]\[0\], .*; put them in a .*CellList or "):
        to_deploy(net)


def test_visible_blocks_are_not_hidden():
    assert hidden_blocks(create_model("repvgg", 10, **SMALL["plus"])) == []


class RepConv(nn.Cell):
    """Another project's block."""

    def __init__(self):
        super().__init__()
        self.rbr_dense = nn.Conv2d(3, 8, 3)


def test_other_projects_blocks_are_named(caplog):
    kind = f"{__name__}.RepConv"
    with pytest.raises(ValueError, match=rf"nothing to fuse; it has 2 cells of {kind}, which this package does not"):
        to_deploy(nn.SequentialCell(RepConv(), RepConv()))
    with caplog.at_level(logging.WARNING):
        to_deploy(nn.SequentialCell(RepVGGBlock(3, 3), RepConv()))
    assert caplog.messages == [
        f"SequentialCell: not all is fused; it has 1 cells of {kind}, which this package does not fuse; tell it how "
        "with mindrepvgg.reparam.register"
    ]
