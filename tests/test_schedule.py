"""Learning rates against scalar formulas, and the steps documented to be exact."""

import math

import numpy as np
import pytest

from mindrepvgg.recipe import Recipe
from mindrepvgg.schedule import learning_rates


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
    assert got[10 + 30 - 1] == got.min() == np.float32(1e-3)
    assert (got[39:] == np.float32(1e-3)).all()
    assert got[38] > got[39]


def test_warm_up_is_a_line():
    np.testing.assert_allclose(rates()[:11], [0.01 + 0.009 * t for t in range(11)], rtol=1e-6)
    assert rates(warmup_factor=0.0)[0] == 0


def test_cosine_between_the_ends():
    got = rates()
    for t in range(10, 40):
        angle = math.pi * (t - 10) / 29
        # The half-angle form: (1 + cos a) / 2 = cos(a / 2) ** 2.
        assert got[t] == pytest.approx(1e-3 + (0.1 - 1e-3) * math.cos(angle / 2) ** 2, rel=1e-6)
    assert (np.diff(got[10:40]) < 0).all()
    np.testing.assert_allclose(got[10:40] + got[10:40][::-1], 0.101, rtol=1e-6)  # symmetric about the middle


def test_decay_takes_what_is_left_unless_told():
    assert (rates(decay_epochs=None) == rates(decay_epochs=8)).all()
    assert rates(decay_epochs=None)[-1] == np.float32(1e-3)
    assert (rates(decay_epochs=None) != rates()).any()


def test_constant_stays_at_lr_after_the_warm_up():
    got = rates(scheduler="constant")
    assert (got[:10] == rates()[:10]).all()
    assert (got[10:] == np.float32(0.1)).all()


def test_without_warm_up_the_first_step_has_lr():
    got = rates(warmup_epochs=0, decay_epochs=None)
    assert got[0] == np.float32(0.1)
    assert got[-1] == np.float32(1e-3)


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
    exact = math.cos(math.pi * (t - 2 * steps) / (8 * steps - 1) / 2) ** 2
    assert got[t] == np.float32(exact)


def test_it_takes_a_recipes_values():
    recipe = Recipe(epoch_size=3)
    names = ("scheduler", "lr", "min_lr", "epoch_size", "warmup_epochs", "warmup_factor", "decay_epochs")
    got = learning_rates(**{name: getattr(recipe, name) for name in names}, steps_per_epoch=4)
    assert (got[0], got[-1], len(got)) == (np.float32(0.1), 0, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "zigzag"}, r"scheduler \(='zigzag'\) must be one of cosine_decay, constant"),
        ({"steps_per_epoch": 0}, r"epoch_size \(=10\) \* steps_per_epoch \(=0\) must be at least 1 step"),
        ({"decay_epochs": 9}, r"warm-up \(10 steps\) and decay \(45 steps\) must fit into the run \(50 steps\)"),
        ({"warmup_epochs": 11, "decay_epochs": None}, r"warm-up \(55 steps\) and decay \(-5 steps\) must fit"),
    ],
)
def test_impossible_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rates(**changes)
