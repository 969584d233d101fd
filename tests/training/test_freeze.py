"""Training parts of a network only: what is frozen stays bit for bit, all else moves."""

import numpy as np
import pytest
from mindspore import Tensor, nn
from support import MODES, SMALL, context_mode, images, randomise_bn, weights

from mindrepvgg import create_model
from mindrepvgg.errors import RecipeError
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.step import NetworkWithLoss, TrainStep, is_bn_statistic

TINY = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}
BN_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")


def train(net, mode="pynative", steps=2):
    """Some steps with weight decay on everything; the parameters that changed, and the others, by name."""
    before = weights(net)
    with context_mode(mode):
        step = TrainStep(NetworkWithLoss(net, build_loss()), build_optimizer(net, np.full(9, 0.1), weight_decay=0.1))
        for number in range(steps):
            pictures = images(8, 3, 32, 32, seed=number)
            step(Tensor(pictures), Tensor(np.arange(8, dtype=np.int32) % 5))
    after = weights(net)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    return changed, set(before) - changed


def network(shape):
    return randomise_bn(create_model("repvgg", 5, **shape))


def is_bn(name):
    return name.rpartition(".")[2] in BN_LEAVES


def test_without_freezing_everything_moves():
    """Negative control: the statistics too."""
    net = freeze(network(TINY))
    changed, same = train(net)
    assert not same
    assert any(name.endswith("moving_mean") for name in changed)


@pytest.mark.parametrize("mode", MODES)
def test_the_first_stages(mode):
    net = network({**TINY, "num_blocks": (1, 1, 1, 1)})
    assert freeze(net, stages=2) is net
    changed, same = train(net, mode)
    assert same == {name for name in weights(net) if name.startswith(("stage0.", "stage1."))}
    assert {"stage2.0.rbr_dense.bn.moving_mean", "stage2.0.rbr_dense.conv.weight", "linear.bias"} < changed


@pytest.mark.usefixtures("pynative_mode")
def test_every_bn():
    net = freeze(network(TINY), bn=True)
    changed, same = train(net)
    assert same == {name for name in weights(net) if is_bn(name)}
    assert changed


@pytest.mark.usefixtures("pynative_mode")
def test_stages_and_bn_of_a_network_with_heads():
    """Stage 3 of RepVGGplus has two halves; a head goes with the stage it hangs on."""
    net = freeze(network(SMALL["plus"]), stages=3, bn=True)
    changed, same = train(net, steps=1)
    frozen = ("stage0", "stage1", "stage2")
    assert same == {name for name in weights(net) if name.startswith(frozen) or is_bn(name)}
    assert {"stage1_aux.linear.weight", "stage2_aux.downsample.conv.weight"} < same
    assert {"stage3_first_aux.linear.weight", "stage3_second.0.rbr_dense.conv.weight"} < changed


@pytest.mark.parametrize(
    ("kind", "stages", "bn"),
    [
        *(("plus", stages, stages % 2 == 0) for stages in range(6)),
        *((kind, 3, True) for kind in SMALL if kind != "plus"),
    ],
)
def test_what_is_left_to_train(kind, stages, bn):
    net = freeze(network(SMALL[kind]), stages, bn)
    frozen = tuple(f"stage{i}" for i in range(stages)) or ("no such",)
    assert [p.name for p in net.trainable_params()] == [
        p.name
        for p in net.get_parameters()
        if not is_bn_statistic(p) and not p.name.startswith(frozen) and not (bn and is_bn(p.name))
    ]


@pytest.mark.usefixtures("pynative_mode")
def test_frozen_bn_normalises_as_in_inference():
    """In training, with everything but the head frozen, the logits are those of inference; not so without."""
    net, x = network(TINY), Tensor(images(4, 3, 32, 32))
    expected = net.set_train(False)(x).asnumpy()
    assert np.abs(net.set_train(True)(x).asnumpy() - expected).max() > 1e-2, "negative control"
    net = freeze(network(TINY), bn=True)
    expected = net.set_train(False)(x).asnumpy()
    np.testing.assert_array_equal(net.set_train(True)(x).asnumpy(), expected)


def test_nothing_left_is_refused():
    net = network(TINY)
    for parameter in net.linear.get_parameters():
        parameter.requires_grad = False
    with pytest.raises(RecipeError, match=r"^freeze_stages \(=5\) and freeze_bn \(=False\) leave nothing to train$"):
        freeze(net, stages=5)


def test_every_norm_is_known():
    """A BN the function did not know would go on moving its statistics."""
    for kind in SMALL:
        for _, cell in freeze(network(SMALL[kind]), bn=True).cells_and_names():
            if hasattr(cell, "moving_mean"):
                assert isinstance(cell, nn.BatchNorm2d)
                assert cell.use_batch_statistics is False
