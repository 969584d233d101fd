"""The authors' weight decay on the equivalent kernel, against PyTorch's gradients of the same formula."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from support import OTHER_SMALL, SMALL, context_mode, images, randomise_bn, relative_difference, weights
from support.torch_reference import Network, copy_weights, torch_name

from mindrepvgg import create_model, to_deploy
from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.assemble import build_network, build_step
from mindrepvgg.training.custom_l2 import CustomL2, is_block_kernel
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import parameter_groups
from mindrepvgg.training.step import NetworkWithLoss

DECAY = 0.01


def network(kind="g4"):
    ms.set_seed(0)
    return randomise_bn(create_model("repvgg", 5, **SMALL[kind]))


def torch_l2(net):
    """Half the decay times the sum over a float64 PyTorch network's blocks."""
    total = 0
    for block in net.modules():
        if not hasattr(block, "rbr_dense"):
            continue
        around, centre, scales = None, 0, []
        for branch in (block.rbr_dense, block.rbr_1x1):
            scale = (branch.bn.weight / torch.sqrt(branch.bn.running_var + branch.bn.eps)).detach()
            kernel, middle = branch.conv.weight, branch.conv.weight.shape[-1] // 2
            if around is None:
                mask = torch.ones(3, 3, dtype=kernel.dtype)
                mask[1, 1] = 0
                around = ((kernel * mask) ** 2).sum()
            centre = centre + kernel[:, :, middle, middle] * scale[:, None]
            scales.append(scale)
        total = total + around + (centre**2 / (scales[0] ** 2 + scales[1] ** 2)[:, None]).sum()
    return DECAY / 2 * total


@pytest.fixture(scope="module")
def expected():
    """(value, gradients by our names) of the g4 network's."""
    net = network()
    theirs = copy_weights(net, Network(net.variant, 5).double())
    value = torch_l2(theirs)
    value.backward()
    own = dict(theirs.named_parameters())
    return float(value.detach()), {p.name: own[torch_name(p.name)].grad for p in net.trainable_params()}


@pytest.mark.usefixtures("mode")
def test_value_and_gradients_are_torchs(expected):
    net = network()
    penalty, parameters = CustomL2(net, DECAY), net.trainable_params()
    value, gradients = ms.value_and_grad(penalty, None, ms.ParameterTuple(parameters))()
    assert float(value.asnumpy()) == pytest.approx(expected[0], rel=1e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        theirs = expected[1][parameter.name]
        if is_block_kernel(parameter.name):
            assert relative_difference(gradient, theirs) < 1e-5, parameter.name
        else:  # the BN's share is held back
            assert theirs is None, parameter.name
            assert not gradient.asnumpy().any(), parameter.name
    plain = sum(float((p.asnumpy() ** 2).sum()) for p in parameters if is_block_kernel(p.name))
    assert abs(float(value.asnumpy()) / (DECAY / 2 * plain) - 1) > 0.01, "it is not the ordinary decay"


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.slow
def test_the_loss_gains_it_with_the_statistics_after_the_batch():
    net = network("plain").set_train()
    batch = Tensor(images(4, 3, 32, 32)), Tensor(np.arange(4, dtype=np.int32)), Tensor(np.float32(8))
    before = CustomL2(net, DECAY)()
    start = weights(net)
    plain = NetworkWithLoss(net, build_loss()).set_train()(*batch)
    after = CustomL2(net, DECAY)()
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(start[parameter.name]))
    with_penalty = NetworkWithLoss(net, build_loss(), penalty=CustomL2(net, DECAY)).set_train()(*batch)
    gained, after, before = (float(x.asnumpy()) for x in ((with_penalty - plain) / 8, after, before))
    assert gained == pytest.approx(after, abs=1e-5)
    assert abs(after - before) > 1e-3 * after


def test_a_channel_without_gamma_is_no_division_by_zero():
    net = network()
    for branch in (net.stage0.rbr_dense, net.stage0.rbr_1x1):
        branch.bn.gamma.set_data(Tensor(np.zeros(8, np.float32)))
    with context_mode("pynative"):
        assert np.isfinite(CustomL2(net, DECAY)().asnumpy())


def test_what_has_no_branches_to_train_is_refused():
    others = [create_model(kind, 5, **shape) for kind, shape in OTHER_SMALL.items()]
    for net in (to_deploy(network()), *others):
        with pytest.raises(
            RecipeError, match="needs RepVGG's 3x3 and 1x1 branches, each with its BN: this network has"
        ):
            CustomL2(net, DECAY)
    with pytest.raises(RecipeError, match="some of which are frozen; set freeze_stages 0"):
        CustomL2(freeze(network(), stages=1), DECAY)


def test_the_kernels_do_not_decay_besides():
    net = network("plus")
    rows = {row.name: row.weight_decay for row in parameter_groups(net, DECAY, "custom_l2")}
    paper = {row.name: row.weight_decay for row in parameter_groups(net, DECAY, "paper")}
    assert {name for name in rows if rows[name] != paper[name]} == {name for name in rows if is_block_kernel(name)}
    assert rows["stage1.0.rbr_dense.conv.weight"] == 0 < rows["stage1_aux.downsample.conv.weight"]
    assert rows["linear.weight"] == rows["stage1.1.rbr_identity.gamma"] == DECAY


def test_a_recipe_trains_with_it():
    """A step from zero momentum: what the loss gains is all that differs. The step with it is a graph."""
    found = {}
    for rule in ("custom_l2", "paper"):
        recipe = Recipe(
            model="repvgg",
            model_args=SMALL["g4"],
            num_classes=5,
            weight_decay=DECAY,
            lr=1,
            custom_l2=rule == "custom_l2",
        )
        ms.set_seed(0)
        net = randomise_bn(build_network(recipe, Ranks()))
        start = weights(net)
        step = build_step(recipe, net, np.ones(2, np.float32), Ranks())
        with context_mode("graph" if recipe.custom_l2 else "pynative"):
            step(Tensor(images(4, 3, 32, 32)), Tensor(np.arange(4, dtype=np.int32)))
        found[rule] = {name: start[name] - values for name, values in weights(net).items()}
        found["start"] = start
        after = net
    start = found["start"]
    statistics = {p.name: p.asnumpy() for p in after.get_parameters() if "moving_" in p.name}
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(statistics.get(parameter.name, start[parameter.name])))
    parameters = [p for p in net.trainable_params() if is_block_kernel(p.name)]
    with context_mode("pynative"):
        _, gradients = ms.value_and_grad(CustomL2(net, DECAY), None, ms.ParameterTuple(parameters))()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        name = parameter.name
        expected = found["paper"][name] - DECAY * start[name] + gradient.asnumpy()
        assert relative_difference(found["custom_l2"][name], expected) < 1e-3, name
