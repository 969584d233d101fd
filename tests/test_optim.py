"""The optimizer: which parameters decay, by names written out here, and its steps against PyTorch's SGD."""

import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor

from mindrepvgg import create_model
from mindrepvgg.optim import build_optimizer, decay_groups
from mindrepvgg.schedule import learning_rates

pytestmark = pytest.mark.compat

# repvgg_nano has blocks (2, 2, 3, 1) in stages 1 to 4; a stage's first block has stride 2 and so no identity branch.
NANO_BLOCKS = ["stage0", "stage1.0", "stage1.1", "stage2.0", "stage2.1", "stage3.0", "stage3.1", "stage3.2", "stage4.0"]
NANO_IDENTITY = ["stage1.1", "stage2.1", "stage3.1", "stage3.2"]


def names_of(blocks, with_identity, se=None):
    """(kernels, dense and 1x1 gammas, identity gammas, betas, biases) of the blocks, SE's kernels among the kernels."""
    branches = [f"{block}.{branch}" for block in blocks for branch in ("rbr_dense", "rbr_1x1")]
    kernels = [f"{branch}.conv.weight" for branch in branches]
    gammas = [f"{branch}.bn.gamma" for branch in branches]
    betas = [f"{branch}.bn.beta" for branch in branches] + [f"{block}.rbr_identity.beta" for block in with_identity]
    identity_gammas = [f"{block}.rbr_identity.gamma" for block in with_identity]
    biases = []
    if se:
        squeezers = [f"{block}.{se}.{leaf}" for block in blocks for leaf in ("down", "up")]
        kernels += [f"{name}.weight" for name in squeezers]
        biases += [f"{name}.bias" for name in squeezers]
    return kernels, gammas, identity_gammas, betas, biases


def nano():
    kernels, gammas, identity_gammas, betas, biases = names_of(NANO_BLOCKS, NANO_IDENTITY)
    return create_model("repvgg_nano", 10, 1), (
        [*kernels, "linear.weight"],
        gammas,
        identity_gammas,
        betas,
        [*biases, "linear.bias"],
    )


def d2se_like():
    blocks = ["stage0", "stage1.0", "stage2.0", "stage3.0", "stage3.1", "stage4.0"]
    kernels, gammas, identity_gammas, betas, biases = names_of(blocks, ["stage3.1"], se="se")
    net = create_model("repvgg", 5, num_blocks=(1, 1, 2, 1), widths=(16, 16, 16, 16, 32), se="pre")
    return net, ([*kernels, "linear.weight"], gammas, identity_gammas, betas, [*biases, "linear.bias"])


def plus_like():
    blocks = ["stage0", "stage1.0", "stage2.0", "stage3_first.0", "stage3_second.0", "stage4.0"]
    kernels, gammas, identity_gammas, betas, biases = names_of(blocks, ["stage3_second.0"], se="post_se")
    heads = ["stage1_aux", "stage2_aux", "stage3_first_aux"]
    net = create_model(
        "repvgg", 5, num_blocks=(1, 1, 2, 1), widths=(8, 8, 8, 8, 16), se="post", se_ratio=4, aux_heads=True
    )
    return net, (
        [
            *kernels,
            *(f"{head}.{leaf}.weight" for head in heads for leaf in ("downsample.conv", "linear")),
            "linear.weight",
        ],
        [*gammas, *(f"{head}.downsample.bn.gamma" for head in heads)],
        identity_gammas,
        [*betas, *(f"{head}.downsample.bn.beta" for head in heads)],
        [*biases, *(f"{head}.linear.bias" for head in heads), "linear.bias"],
    )


# Which of (kernels, gammas, identity gammas, betas, biases) decay.
RULES = {
    "paper": (True, False, True, False, False),
    "norm_and_bias": (True, False, False, False, False),
    "all": (True, True, True, True, True),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", [nano, d2se_like, plus_like])
def test_groups(network, rule):
    net, kinds = network()
    expected = {True: set(), False: set()}
    for names, decays in zip(kinds, RULES[rule], strict=True):
        assert names, "a kind without members would not be checked"
        expected[decays] |= set(names)
    decayed, free = ([p.name for p in group] for group in decay_groups(net, rule))
    assert set(decayed) == expected[True]
    assert set(free) == expected[False]
    assert len(decayed) + len(free) == len(net.trainable_params()), "every parameter is in one group, once"


def test_no_moving_statistic_is_trained():
    names = [p.name for group in decay_groups(create_model("repvgg_nano"), "all") for p in group]
    assert not [name for name in names if "moving" in name]


def test_frozen_parameters_are_left_out():
    net = create_model("repvgg_nano")
    net.linear.weight.requires_grad = False
    assert "linear.weight" not in [p.name for group in decay_groups(net, "all") for p in group]


@pytest.mark.parametrize("rule", RULES)
def test_the_optimizer_decays_those_groups(rule):
    net = create_model("repvgg_nano")
    decayed, free = decay_groups(net, rule)
    optimizer = build_optimizer(net, np.full(3, 0.1, np.float32), weight_decay=1e-4, weight_decay_filter=rule)
    # MindSpore keeps them group by group, or in the network's order, which order_params asks for: gradients come so.
    assert [p.name for p in optimizer.parameters] == [p.name for p in net.trainable_params()]
    names = {p.name: decay for p, decay in zip(optimizer.parameters, np.ravel(optimizer.weight_decay), strict=True)}
    assert {name for name, decay in names.items() if decay} == {p.name for p in decayed}
    assert {name for name, decay in names.items() if not decay} == {p.name for p in free}


class Leaves:
    """Parameters of the names that matter, each pulled at by the loss scale / 2 * sum((w - target) ** 2)."""

    NAMES = ("conv.weight", "conv.bias", "rbr_dense.bn.gamma", "rbr_dense.bn.beta", "rbr_identity.gamma")
    DECAYS = {  # noqa: RUF012
        "paper": (True, False, False, False, True),
        "norm_and_bias": (True, False, False, False, False),
        "all": (True, True, True, True, True),
    }
    SCALE = 3.0

    def __init__(self):
        rng = np.random.default_rng(0)
        self.start, self.targets = rng.normal(size=(2, len(self.NAMES), 6)).astype(np.float32)
        self.parameters = [Parameter(Tensor(v), name=name) for v, name in zip(self.start, self.NAMES, strict=True)]

    def trainable_params(self):
        return self.parameters

    def values(self):
        return np.stack([parameter.asnumpy() for parameter in self.parameters])


def train_ours(rates, **options):
    """The leaves' values after each step, (steps, leaves, 6)."""
    leaves = Leaves()
    optimizer = build_optimizer(leaves, rates, **options)
    history = []
    for _ in rates:
        gradients = leaves.SCALE * (leaves.values() - leaves.targets)
        optimizer(tuple(Tensor(gradient) for gradient in gradients))
        history.append(leaves.values())
    return np.stack(history)


def train_torch(rates, decays, momentum, use_nesterov, weight_decay):
    """The same with torch.optim.SGD, whose groups are given the weight decays by hand."""
    leaves = Leaves()
    values = [torch.tensor(value, requires_grad=True) for value in leaves.start]
    groups = [{"params": [v], "weight_decay": weight_decay * d} for v, d in zip(values, decays, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=use_nesterov)
    history = []
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.zero_grad()
        targets = torch.tensor(leaves.targets)
        (leaves.SCALE / 2 * sum(((v - t) ** 2).sum() for v, t in zip(values, targets, strict=True))).backward()
        optimizer.step()
        history.append(torch.stack(values).detach().numpy())
    return np.stack(history)


RATES = learning_rates(scheduler="cosine_decay", lr=0.1, steps_per_epoch=4, epoch_size=3, warmup_epochs=1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("momentum", "use_nesterov", "weight_decay"),
    [(0.9, False, 0.1), (0.9, True, 0.1), (0.0, False, 0.1), (0.5, True, 0.0)],
    ids=["plain", "nesterov", "no momentum", "no decay"],
)
@pytest.mark.usefixtures("pynative_mode")
def test_steps_are_those_of_torch(rule, momentum, use_nesterov, weight_decay):
    options = {"momentum": momentum, "use_nesterov": use_nesterov, "weight_decay": weight_decay}
    ours = train_ours(RATES, weight_decay_filter=rule, **options)
    expected = train_torch(RATES, Leaves.DECAYS[rule], **options)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_nesterov", [False, True])
@pytest.mark.usefixtures("graph_mode")
def test_steps_in_graph_mode(use_nesterov):
    options = {"momentum": 0.9, "use_nesterov": use_nesterov, "weight_decay": 0.1}
    ours = train_ours(RATES, weight_decay_filter="paper", **options)
    np.testing.assert_allclose(ours, train_torch(RATES, Leaves.DECAYS["paper"], **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize("leaf", range(len(Leaves.NAMES)), ids=Leaves.NAMES)
def test_the_comparison_sees_every_leafs_decay(leaf):
    """Negative control: with one leaf's decay the other way, the comparison above would fail by far."""
    options = {"momentum": 0.9, "use_nesterov": False, "weight_decay": 0.1}
    decays = list(Leaves.DECAYS["paper"])
    right = train_torch(RATES, decays, **options)
    decays[leaf] = not decays[leaf]
    assert np.abs(train_torch(RATES, decays, **options) - right)[:, leaf].max() > 1e-3


@pytest.mark.usefixtures("pynative_mode")
def test_nesterov_without_momentum_is_plain():
    np.testing.assert_array_equal(
        train_ours(RATES, momentum=0.0, use_nesterov=True), train_ours(RATES, momentum=0.0, use_nesterov=False)
    )


def test_nesterov_is_another_step():
    """Negative control for the comparison with PyTorch."""
    plain, nesterov = (train_torch(RATES, Leaves.DECAYS["all"], 0.9, n, 0.1) for n in (False, True))
    assert np.abs(plain - nesterov).max() > 0.1


@pytest.mark.usefixtures("pynative_mode")
def test_every_step_has_its_own_rate():
    """A first step at rate 0, as warm-up has it, moves nothing; the momentum of it is kept."""
    rates = np.array([0.0, 0.1], np.float32)
    history = train_ours(rates, momentum=0.9)
    leaves = Leaves()
    np.testing.assert_array_equal(history[0], leaves.start)
    gradient = leaves.SCALE * (leaves.start - leaves.targets)
    np.testing.assert_allclose(history[1], leaves.start - 0.1 * (0.9 * gradient + gradient), rtol=0, atol=1e-5)
