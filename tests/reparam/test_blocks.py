"""The blocks of RepVGG and QARepVGG against PyTorch; and the traps of changing a cell that others contain."""

import functools

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import array, context_mode, images, noise, randomise_bn, relative_difference, torch_reference, weights
from support.block_pairs import both, noise_for
from support.folds import KernelPenalty, check_fold, check_gradient, check_graph, check_training
from support.wrong_folds import CLEARLY

from mindrepvgg.reparam.blocks import QARepVGGBlock, RepVGGBlock
from mindrepvgg.reparam.layers import batch_norm, conv2d
from mindrepvgg.reparam.parts import SqueezeExcite

compat = pytest.mark.compat

# in_channels, out_channels, stride: with an identity branch and three ways without.
PLACES = [(8, 8, 1), (8, 8, 2), (8, 12, 1), (12, 8, 2)]
# With groups, SE and dilation: every pair of values of any two of the four stands in one block at least.
BLOCKS = [
    (PLACES[p], (1, 2, 4)[g], (None, "pre", "post")[(p + g) % 3], 1 + (p + g) % 2) for p in range(4) for g in range(3)
]
SOME = [BLOCKS[0], ((8, 8, 1), 2, "pre", 2), ((12, 8, 2), 4, "post", 1)]


def block_and_reference(place, groups=1, se=None, dilation=1, deploy=False, norm=nn.BatchNorm2d, seed=0):
    """A block with a random history, and PyTorch's with the same weights."""
    options = {"groups": groups, "dilation": dilation, "se": se, "se_ratio": 4, "deploy": deploy}
    block = randomise_bn(RepVGGBlock(*place, **options, norm=norm), seed)
    reference = torch_reference.copy_weights(block, torch_reference.Block(*place, **options))
    return block.set_train(False), reference.eval()


def outputs(block, reference, x):
    """The two outputs, as arrays."""
    with torch.no_grad():
        return array(block(Tensor(x))), array(reference(torch.tensor(x)))


def check_forward(place, groups, se, dilation, deploy):
    block, reference = block_and_reference(place, groups, se, dilation, deploy)
    actual, expected = outputs(block, reference, images(2, place[0], 9, 7))
    assert actual.shape == (2, place[1], -(-9 // place[2]), -(-7 // place[2]))
    assert relative_difference(actual, expected) < 1e-4


@pytest.mark.parametrize("deploy", [False, True], ids=["train-form", "deploy-form"])
@pytest.mark.parametrize(("place", "groups", "se", "dilation"), BLOCKS)
def test_inference_equals_pytorch(pynative_mode, place, groups, se, dilation, deploy):
    check_forward(place, groups, se, dilation, deploy)


@compat
@pytest.mark.parametrize("deploy", [False, True], ids=["train-form", "deploy-form"])
@pytest.mark.parametrize(("place", "groups", "se", "dilation"), SOME)
def test_inference_equals_pytorch_in_graph_mode(graph_mode, place, groups, se, dilation, deploy):
    check_forward(place, groups, se, dilation, deploy)


def check_three_steps(place, groups, se, dilation):
    block, reference = block_and_reference(place, groups, se, dilation)
    block.set_train()
    reference.train()
    for step in range(3):
        x = 2 * images(4, place[0], 9, 7, seed=step) + 1
        assert relative_difference(*outputs(block, reference, x)) < 1e-4
    state = reference.state_dict()
    statistics = [p for p in block.get_parameters() if p.name.rpartition(".")[2].startswith("moving_")]
    assert len(statistics) == 6 if place == PLACES[0] else 4
    for parameter in statistics:
        expected = state[torch_reference.torch_name(parameter.name)]
        assert relative_difference(parameter, expected) < 1e-4, parameter.name


@pytest.mark.parametrize(("place", "groups", "se", "dilation"), BLOCKS)
def test_training_equals_pytorch_with_the_statistics_of_three_steps(pynative_mode, place, groups, se, dilation):
    check_three_steps(place, groups, se, dilation)


@compat
@pytest.mark.parametrize(("place", "groups", "se", "dilation"), SOME)
def test_training_equals_pytorch_in_graph_mode(graph_mode, place, groups, se, dilation):
    check_three_steps(place, groups, se, dilation)


@compat
def test_se_takes_the_mean_over_a_map_of_any_shape(mode):
    se, reference = SqueezeExcite(8, 2), torch_reference.SqueezeExcite(8, 2)
    torch_reference.copy_weights(se, reference)
    for shape in ((2, 8, 5, 5), (1, 8, 3, 11), (2, 8, 1, 1)):
        assert relative_difference(*outputs(se, reference, images(*shape))) < 1e-5


@compat
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("place", PLACES)
def test_the_equivalent_kernel_is_what_pytorch_answers_to_single_pixels(pynative_mode, place, groups):
    block, reference = block_and_reference(place, groups)
    expected = torch_reference.probe_kernel(reference.double())
    for exact, trained, truth in zip(
        block.fused_kernel_bias(), block.get_equivalent_kernel_bias(), expected, strict=True
    ):
        assert exact.dtype == np.float64
        assert trained.dtype == ms.float32
        assert relative_difference(exact, truth) < 1e-12
        assert relative_difference(trained, truth) < 1e-6


@compat
def test_fusion_uses_the_eps_of_the_norm(pynative_mode):
    norm = functools.partial(batch_norm, eps=0.1)
    block, reference = block_and_reference(PLACES[0], norm=norm)
    for branch in (reference.rbr_dense.bn, reference.rbr_1x1.bn, reference.rbr_identity):
        branch.eps = 0.1
    expected = torch_reference.probe_kernel(reference.double())
    for actual, truth in zip(block.fused_kernel_bias(), expected, strict=True):
        assert relative_difference(actual, truth) < 1e-12


@compat
@pytest.mark.parametrize(
    ("context", "place", "groups"),
    [
        ("pynative", PLACES[0], 2),
        ("pynative", PLACES[2], 1),
        ("graph", PLACES[0], 2),
        pytest.param("graph", PLACES[2], 1, marks=pytest.mark.slow),
    ],
    ids=["identity-pynative", "no-identity-pynative", "identity-graph", "no-identity-graph"],
)
def test_the_equivalent_kernel_has_pytorchs_gradient_in_a_loss(context, place, groups):
    with context_mode(context):
        check_gradient_in_a_loss(place, groups)


def check_gradient_in_a_loss(place, groups):
    block, reference = block_and_reference(place, groups)
    kernel_weights, bias_weights = noise(place[1], place[0] // groups, 3, 3, seed=1), noise(place[1], seed=2)
    penalty = KernelPenalty(block, kernel_weights, bias_weights)
    parameters = block.trainable_params()
    loss, gradients = ms.value_and_grad(penalty, None, parameters)()

    kernel, bias = torch_reference.probe_kernel(reference)
    expected = (torch.tensor(kernel_weights) * kernel * kernel).sum() + (torch.tensor(bias_weights) * bias).sum()
    expected.backward()
    assert relative_difference(loss, expected) < 1e-5
    truth = dict(reference.named_parameters())
    assert len(parameters) == len(truth)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        name = torch_reference.torch_name(parameter.name.removeprefix("block."))
        assert relative_difference(gradient, truth[name].grad) < 1e-4, name


@compat
def test_the_equivalent_kernel_of_the_deploy_form_is_its_own():
    block, _ = block_and_reference(PLACES[0], deploy=True)
    kernel, bias = block.get_equivalent_kernel_bias()
    assert kernel is block.rbr_reparam.weight
    assert bias is block.rbr_reparam.bias
    with pytest.raises(ValueError, match="the block is in deploy form: its branches are fused already"):
        block.fused_kernel_bias()
    with pytest.raises(ValueError, match="the block is in deploy form: its branches are fused already"):
        block.deployed()
    with pytest.raises(ValueError, match="the block is in deploy form: its branches are fused already"):
        block.equivalent_conv()


@compat
@pytest.mark.parametrize(("place", "groups", "se", "dilation"), SOME)
def test_deployed_gives_a_new_block_and_leaves_the_old_one(mode, place, groups, se, dilation):
    block, reference = block_and_reference(place, groups, se, dilation)
    before = weights(block)
    new = block.deployed()
    x = images(2, place[0], 9, 7)
    assert relative_difference(*outputs(new, reference, x)) < 1e-4
    assert relative_difference(*outputs(block, reference, x)) < 1e-4
    assert weights(block).keys() == before.keys()
    assert all(np.array_equal(value, before[name]) for name, value in weights(block).items())
    assert list(weights(new)) == list(weights(RepVGGBlock(*place, groups, dilation, se, 4, deploy=True)))
    for exact, leaf in zip(block.fused_kernel_bias(), ("weight", "bias"), strict=True):  # rounded once, at the end
        np.testing.assert_array_equal(weights(new)[f"rbr_reparam.{leaf}"], exact.astype(np.float32))


class Branching(nn.Cell):
    """Two blocks in a CellList, of which the outer cell adds the outputs."""

    def __init__(self, blocks):
        super().__init__()
        self.parts = nn.CellList(blocks)

    def construct(self, x):
        return self.parts[0](x) + self.parts[1](x)


class Outer(nn.Cell):
    """A network that is not of this package, with blocks at two depths."""

    def __init__(self, nesting, **options):
        super().__init__()
        self.stem = RepVGGBlock(3, 8, 2, **options)
        blocks = [RepVGGBlock(8, 8, groups=2, **options), RepVGGBlock(8, 8, se="post", se_ratio=4, **options)]
        self.body = {
            "sequential": lambda: nn.SequentialCell(blocks),
            "list": lambda: Branching(blocks),
            "deep": lambda: nn.SequentialCell(nn.SequentialCell(blocks[0]), nn.SequentialCell(blocks[1])),
        }[nesting]()
        self.head = nn.Dense(8, 4)

    def construct(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))

    def blocks(self):
        return [cell for _, cell in self.cells_and_names() if isinstance(cell, RepVGGBlock)]


NESTINGS = ["sequential", "list", "deep"]


def outer(nesting, **options):
    return randomise_bn(Outer(nesting, **options)).set_train(False)


@compat
@pytest.mark.parametrize("nesting", NESTINGS)
def test_after_switching_names_are_those_of_a_network_built_in_deploy_form(nesting):
    net = outer(nesting)
    for block in net.blocks():
        block.switch_to_deploy()
    expected = weights(Outer(nesting, deploy=True))
    assert {name: w.shape for name, w in weights(net).items()} == {name: w.shape for name, w in expected.items()}


@compat
def test_a_convolution_put_into_a_block_naively_loses_its_place():
    """The trap itself: why names are checked above. Every block's new tensors are called alike."""
    net = outer("sequential")
    for block in net.blocks():
        block.naive = conv2d(8, 8, 3)
    names = [parameter.name for parameter in net.get_parameters() if "naive" in parameter.name]
    assert len(names) == 3
    assert len(set(names)) == 1


@compat
@pytest.mark.parametrize("nesting", NESTINGS)
def test_after_switching_a_checkpoint_keeps_every_tensor(nesting, tmp_path):
    net = outer(nesting)
    for block in net.blocks():
        block.switch_to_deploy()
    ms.save_checkpoint(net, str(tmp_path / "net.ckpt"))
    loaded = ms.load_checkpoint(str(tmp_path / "net.ckpt"))
    saved = weights(net)
    assert loaded.keys() == saved.keys()
    assert all(np.array_equal(loaded[name].asnumpy(), value) for name, value in saved.items())

    fresh = Outer(nesting, deploy=True).set_train(False)
    missing, unexpected = ms.load_param_into_net(fresh, loaded, strict_load=True)
    assert (missing, unexpected) == ([], [])
    x = Tensor(images())
    np.testing.assert_array_equal(array(fresh(x)), array(net(x)))


@compat
@pytest.mark.parametrize(  # the next test has a sequential one
    "nesting", [pytest.param("list", marks=pytest.mark.slow), "deep"]
)
def test_a_compiled_network_runs_the_new_form_after_switching(graph_mode, nesting):
    net, x = outer(nesting), Tensor(images())
    before = net(x)
    for block in net.blocks():
        block.switch_to_deploy()
    assert relative_difference(net(x), before) < 1e-4

    # A network that still ran its old graph would not notice what becomes of the new convolutions.
    for i, block in enumerate(net.blocks()):
        weight = block.rbr_reparam.weight
        weight.set_data(Tensor(noise(*weight.shape, seed=i)))
    changed = net(x)
    assert relative_difference(changed, before) > 0.1
    with context_mode("pynative"):
        assert relative_difference(changed, net(x)) < 1e-4


@compat
def test_switching_one_block_of_a_compiled_network_leaves_the_others(graph_mode):
    net, x = outer("sequential"), Tensor(images())
    before = net(x)
    net.body[1].switch_to_deploy()
    assert [block.deploy for block in net.blocks()] == [False, False, True]
    assert relative_difference(net(x), before) < 1e-4
    net.body[1].rbr_reparam.bias.set_data(Tensor(np.full(8, 9, np.float32)))
    assert relative_difference(net(x), before) > 0.1


@compat
def test_switching_twice_does_nothing_more():
    block, _ = block_and_reference(PLACES[0])
    block.switch_to_deploy()
    conv = block.rbr_reparam
    block.switch_to_deploy()
    assert block.rbr_reparam is conv
    assert sorted(weights(block)) == ["rbr_reparam.bias", "rbr_reparam.weight"]


@compat
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"groups": 3},
            r"in_channels \(=8\) and out_channels \(=12\) must be divisible by groups \(=3\)",
        ),
        ({"se": "both"}, r"se \(='both'\) must be None, 'pre' or 'post'"),
    ],
)
def test_impossible_blocks_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        RepVGGBlock(8, 12, **options)


# in, out, kernel, stride; and options.
QAREPVGG = [
    ((8, 8, 3, 1), {}),
    ((8, 12, 3, 2), {"groups": 4, "se": "pre", "se_ratio": 4}),
    ((8, 8, 3, 1), {"groups": 8, "dilation": 2, "se": "post", "se_ratio": 4}),
    ((8, 8, 5, 1), {"groups": 2, "se": "pre", "se_ratio": 4}),
    ((8, 8, 3, 1), {"padding": 0}),
    ((8, 8, (3, 5), (1, 2)), {"dilation": (2, 1), "padding": (1, 3), "eps": 0.1}),
    ((8, 8, 2, 1), {"padding": (0, 1, 1, 0)}),
]


@compat
@pytest.mark.parametrize(("place", "options"), QAREPVGG)
def test_qarepvgg_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*both(QARepVGGBlock, *place, **options))


@compat
def test_qarepvgg_in_graph_mode(graph_mode):
    check_graph(*both(QARepVGGBlock, 8, 8, groups=2, se="pre", se_ratio=4))


@compat
def test_qarepvgg_trains_as_pytorchs_does(pynative_mode):
    check_training(*both(QARepVGGBlock, 8, 8, groups=2, se="pre", se_ratio=4))


@compat
def test_qarepvggs_kernel_has_pytorchs_gradient(pynative_mode):
    check_gradient(*both(QARepVGGBlock, 8, 6, groups=2, padding=0))


@compat
def test_names_of_qarepvgg_are_those_of_the_authors(pynative_mode):
    block, _ = both(QARepVGGBlock, 8, 8)
    leaves = "moving_mean", "moving_variance", "gamma", "beta"
    expected = [f"{norm}.{leaf}" for norm in ("rbr_dense.bn", "bn") for leaf in leaves]
    assert sorted(weights(block)) == sorted(["rbr_dense.conv.weight", "rbr_1x1.weight", *expected])
    block.switch_to_deploy()
    assert list(weights(block)) == list(weights(QARepVGGBlock(8, 8, deploy=True)))
    assert list(weights(block)) == ["rbr_reparam.weight", "rbr_reparam.bias"]


@compat
def test_se_before_the_outer_bn_would_be_another_block(pynative_mode):
    """The trap of the authors' code, which trains one order and deploys the other."""
    block, reference = both(QARepVGGBlock, 8, 8, se="pre", se_ratio=4)
    x, exact_x = noise_for(block, (12, 11))
    bn, se = reference.bn, reference.se
    reference.bn, reference.se = torch.nn.Sequential(se, bn), torch.nn.Identity()
    with torch.no_grad():
        assert relative_difference(block.deployed()(x), reference(exact_x)) > CLEARLY
