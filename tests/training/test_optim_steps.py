"""The optimizers' steps, against PyTorch's and NumPy's."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor, nn, ops
from support import context_mode

from mindrepvgg import create_model
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.schedule import learning_rates

pytestmark = pytest.mark.compat


class Leaves:
    """Parameters of the names that matter, each pulled at by the loss scale / 2 * sum((w - target) ** 2).

    One starts at 0, as a fresh BN's beta does.
    """

    NAMES = ("conv.weight", "conv.bias", "rbr_dense.bn.gamma", "rbr_dense.bn.beta", "rbr_identity.gamma")
    DECAYS = {  # noqa: RUF012
        "paper": (True, False, False, False, True),
        "norm_and_bias": (True, False, False, False, False),
        "norm": (True, True, False, False, False),
        "all": (True, True, True, True, True),
    }
    SCALE = 3.0

    def __init__(self):
        rng = np.random.default_rng(0)
        self.start, self.targets = rng.normal(size=(2, len(self.NAMES), 2, 3)).astype(np.float32)
        self.start[3] = 0
        self.parameters = [Parameter(Tensor(v), name=name) for v, name in zip(self.start, self.NAMES, strict=True)]

    def trainable_params(self):
        return self.parameters

    def values(self):
        return np.stack([parameter.asnumpy() for parameter in self.parameters])

    def gradients(self, values):
        return self.SCALE * (values - self.targets)


def run(leaves, optimizer, steps):
    """The leaves' values after each step, (steps, leaves, 2, 3)."""
    history = []
    for _ in range(steps):
        optimizer(tuple(Tensor(gradient) for gradient in leaves.gradients(leaves.values())))
        history.append(leaves.values())
    return np.stack(history)


def train_ours(rates, **options):
    """The leaves' values after each step of the whole schedule."""
    leaves = Leaves()
    return run(leaves, build_optimizer(leaves, rates, **options), len(rates))


def train_torch(rates, decays, weight_decay, make=torch.optim.SGD, **options):
    """The same with one of PyTorch's optimizers, whose groups are given the weight decays by hand."""
    leaves = Leaves()
    values = [torch.tensor(value, requires_grad=True) for value in leaves.start]
    groups = [{"params": [v], "weight_decay": weight_decay * d} for v, d in zip(values, decays, strict=True)]
    optimizer = make(groups, lr=1.0, **options)
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


@pytest.mark.parametrize(
    ("rule", "momentum", "use_nesterov", "weight_decay"),
    [
        *((rule, 0.9, False, 0.1) for rule in Leaves.DECAYS),
        *(("paper", 0.9, True, 0.1), ("paper", 0.0, False, 0.1), ("paper", 0.5, True, 0.0)),
    ],
)
@pytest.mark.usefixtures("pynative_mode")
def test_steps_are_those_of_torch(rule, momentum, use_nesterov, weight_decay):
    ours = train_ours(
        RATES, weight_decay_filter=rule, momentum=momentum, use_nesterov=use_nesterov, weight_decay=weight_decay
    )
    expected = train_torch(RATES, Leaves.DECAYS[rule], weight_decay, momentum=momentum, nesterov=use_nesterov)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_nesterov", [False, True])
@pytest.mark.usefixtures("graph_mode")
def test_steps_in_graph_mode(use_nesterov):
    ours = train_ours(RATES, weight_decay_filter="paper", use_nesterov=use_nesterov, weight_decay=0.1)
    expected = train_torch(RATES, Leaves.DECAYS["paper"], 0.1, momentum=0.9, nesterov=use_nesterov)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_nesterov", [False, True])
@pytest.mark.usefixtures("pynative_mode")
def test_sgd_and_momentum_are_the_same(use_nesterov):
    momentum, sgd = (train_ours(RATES, opt=opt, use_nesterov=use_nesterov) for opt in ("momentum", "sgd"))
    np.testing.assert_array_equal(momentum, sgd)


# A large eps shows where it stands: beside the corrected root, not the root as it is.
ADAM = [*((rule, {}) for rule in Leaves.DECAYS), ("paper", {"eps": 0.3}), ("paper", {"betas": (0.6, 0.9)})]


@pytest.mark.parametrize(
    ("mode", "rule", "options"), [*(("pynative", *case) for case in ADAM), *(("graph", *case) for case in ADAM[:1])]
)
def test_adamw_steps_are_those_of_torch(mode, rule, options):
    with context_mode(mode):
        ours = train_ours(RATES, opt="adamw", weight_decay=0.5, weight_decay_filter=rule, **options)
    expected = train_torch(RATES, Leaves.DECAYS[rule], 0.5, torch.optim.AdamW, **options)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


def test_the_comparison_sees_each_rule_of_adamw():
    """Negative control: decay in the gradient, no bias correction, or another eps differ by far."""
    decays = Leaves.DECAYS["paper"]
    adamw = train_torch(RATES, decays, 0.5, torch.optim.AdamW)
    leaves = Leaves()
    groups = [{"params": [p], "weight_decay": 0.5 * d} for p, d in zip(leaves.parameters, decays, strict=True)]
    uncorrected = run(leaves, nn.AdamWeightDecay(groups, RATES.tolist(), eps=1e-8), len(RATES))
    for others in (
        train_torch(RATES, decays, 0.5, torch.optim.Adam),
        uncorrected,
        train_torch(RATES, decays, 0.5, torch.optim.AdamW, eps=1e-3),
    ):
        assert np.abs(others - adamw).max() > 1e-4


@pytest.mark.usefixtures("pynative_mode")
def test_many_steps_of_adamw_do_not_drift_from_torch():
    rates = np.full(300, 0.01, np.float32)
    ours = train_ours(rates, opt="adamw", weight_decay=0.1)
    np.testing.assert_allclose(
        ours, train_torch(rates, Leaves.DECAYS["all"], 0.1, torch.optim.AdamW), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("leaf", range(len(Leaves.NAMES)), ids=Leaves.NAMES)
def test_the_comparison_sees_every_leafs_decay(leaf):
    """Negative control: with one leaf's decay the other way, the comparison above would fail by far."""
    decays = list(Leaves.DECAYS["paper"])
    right = train_torch(RATES, decays, 0.1, momentum=0.9)
    decays[leaf] = not decays[leaf]
    assert np.abs(train_torch(RATES, decays, 0.1, momentum=0.9) - right)[:, leaf].max() > 1e-3


@pytest.mark.usefixtures("pynative_mode")
def test_nesterov_without_momentum_is_plain():
    np.testing.assert_array_equal(
        train_ours(RATES, momentum=0.0, use_nesterov=True), train_ours(RATES, momentum=0.0, use_nesterov=False)
    )


def test_nesterov_is_another_step():
    """Negative control for the comparison with PyTorch."""
    plain, nesterov = (
        train_torch(RATES, Leaves.DECAYS["all"], 0.1, momentum=0.9, nesterov=nesterov) for nesterov in (False, True)
    )
    assert np.abs(plain - nesterov).max() > 0.1


@pytest.mark.usefixtures("pynative_mode")
def test_every_step_has_its_own_rate():
    """A first step at rate 0, as warm-up has it, moves nothing; the momentum of it is kept."""
    rates = np.array([0.0, 0.1], np.float32)
    history = train_ours(rates, momentum=0.9)
    leaves = Leaves()
    np.testing.assert_array_equal(history[0], leaves.start)
    gradient = leaves.gradients(leaves.start)
    np.testing.assert_allclose(history[1], leaves.start - 0.1 * (0.9 * gradient + gradient), rtol=0, atol=1e-5)


KINDS = {
    "momentum": {"opt": "momentum"},
    "nesterov": {"opt": "momentum", "use_nesterov": True},
    "adamw": {"opt": "adamw"},
}

# Nesterov's graph is momentum's with another formula, see test_steps_in_graph_mode.
IN_BOTH_MODES = pytest.mark.parametrize(
    ("optimizer_mode", "kind"),
    [
        *(("pynative", kind) for kind in KINDS),
        ("graph", "momentum"),
        ("graph", "adamw"),
        pytest.param("graph", "nesterov", marks=pytest.mark.slow),
    ],
)


def build(leaves, kind):
    return build_optimizer(leaves, RATES, weight_decay=0.1, weight_decay_filter="paper", **KINDS[kind])


def own_state(optimizer):
    """What the optimizer holds besides the leaves."""
    return [p for p in optimizer.get_parameters() if p.name not in Leaves.NAMES]


@IN_BOTH_MODES
def test_a_restored_optimizer_goes_on_exactly(optimizer_mode, kind):
    with context_mode(optimizer_mode):
        check_going_on(kind)


def check_going_on(kind):
    whole = Leaves()
    optimizer = build(whole, kind)
    run(whole, optimizer, 3)
    names = [p.name for p in optimizer.get_parameters()]
    assert len(names) == len(set(names)), "a state without a name of its own would be lost in a checkpoint"
    # asnumpy may share the parameter's memory.
    saved = {p.name: p.asnumpy().copy() for p in (*whole.parameters, *own_state(optimizer))}
    expected = run(whole, optimizer, 3)

    def go_on(with_state):
        leaves = Leaves()
        optimizer = build(leaves, kind)
        for parameter in (*leaves.parameters, *(own_state(optimizer) if with_state else ())):
            parameter.set_data(Tensor(saved[parameter.name]))
        return run(leaves, optimizer, 3)

    np.testing.assert_array_equal(go_on(with_state=True), expected)
    # Negative control: without its state it would go another way.
    assert np.abs(go_on(with_state=False) - expected).max() > 1e-3


class SkippingStep(nn.Cell):
    """One step in one graph: the leaves' gradients, and the update only where `accepted`."""

    def __init__(self, leaves, optimizer):
        super().__init__(auto_prefix=False)
        self.weights = optimizer.parameters
        self.targets = tuple(Tensor(target) for target in leaves.targets)
        self.scale = leaves.SCALE
        self.optimizer = optimizer

    def construct(self, accepted):
        gradients = ()
        for weight, target in zip(self.weights, self.targets):  # noqa: B905 - a graph's zip has no strict
            gradients += (self.scale * (weight - target),)
        if accepted:
            accepted = ops.depend(accepted, self.optimizer(gradients))
        return accepted


@IN_BOTH_MODES
def test_a_skipped_update_leaves_no_trace(optimizer_mode, kind):
    with context_mode(optimizer_mode):
        check_skipping(kind)


def check_skipping(kind):
    expected, leaves = Leaves(), Leaves()
    expected_history = run(expected, build(expected, kind), 3)
    step = SkippingStep(leaves, build(leaves, kind))
    history = []
    for accepted in (True, False, True, False, True):
        step(Tensor(accepted))
        if accepted:
            history.append(leaves.values())
    np.testing.assert_allclose(np.stack(history), expected_history, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("graph_mode")
def test_a_networks_gradients_meet_their_own_parameters():
    """On a network, in one graph, each parameter's first step with AdamW is -lr * sign(gradient)."""
    net = create_model("repvgg", 10, num_blocks=(1, 1, 1, 1), widths=(8, 8, 8, 8, 16))
    before = {p.name: p.asnumpy().copy() for p in net.trainable_params()}
    optimizer = build_optimizer(net, np.full(2, 1e-3, np.float32), opt="adamw", weight_decay_filter="norm_and_bias")
    images = Tensor(np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32))

    def loss(images):
        return ops.square(net(images)).sum()

    net.set_train()
    _, gradients = ms.value_and_grad(loss, None, optimizer.parameters)(images)
    optimizer(gradients)
    for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
        g, w = gradient.asnumpy(), before[parameter.name]
        expected = w - 1e-3 * g / (np.abs(g) + 1e-8)
        np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=0, atol=1e-6, err_msg=parameter.name)
