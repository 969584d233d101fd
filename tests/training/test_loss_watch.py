"""A run that diverges: where it is noticed, and what is kept."""

import math
import re

import numpy as np
import pytest
from mindspore import Tensor
from support.processes import records
from support.runs import STEPS, STEPS_PER_EPOCH, each_step, run_until, tiny

from mindrepvgg.errors import TrainingError
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.containers import read_weights


def spoil_at(trainer, step, leaf="linear.bias"):
    """An action for `each_step`: one parameter becomes NaN before this step."""
    (parameter,) = (p for p in trainer.net.get_parameters() if p.name == leaf)

    def spoil(now, _):
        if now == step:
            parameter.set_data(Tensor(np.full(parameter.shape, np.nan), parameter.dtype))

    return spoil


@pytest.mark.usefixtures("digits_read_once", "no_curves", "few_digits")
class TestDivergence:
    def test_a_rate_beyond_all_measure(self, tmp_path):
        with pytest.raises(TrainingError) as caught:
            Trainer(tiny(tmp_path, mode=1, lr=1e30, batch_size=100)).run()
        assert re.fullmatch(
            r"(the loss became (nan|inf) at step [1-4] \(epoch 1, learning rate \d.*\)|[\w.]+ is no longer finite at "
            r"step 4); the last good state is none yet\. Lower lr.*",
            str(caught.value),
        )
        assert not list(tmp_path.glob("*.ckpt"))

    def test_the_step_is_named_and_the_last_good_state_kept(self, tmp_path):
        """Step 14 is spoilt; the log comes to it at step 16, the checkpoint is of step 10."""
        trainer = Trainer(tiny(tmp_path, mode=1, batch_size=40))
        with pytest.raises(TrainingError) as caught:
            each_step(trainer, spoil_at(trainer, 14)).run()
        rate = 0.05 * (1 + math.cos(math.pi * 13 / STEPS))
        assert str(caught.value) == (
            f"the loss became nan at step 14 (epoch 2, learning rate {rate:.3g}); the last good state is "
            f"{tmp_path / 'repvgg_last.ckpt'}. Lower lr, lengthen warmup_epochs, or check the data"
        )
        for name in ("repvgg_last.ckpt", "repvgg_best.ckpt", "repvgg-1.ckpt"):
            found = read_weights(tmp_path / name)
            assert found.description["step"] == STEPS_PER_EPOCH
            assert all(np.isfinite(array).all() for array in found.arrays.values())
        assert records(tmp_path)[-1]["step"] == 12, "no record of the spoilt interval"

    def test_what_the_loss_does_not_show(self, tmp_path):
        """A ReLU makes a zero of NaN."""
        trainer = Trainer(tiny(tmp_path, mode=1, epoch_size=1, batch_size=200))
        each_step(trainer, spoil_at(trainer, 2, "stage0.rbr_dense.conv.weight"))
        with pytest.raises(TrainingError, match=r"^stage0\.rbr_dense\.conv\.weight is no longer finite at step 2; the"):
            trainer.run()
        assert not list(tmp_path.glob("*.ckpt"))

    @pytest.mark.parametrize("leaf", ["linear.bias", "stage0.rbr_dense.conv.weight"])
    def test_stopping_does_not_save_a_spoilt_network(self, tmp_path, leaf):
        """Neither where the loss shows it nor where it does not."""
        trainer = Trainer(tiny(tmp_path, mode=1, batch_size=40))
        each_step(trainer, spoil_at(trainer, 2, leaf))
        with pytest.raises(TrainingError, match=r"(the loss became nan|weight is no longer finite) at step 2"):
            run_until(trainer, 2)
        assert not list(tmp_path.glob("*.ckpt"))
