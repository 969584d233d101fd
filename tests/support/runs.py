"""A small run on real digits for the tests of training: its recipe, and ways to step in and to stop it."""

import signal
from pathlib import Path

from mindspore import Tensor

from mindrepvgg.recipe.sources import load_recipe
from support import TINY_DIGITS

# 4000 real digits in 10 steps an epoch, on a network of a few thousand parameters.
TINY = {
    **TINY_DIGITS,
    "scale": [0.7, 1.0],
    "hflip": 0.0,
    "batch_size": 400,
    "epoch_size": 2,
    "lr": 0.1,
    "num_parallel_workers": 2,
    "log_interval": 4,
    "keep_checkpoint_max": 1,
}


STEPS_PER_EPOCH, STEPS = 10, 20


def tiny(folder, **changes):
    """The recipe TINY with changes, its run in `folder`."""
    return load_recipe(None, {**TINY, "ckpt_save_dir": str(folder), **changes})


def names(folder):
    """What lies in a run's folder, besides the file that is locked."""
    return sorted(path.name for path in Path(folder).iterdir() if path.name != ".lock")


def each_step(trainer, action):
    """Call action(step, images) before each of the trainer's steps, counted from 1; images can be changed in place."""
    inner = trainer.step

    def step(images, labels):
        array = images.asnumpy().copy()
        action(trainer.steps_done + 1, array)
        return inner(Tensor(array), labels)

    trainer.step = step
    return trainer


def run_until(trainer, step):
    """Run until SIGINT arrives in this step."""

    def interrupt(now, _):
        if now == step:
            signal.raise_signal(signal.SIGINT)

    result = each_step(trainer, interrupt).run()
    assert not result.finished
    assert trainer.steps_done == step
    return result
