"""Blocks that are not quite this package's: fused where both forms compute the same, refused where they do not."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from support import SMALL, images, randomise_bn, relative_difference

from mindrepvgg import create_model, to_deploy
from mindrepvgg.errors import EquivalenceError
from mindrepvgg.reparam import copying
from mindrepvgg.reparam.blocks import RepVGGBlock
from mindrepvgg.reparam.compare import leaves
from mindrepvgg.reparam.layers import conv2d

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("pynative_mode")]


class Shifted(RepVGGBlock):
    """Adds to what the branches give, in both forms."""

    def convolve(self, x):
        return super().convolve(x) + 0.5


class Weighted(RepVGGBlock):
    """Weighs a branch, and does not say so to the fusion."""

    def convolve(self, x):
        if self.deploy:
            return self.rbr_reparam(x)
        return self.rbr_dense(x) + 1.05 * self.rbr_1x1(x) + self.rbr_identity(x)


class Folding(Weighted):
    """Weighs a branch, and says so."""

    def fused_kernel_bias(self, dtype=np.float64):
        kernel, bias = super().fused_kernel_bias()
        bn = self.rbr_1x1.bn
        scale = bn.gamma.asnumpy() / np.sqrt(bn.moving_variance.asnumpy() + np.float64(bn.eps))
        kernel[:, :, 1, 1] += 0.05 * self.rbr_1x1.conv.weight.asnumpy()[:, :, 0, 0] * scale[:, None]
        bias += 0.05 * (bn.beta.asnumpy() - bn.moving_mean.asnumpy() * scale)
        return kernel.astype(dtype), bias.astype(dtype)


class Two(RepVGGBlock):
    """Gives two maps."""

    def construct(self, x):
        y = super().construct(x)
        return y, {"scaled": 0.1 * y}


class Direct(RepVGGBlock):
    """Calls its branches whatever its form is."""

    def construct(self, x):
        return self.activation(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))


class Residual(RepVGGBlock):
    """Takes two inputs."""

    def construct(self, x, residual):
        return super().construct(x) + residual


def changed(change):
    """A block of ours after `change`."""

    def make(*args):
        block = RepVGGBlock(*args)
        change(block)
        return block

    return make


def with_a_dropped_input(block):
    block.rbr_1x1 = nn.SequentialCell(block.rbr_1x1)
    block.rbr_1x1.conv, block.rbr_1x1.bn = block.rbr_1x1[0].conv, block.rbr_1x1[0].bn
    block.rbr_1x1.append(nn.Tanh())


def with_a_bias(block):
    block.rbr_dense.conv = conv2d(8, 8, 3, bias=True)
    block.rbr_dense.conv.bias.set_data(ops.ones(8))
    return block


def with_the_batchs_statistics(block):
    block.rbr_1x1.bn.use_batch_statistics = True


def with_a_hook(block):
    block.rbr_dense.register_forward_hook(lambda cell, inputs, output: output * 1.1)


def with_a_function(block):
    block.convolve = lambda x: ops.tanh(block.rbr_dense(x))


def ready(block):
    return randomise_bn(block).set_train(False)


@pytest.mark.parametrize("block", [Shifted, Folding, lambda *sizes: with_a_bias(RepVGGBlock(*sizes))])
def test_what_computes_the_same_is_fused(block):
    net = ready(nn.SequentialCell(block(8, 8)))
    x = Tensor(images(2, 8, 9, 7))
    expected = net(x)
    assert relative_difference(to_deploy(net)(x), expected) < 1e-5
    net[0].switch_to_deploy()
    assert relative_difference(net(x), expected) < 1e-5


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Weighted, r"with one convolution for its branches it computes something else, by \S+ of the largest output; "),
        (Direct, "without its branches, The 'Direct' object has no attribute 'rbr_dense'"),
        (changed(with_a_dropped_input), "what Tanh computes is not known as a convolution"),
        (changed(with_the_batchs_statistics), "it computes something else"),
        (changed(with_a_hook), "it computes something else"),
        (changed(with_a_function), "its convolve is a function that "),
    ],
    ids=["weighted", "direct", "sequence", "statistics", "hook", "function"],
)
def test_what_would_change_is_refused(block, reason):
    net = nn.SequentialCell(nn.ReLU(), ready(block(8, 8)))
    with pytest.raises(ValueError, match=rf"^1 \(\w+\) cannot be fused: .*{reason}"):
        to_deploy(net)
    for fuse in (net[1].deployed, net[1].switch_to_deploy):
        with pytest.raises(ValueError, match=rf"^the block \(\w+\) cannot be fused: .*{reason}"):
            fuse()
    assert not net[1].deploy
    net(Tensor(images(2, 8, 9, 7)))


def test_a_hook_that_only_watches_a_branch_is_no_obstacle():
    block, seen = ready(RepVGGBlock(8, 8)), []
    block.rbr_dense.register_forward_hook(lambda cell, inputs, output: seen.append(output.shape))
    assert to_deploy(block).deploy
    assert seen


class Pair(nn.Cell):
    """A block of two inputs in a network of one."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def construct(self, x):
        return self.block(x, 2 * x)


def test_what_noise_does_not_fit_is_tried_on_the_callers_inputs():
    net, x = ready(Pair(Residual(8, 8))), images(2, 8, 9, 7)
    with pytest.raises(
        ValueError, match=r"^block \(Residual\) cannot be tried on an input \(2, 8, 9, 7\): .*'residual'"
    ):
        to_deploy(net)
    assert relative_difference(to_deploy(net, x)(Tensor(x)), net(Tensor(x))) < 1e-5
    with pytest.raises(EquivalenceError, match="0: the outputs differ by "):
        to_deploy(ready(nn.SequentialCell(Weighted(8, 8))), x)


def test_a_block_of_several_outputs_is_compared_by_all_of_them():
    x = images(2, 8, 9, 7)
    block = ready(Two(8, 8))
    for deployed in (to_deploy(block), to_deploy(block, x)):
        for one, truth in zip(leaves(deployed(Tensor(x))), leaves(block(Tensor(x))), strict=True):
            assert relative_difference(one, truth) < 1e-5


def test_what_is_ours_is_not_tried(monkeypatch):
    """Neither plain blocks, nor those with other activations, nor those in mixed precision."""
    monkeypatch.setattr(copying, "check_block", None)
    net = create_model("repvgg", 10, **SMALL["plus"])
    net.stage0.activation = nn.LeakyReLU(0.1)
    to_deploy(net.to_float(ms.bfloat16))
    to_deploy(ms.amp.auto_mixed_precision(create_model("repvgg", 10, **SMALL["d2se"]), "O2", ms.bfloat16))
    with pytest.raises(TypeError):
        to_deploy(Shifted(8, 8))
