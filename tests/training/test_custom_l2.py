"""The authors' weight decay on the equivalent kernel, against PyTorch's gradients of the same formula."""

import re

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import OTHER_SMALL, SMALL, context_mode, images, randomise_bn, relative_difference, weights
from support.torch_branches import QARepVGG
from support.torch_reference import Network, copy_weights, torch_name
from torch.nn import functional

from mindrepvgg import create_model, to_deploy
from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.reparam.asymmetric import ACBlock
from mindrepvgg.reparam.blocks import QARepVGGBlock
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


def qarepvgg_l2(block):
    """Of a float64 PyTorch block of QARepVGG."""
    kernel, bn = block.rbr_dense.conv.weight, block.rbr_dense.bn
    kernel = kernel * (bn.weight / torch.sqrt(bn.running_var + bn.eps)).detach()[:, None, None, None]
    kernel = kernel + functional.pad(block.rbr_1x1.weight, (1, 1, 1, 1))
    if block.adds_input:
        inputs = kernel.shape[1]
        outputs = torch.arange(len(kernel))
        identity = torch.zeros_like(kernel)
        identity[outputs, outputs % inputs, 1, 1] = 1
        kernel = kernel + identity
    return DECAY / 2 * (kernel**2).sum()


@pytest.mark.usefixtures("mode")
def test_qarepvggs_is_the_square_of_its_kernel():
    """Before the outer BN, and without a gradient for the scale."""
    places = [(6, 8, 3, 2), (8, 8)]
    net = randomise_bn(nn.SequentialCell([QARepVGGBlock(*place, groups=2) for place in places]))
    theirs = copy_weights(net, torch.nn.Sequential(*[QARepVGG(*place, groups=2) for place in places]).double())
    value = sum(map(qarepvgg_l2, theirs))
    value.backward()
    parameters = net.trainable_params()
    found, gradients = ms.value_and_grad(CustomL2(net, DECAY), None, ms.ParameterTuple(parameters))()
    assert float(found.asnumpy()) == pytest.approx(float(value.detach()), rel=1e-5)
    own = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert sum(is_block_kernel(parameter.name) for parameter in parameters) == 4
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if is_block_kernel(parameter.name):
            assert relative_difference(gradient, own[torch_name(parameter.name)]) < 1e-5, parameter.name
        else:
            assert own[torch_name(parameter.name)] is None
            assert not gradient.asnumpy().any(), parameter.name


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
    with pytest.raises(RecipeError, match="a fused network has none"):
        CustomL2(to_deploy(network()), DECAY)
    with pytest.raises(RecipeError, match="some of which are frozen; set freeze_stages 0"):
        CustomL2(freeze(network(), stages=1), DECAY)
    other = nn.SequentialCell(QARepVGGBlock(3, 8), ACBlock(8, 8))
    mobileone = create_model("mobileone", 5, **OTHER_SMALL["mobileone"])
    for net, block in ((other, "1 (ACBlock)"), (mobileone, "stage0 (MobileOneBlock)")):
        with pytest.raises(RecipeError, match=f"^no custom L2 is known for {re.escape(block)}; set custom_l2 False$"):
            CustomL2(net, DECAY)


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
            model_args={**SMALL["g4"], "num_blocks": (1, 1, 1, 2)},
            num_classes=5,
            weight_decay=DECAY,
            lr=1,
            custom_l2=rule == "custom_l2",
        )
        ms.set_seed(0)
        net = randomise_bn(build_network(recipe, Ranks()))
        start = weights(net)
        with context_mode("graph" if recipe.custom_l2 else "pynative"):
            step = build_step(recipe, net, np.ones(2, np.float32), Ranks())
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
