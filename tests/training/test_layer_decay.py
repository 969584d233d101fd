"""Learning rates that fall from the head to the stem: the factors, by numbers written out here, and the steps."""

import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor, nn
from support import SMALL, context_mode
from support.mindcv_networks import register
from support.processes import assert_same_run
from support.runs import run_until, tiny

from mindrepvgg import create_model
from mindrepvgg.errors import RecipeError
from mindrepvgg.models.variants import find
from mindrepvgg.training.layer_decay import rate_factors
from mindrepvgg.training.optim import build_optimizer, format_parameter_groups, parameter_groups
from mindrepvgg.training.schedule import learning_rates
from mindrepvgg.training.trainer import Trainer

RATES = learning_rates(scheduler="cosine_decay", lr=0.1, steps_per_epoch=4, epoch_size=3, warmup_epochs=1)

# With a factor of 1/2 every number is exact. timm gives its RepVGG of these stages (2, 1, 3, 1) the same.
PLUS = {
    "stage0": 2**-8, "stage1.0": 2**-7, "stage1.1": 2**-6, "stage2.0": 2**-5, "stage3_first.0": 2**-4,
    "stage3_second.0": 2**-3, "stage3_second.1": 2**-2, "stage4.0": 2**-1,
    "linear": 1, "stage1_aux": 1, "stage2_aux": 1, "stage3_first_aux": 1,
}  # fmt: skip


def test_factors():
    net = create_model("repvgg", 5, **SMALL["plus"])
    net.stage0.rbr_dense.conv.weight.requires_grad = False
    factors = rate_factors(net, 0.5)
    assert list(factors) == [parameter.name for parameter in net.trainable_params()]
    for name, factor in factors.items():
        (owner,) = [place for place in PLUS if name.startswith(f"{place}.")]
        assert factor == PLUS[owner], name
    assert set(rate_factors(net, 1.0).values()) == {1.0}


def test_factors_of_a_features_network_begin_below_the_head():
    net = create_model("repvgg", features_only=True, out_indices=(1,), **SMALL["plus"])
    assert set(rate_factors(net, 0.5).values()) == {1 / 2, 1 / 4, 1 / 8}


def test_a_network_that_tells_no_blocks():
    with pytest.raises(RecipeError, match=r"^layer_decay \(=0.5\) counts the blocks of this package's networks"):
        rate_factors(nn.Dense(2, 2), 0.5)


def test_a_network_of_mindcv_tells_no_blocks():
    pytest.importorskip("mindcv")
    net = create_model(register(), 5)
    with pytest.raises(RecipeError, match=r"^layer_decay \(=0.5\) counts the blocks of this package's networks"):
        build_optimizer(net, RATES, layer_decay=0.5)


def test_the_table_shows_the_factors():
    net = create_model("repvgg", 5, num_blocks=(1, 1, 1, 1), widths=(8, 8, 8, 8, 16))
    lines = format_parameter_groups(parameter_groups(net, 1e-4, "norm", 0.5)).splitlines()
    assert lines[0].split() == ["parameter", "shape", "weight", "decay", "lr", "factor"]
    assert lines[1].split() == ["stage0.rbr_dense.conv.weight", "8x3x3x3", "0.0001", "0.03125"]
    assert lines[-2].split() == ["linear.bias", "5", "0.0001", "1"]


class Leaves:
    """Parameters of two blocks and the head, each pulled at by the loss 3 / 2 * sum((w - target) ** 2)."""

    FACTORS = {"stage0.rbr_dense.conv.weight": 0.5**9, "stage4.0.rbr_dense.bn.gamma": 0.5, "linear.weight": 1}  # noqa: RUF012
    DECAYS = (1, 0, 1)

    def __init__(self):
        rng = np.random.default_rng(0)
        self.variant = find("repvgg_nano")  # nine blocks
        self.start, self.targets = rng.normal(size=(2, 3, 4)).astype(np.float32)
        # Far from the target, so that the stem's small steps show.
        self.start[0] += 200
        self.parameters = [Parameter(Tensor(v), name=name) for v, name in zip(self.start, self.FACTORS, strict=True)]

    def trainable_params(self):
        return self.parameters


def train_ours(layer_decay=0.5, **options):
    leaves, history = Leaves(), []
    optimizer = build_optimizer(leaves, RATES, layer_decay=layer_decay, weight_decay_filter="paper", **options)
    for _ in RATES:
        values = [p.asnumpy() for p in leaves.parameters]
        optimizer(tuple(Tensor(3 * (v - t)) for v, t in zip(values, leaves.targets, strict=True)))
        history.append(np.stack([p.asnumpy() for p in leaves.parameters]))
    return np.stack(history)


def train_torch(make, weight_decay, **options):
    leaves, history = Leaves(), []
    values = [torch.tensor(value, requires_grad=True) for value in leaves.start]
    groups = [{"params": [v], "weight_decay": weight_decay * d} for v, d in zip(values, Leaves.DECAYS, strict=True)]
    optimizer = make(groups, lr=1.0, **options)
    for rate in RATES:
        for group, factor in zip(optimizer.param_groups, leaves.FACTORS.values(), strict=True):
            group["lr"] = float(rate) * factor
        optimizer.zero_grad()
        (1.5 * sum(((v - torch.tensor(t)) ** 2).sum() for v, t in zip(values, leaves.targets, strict=True))).backward()
        optimizer.step()
        history.append(torch.stack(values).detach().numpy())
    return np.stack(history)


CASES = {
    "momentum": ({"opt": "momentum", "weight_decay": 0.1}, (torch.optim.SGD, 0.1, {"momentum": 0.9})),
    "nesterov": (
        {"opt": "sgd", "weight_decay": 0.1, "use_nesterov": True},
        (torch.optim.SGD, 0.1, {"momentum": 0.9, "nesterov": True}),
    ),
    "adamw": ({"opt": "adamw", "weight_decay": 0.5}, (torch.optim.AdamW, 0.5, {})),
}


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_torch_with_a_rate_for_each_layer(mode, case):
    options, (make, decay, theirs) = CASES[case]
    with context_mode(mode):
        ours = train_ours(**options)
    expected = train_torch(make, decay, **theirs)
    np.testing.assert_allclose(ours, expected, rtol=3e-7, atol=5e-6)
    # Negative control: one rate for all is far off.
    if mode == "pynative":
        assert np.abs(train_ours(1.0, **options) - expected).max() > 1e-2


def test_all_layers_share_one_table_of_rates():
    """A run is resumed by it, and it is as long as the run."""
    optimizer = build_optimizer(Leaves(), RATES, layer_decay=0.5)
    (rates,) = [p for p in optimizer.get_parameters() if "rate" in p.name]
    assert rates.name == "learning_rate"
    np.testing.assert_array_equal(rates.asnumpy(), RATES.astype(np.float32))


@pytest.mark.parametrize("opt", ["momentum", "adamw"])
def test_a_restored_optimizer_goes_on_exactly(pynative_mode, opt):
    """The default suite's part of the test below."""

    def made():
        leaves = Leaves()
        return leaves, build_optimizer(leaves, RATES, opt=opt, layer_decay=0.5, weight_decay=0.1)

    def step(leaves, optimizer):
        optimizer(tuple(Tensor(p.asnumpy() - t) for p, t in zip(leaves.parameters, leaves.targets, strict=True)))

    leaves, optimizer = made()
    for _ in range(3):
        step(leaves, optimizer)
    saved = {p.name: Tensor(p.asnumpy().copy()) for p in optimizer.get_parameters()}
    others, restored = made()
    for parameter in restored.get_parameters():
        parameter.set_data(saved[parameter.name])
    for one in ((leaves, optimizer), (others, restored)):
        step(*one)
    for one, other in zip(leaves.parameters, others.parameters, strict=True):
        assert one.asnumpy().tobytes() == other.asnumpy().tobytes()


@pytest.mark.slow
@pytest.mark.usefixtures("digits_read_once", "no_curves", "few_digits")
@pytest.mark.parametrize("opt", ["momentum", "adamw"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, opt):
    def recipe(name):
        return tiny(tmp_path / name, mode=1, opt=opt, layer_decay=0.7, epoch_size=3, warmup_epochs=1, lr=0.01)

    Trainer(recipe("whole")).run()
    stopped = run_until(Trainer(recipe("parts")), 2)
    assert Trainer(recipe("parts"), resume=stopped.last).run().finished
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
