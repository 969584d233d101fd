"""Learning rates against scalar formulas, PyTorch's and MindCV's schedulers, and the steps documented to be exact."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
import yaml
from torch.optim import lr_scheduler

from mindrepvgg.recipe.choices import SCHEDULERS
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training import schedule
from mindrepvgg.training.assemble import build_learning_rates
from mindrepvgg.training.schedule import learning_rates, scaled_lr


def rates(**changes):
    """Rates of a run of 10 epochs of 5 steps: 2 epochs of warm-up, 6 of decay, 2 level."""
    values = {
        "scheduler": "cosine_decay",
        "lr": 0.1,
        "min_lr": 1e-3,
        "epoch_size": 10,
        "warmup_epochs": 2,
        "warmup_factor": 0.1,
        "decay_epochs": 6,
        "steps_per_epoch": 5,
    }
    return learning_rates(**{**values, **changes})


def test_one_float32_rate_for_each_step():
    assert rates().shape == (50,)
    assert rates().dtype == np.float32


def test_ends_are_exact():
    got = rates()
    assert got[0] == np.float32(0.1 * 0.1)
    assert got[10] == got.max() == np.float32(0.1)
    assert got[10 + 30] == got.min() == np.float32(1e-3)
    assert (got[40:] == np.float32(1e-3)).all()
    assert got[39] > got[40]


def test_warm_up_is_a_line():
    np.testing.assert_allclose(rates()[:11], [0.01 + 0.009 * t for t in range(11)], rtol=1e-6)
    assert rates(warmup_factor=0.0)[0] == 0


def test_cosine_between_the_ends():
    got = rates()
    for t in range(10, 40):
        angle = math.pi * (t - 10) / 30
        # The half-angle form: (1 + cos a) / 2 = cos(a / 2) ** 2.
        assert got[t] == pytest.approx(1e-3 + (0.1 - 1e-3) * math.cos(angle / 2) ** 2, rel=1e-6)
    assert (np.diff(got[10:40]) < 0).all()
    np.testing.assert_allclose(got[10:41] + got[10:41][::-1], 0.101, rtol=1e-6)  # symmetric about the middle


def test_decay_takes_what_is_left_unless_told():
    assert (rates(decay_epochs=None) == rates(decay_epochs=8)).all()
    assert np.float32(1e-3) < rates(decay_epochs=None)[-1] < 0.0012  # the step after it would have min_lr
    assert (rates(decay_epochs=None) != rates()).any()


def test_constant_stays_at_lr_after_the_warm_up():
    got = rates(scheduler="constant")
    assert (got[:10] == rates()[:10]).all()
    assert (got[10:] == np.float32(0.1)).all()


def test_without_warm_up_the_first_step_has_lr():
    got = rates(warmup_epochs=0, decay_epochs=None)
    assert got[0] == np.float32(0.1)


def test_a_run_of_warm_up_alone_never_quite_reaches_lr():
    got = rates(warmup_epochs=10, decay_epochs=None, warmup_factor=0.0)
    np.testing.assert_allclose(got, [0.1 * t / 50 for t in range(50)], rtol=1e-6)


def test_a_decay_of_one_step_has_lr():
    got = rates(epoch_size=1, warmup_epochs=0, decay_epochs=None, steps_per_epoch=1)
    assert got.tolist() == [np.float32(0.1)]


def test_computed_in_float64():
    steps = 100_000
    got = rates(steps_per_epoch=steps, decay_epochs=None, lr=1.0, min_lr=0.0)
    t = 9 * steps
    exact = math.cos(math.pi * (t - 2 * steps) / (8 * steps) / 2) ** 2
    assert got[t] == np.float32(exact)


def test_step_decay():
    got = rates(scheduler="step_decay", decay_epochs=3, decay_rate=0.5, min_lr=0.03)
    for t in range(10, 50):
        rate = 0.1
        for _ in range((t - 10) // 15):
            rate *= 0.5
        assert got[t] == pytest.approx(max(rate, 0.03), rel=1e-6), t
    assert got[24] == np.float32(0.1) != got[25] == np.float32(0.05) != got[40] == np.float32(0.03)


def test_a_step_may_be_longer_than_the_run():
    got = rates(scheduler="step_decay", decay_epochs=30)
    assert (got[10:] == np.float32(0.1)).all()


def test_multi_step_decay():
    got = rates(scheduler="multi_step_decay", decay_rate=0.5, multi_step_decay_milestones=(5, 2.4, 7), min_lr=0.02)
    for t in range(10, 50):
        rate = 0.1
        for milestone in (2.4, 5, 7):
            if t - 10 >= milestone * 5:
                rate *= 0.5
        assert got[t] == pytest.approx(max(rate, 0.02), rel=1e-6), t
    # 2 + 2.4 epochs of 5 steps are 22 steps.
    assert got[21] == np.float32(0.1) != got[22] == np.float32(0.05)


def test_milestones_beyond_the_run_or_none_change_nothing():
    for milestones in ((), (8, 100)):
        got = rates(scheduler="multi_step_decay", multi_step_decay_milestones=milestones)
        assert (got[10:] == np.float32(0.1)).all()


def test_exponential_decay():
    got = rates(scheduler="exponential_decay", decay_rate=0.7, min_lr=0.02)
    for t in range(10, 50):
        assert got[t] == pytest.approx(max(0.1 * math.exp(math.log(0.7) * (t - 10) / 5), 0.02), rel=1e-6), t
    assert got[10] == np.float32(0.1)
    assert (got[33:] == np.float32(0.02)).all()
    assert got[32] > np.float32(0.02)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_decay(power):
    got = rates(scheduler="polynomial_decay", decay_rate=power)
    for t in range(10, 40):
        assert got[t] == pytest.approx(1e-3 + 0.099 * ((40 - t) / 30) ** power, rel=1e-6), t
    assert got[10] == np.float32(0.1)
    assert (got[40:] == np.float32(1e-3)).all()
    assert got[39] > got[40]


def one_cycle(**changes):
    return rates(scheduler="one_cycle", warmup_epochs=0, decay_epochs=None, **changes)


@pytest.mark.parametrize("min_lr", [0.0, 1e-3])
def test_one_cycle(min_lr):
    got = one_cycle(min_lr=min_lr)
    for t in range(50):
        if t <= 14:
            expected = 0.004 + 0.096 * math.sin(math.pi * t / 28) ** 2
        else:
            expected = min_lr + (0.1 - min_lr) * math.cos(math.pi * (t - 14) / 70) ** 2
        assert got[t] == pytest.approx(expected, rel=1e-6, abs=1e-12), t
    assert (got[0], got[14], got[-1]) == (np.float32(0.004), np.float32(0.1), np.float32(min_lr))


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_the_shortest_one_cycles(epochs):
    got = one_cycle(epoch_size=epochs, steps_per_epoch=1)
    assert np.isfinite(got).all()
    assert got[-1] == np.float32(1e-3)


def test_cosine_cycles():
    options = {"warmup_epochs": 1, "decay_epochs": 2, "cycle_decay": 0.5}
    got = rates(num_cycles=3, **options)
    for t in range(5, 50):
        cycle, step = 0, t - 5
        while step >= 10:
            cycle, step = cycle + 1, step - 10
        peak = 0.1 / 2**cycle
        expected = 1e-3 + (peak - 1e-3) * math.cos(math.pi * step / 20) ** 2 if cycle < 3 else 1e-3
        assert got[t] == pytest.approx(expected, rel=1e-6), t
    for cycle in range(3):
        assert got[5 + 10 * cycle] == np.float32(0.1 * 0.5**cycle)
    assert (got[35:] == np.float32(1e-3)).all()
    # The run ends within the fifth cycle.
    cut = rates(num_cycles=9, **options)
    assert (cut[:35] == got[:35]).all()
    assert cut[-5] == np.float32(0.1 / 16)


def test_a_cycles_peak_is_not_below_min_lr():
    got = rates(warmup_epochs=0, decay_epochs=1, num_cycles=10, cycle_decay=0.1)
    assert (got[15:] == np.float32(1e-3)).all()
    assert got.min() == np.float32(1e-3)


CURVES = {
    "cosine_decay": {"decay_epochs": 2, "num_cycles": 3, "cycle_decay": 0.5},
    "step_decay": {"decay_epochs": 3},
    "multi_step_decay": {"multi_step_decay_milestones": (2, 5), "decay_rate": 0.3},
    "exponential_decay": {"decay_rate": 0.7},
    "polynomial_decay": {"decay_rate": 2.0},
    "one_cycle": {"warmup_epochs": 0, "decay_epochs": None},
    "constant": {},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_epochs_stair_has_the_rate_of_its_first_step(scheduler):
    options = {"scheduler": scheduler, **CURVES[scheduler]}
    smooth, stair = rates(**options), rates(lr_epoch_stair=True, **options)
    for t in range(50):
        assert stair[t] == smooth[5 * (t // 5)], t


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_curves_share_the_warm_up_and_the_peak(scheduler):
    got = rates(scheduler=scheduler, **CURVES[scheduler])
    assert got.shape == (50,)
    assert got.dtype == np.float32
    if scheduler != "one_cycle":
        assert (got[:10] == rates()[:10]).all()
        assert got[10] == np.float32(0.1)
    assert got.max() == np.float32(0.1)


def of_torch(make):
    """The rates PyTorch sets for 50 steps from 0.1, stepping its scheduler after every one."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(optimizer)
    got = []
    for _ in range(50):
        got.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return got


# (our options, PyTorch's scheduler of the same meaning); no warm-up, so that steps are counted from 0.
TORCH = {
    "step": ({"scheduler": "step_decay", "decay_epochs": 3}, lambda o: lr_scheduler.StepLR(o, 15, 0.1)),
    "multi step": (
        {"scheduler": "multi_step_decay", "multi_step_decay_milestones": (2, 5), "decay_rate": 0.3},
        lambda o: lr_scheduler.MultiStepLR(o, [10, 25], 0.3),
    ),
    "exponential": (
        {"scheduler": "exponential_decay", "decay_rate": 0.7},
        lambda o: lr_scheduler.ExponentialLR(o, 0.7 ** (1 / 5)),
    ),
    "polynomial": (
        {"scheduler": "polynomial_decay", "decay_rate": 0.9},
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=50, power=0.9),
    ),
    "cosine": ({"min_lr": 1e-3}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=50, eta_min=1e-3)),
    "one cycle": (
        {"scheduler": "one_cycle", "min_lr": 1e-3},
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.1, total_steps=50, pct_start=0.3, div_factor=25, final_div_factor=0.1 / 25 / 1e-3, three_phase=False
        ),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_the_rates_are_those_of_torch(name):
    options, make = TORCH[name]
    got = rates(**{"min_lr": 0.0, "warmup_epochs": 0, "decay_epochs": None, **options})
    np.testing.assert_allclose(got, of_torch(make), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", TORCH)
def test_the_comparison_sees_a_curve_that_is_off_by_one(name):
    """Negative control: a run that is one step ahead of PyTorch's fails the comparison above by far."""
    options, make = TORCH[name]
    got = rates(**{"min_lr": 0.0, "warmup_epochs": 0, "decay_epochs": None, **options})
    assert np.abs(np.roll(got, -1)[:48] - of_torch(make)[:48]).max() > 1e-3


# What a recipe of MindCV's says of its schedule; all of them have one.
MINDCV = {
    "cosine_decay": {"min_lr": 1e-5, "decay_epochs": 8},
    "warmup_cosine_decay": {"min_lr": 0.0, "decay_epochs": 6},  # then a plateau
    "cycles": {"scheduler": "cosine_decay", "min_lr": 1e-4, "decay_epochs": 2, "num_cycles": 3, "cycle_decay": 0.5},
    "polynomial_decay": {"decay_rate": 2.0},
    "step_decay": {"decay_epochs": 3, "decay_rate": 0.5},
    "multi_step_decay": {"multi_step_decay_milestones": [2, 5], "decay_rate": 0.3},
    "exponential_decay": {"decay_rate": 0.7},
    "one_cycle": {"min_lr": 1e-3, "warmup_epochs": 0},
    "constant": {},
}


@pytest.mark.parametrize(
    ("name", "stair"),
    # MindCV's one_cycle has no stair.
    [(name, stair) for name in MINDCV for stair in (False, True) if (name, stair) != ("one_cycle", True)],
)
def test_a_recipe_of_mindcv_has_the_rate_of_mindcv_in_every_step(name, stair, tmp_path):
    from mindcv.scheduler import create_scheduler

    common = {"scheduler": name, "lr": 0.1, "warmup_epochs": 2, "warmup_factor": 0.1, "lr_epoch_stair": stair}
    values = {**common, **MINDCV[name]}
    recipe = {"model": "repvgg_a0", "opt": "momentum", "epoch_size": 10, "dynamic_loss_scale": True, **values}
    (tmp_path / "mindcv.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    got = build_learning_rates(load_recipe(tmp_path / "mindcv.yaml"), 5, 128)
    values["milestones"] = values.pop("multi_step_decay_milestones", None)
    expected = create_scheduler(num_epochs=10, steps_per_epoch=5, **values)
    np.testing.assert_allclose(got, expected, rtol=1e-7)


@pytest.mark.parametrize("scheduler", ["cosine_decay", "polynomial_decay"])
def test_a_run_of_an_older_version_ends_a_step_earlier(scheduler):
    old, new = rates(scheduler=scheduler, schedule=1), rates(scheduler=scheduler)
    assert old[39] == old[40] == new[40] == np.float32(1e-3)
    assert (old[11:40] < new[11:40]).all()
    for t in range(10, 40):
        p = (t - 10) / 29
        factor = math.cos(math.pi * p / 2) ** 2 if scheduler == "cosine_decay" else (1 - p) ** 0.1
        assert old[t] == pytest.approx(1e-3 + 0.099 * factor, rel=1e-6)


def test_scaled_lr():
    assert scaled_lr(0.1, None, 512) == 0.1
    assert scaled_lr(0.1, 256, 256) == 0.1
    assert scaled_lr(0.1, 256, 1024) == 0.4
    assert scaled_lr(0.1, 256, 32) == 0.0125


def test_it_takes_a_recipes_values():
    recipe = Recipe(epoch_size=3)
    names = ("scheduler", "lr", "min_lr", "epoch_size", "warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate")
    names += ("multi_step_decay_milestones", "num_cycles", "cycle_decay", "lr_epoch_stair")
    got = learning_rates(**{name: getattr(recipe, name) for name in names}, steps_per_epoch=4)
    assert (got[0], len(got)) == (np.float32(0.1), 12)
    # What is not given is as in a recipe.
    assert (got == learning_rates(scheduler="cosine_decay", lr=0.1, epoch_size=3, steps_per_epoch=4)).all()


@pytest.mark.parametrize("scheduler", schedule.CURVES)
def test_parts_change_no_bit_and_a_long_run_takes_little_more_than_its_rates(scheduler, monkeypatch):
    settings = {"scheduler": scheduler, "lr": 0.3, "min_lr": 1e-4, "steps_per_epoch": 97, "warmup_epochs": 5}
    whole = schedule.learning_rates(**settings, epoch_size=90)
    monkeypatch.setattr(schedule, "_PART", 2**10)
    tracemalloc.start()
    parts = schedule.learning_rates(**settings, epoch_size=90)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts.tobytes() == whole.tobytes()
    assert peak < 5 * whole.nbytes, "a float64 alone is two of them"
