"""Where a run stands, and taking it up from a checkpoint."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindrepvgg.errors import CheckpointError, TrainingError
from mindrepvgg.evaluation.run_log import is_count
from mindrepvgg.models.network_spec import file_name_of
from mindrepvgg.models.networks import spelled
from mindrepvgg.recipe.provenance import CODE
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.recipe.sources import recipe_from_dict
from mindrepvgg.text import counted, quoted
from mindrepvgg.training import rank_statistics
from mindrepvgg.training.run_folder import find_last
from mindrepvgg.training.schedule import SCHEDULE
from mindrepvgg.weights.checkpoint import load_checkpoint_and_state, read_checkpoint
from mindrepvgg.weights.description import Description

log = logging.getLogger(__name__)

# What may differ between the sessions of one run: where things lie and how they are shown, not what is computed.
_FREE_KEYS = {
    "data_dir",
    "ckpt_save_dir",
    "keep_checkpoint_max",
    "ckpt_save_policy",
    "ckpt_save_interval",
    "tensorboard",
    "on_bad_image",  # or a run that ends at a damaged file could not go on
    "bad_image_limit",
    "num_parallel_workers",
    "device_target",
    "jit_level",
    "grouped",
    "dataset_sink_mode",
    "compile_cache",
    "distribute",
    "all_reduce",
}
# ... and, on another number of devices, what makes up the global batch.
_FREE_KEYS_ELSEWHERE = {*_FREE_KEYS, "batch_size", "gradient_accumulation_steps"}


# The optimizer's own parameters of these names: the learning rate of every step, and the updates made.
_RATES, _UPDATES = "learning_rate", "global_step"


@dataclass
class Position:
    """How far a run has come; `interval_losses` are those of the steps since the last log record.

    ranks, images_per_step: what the run is counted in.
    schedule: how its learning rate ends, see `schedule.SCHEDULE`; 0.1 had only one and did not tell it.
    skipped: steps whose update was left out after an overflow.
    """

    ranks: int = 1
    images_per_step: int = 0
    schedule: int = 1
    epoch: int = 0  # epochs completed
    step_in_epoch: int = 0  # steps completed in the epoch under way
    skipped: int = 0
    best_top1: float = -math.inf
    best_epoch: int = 0
    best_ema_top1: float = -math.inf
    kept: list = field(default_factory=list)  # (epoch, top-1 or null) of each epoch checkpoint that is kept
    interval_losses: list = field(default_factory=list)
    bad_images: list = field(default_factory=list)  # indices found unreadable in the epoch under way, by any rank

    def to_dict(self) -> dict:
        """Plain types for the checkpoint; no accuracy yet is null there, JSON knows no infinity."""
        values = asdict(self)
        return {key: None if value == -math.inf else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping, source):
        """The position that `to_dict` wrote.

        Args:
            values: the mapping in the file.
            source: the file; it starts the message.

        Raises:
            TrainingError: an entry is not known, as a newer version may write it, or its value cannot be used.
        """
        for key, value in values.items():
            if key not in _POSITION:
                raise TrainingError(
                    f"{source} holds a run that this version of mindrepvgg cannot continue: its position has the "
                    f"unknown entry {quoted(key, 80)}; resume with the version that wrote it"
                )
            if not _POSITION[key](value):
                raise TrainingError(f"{source} is not described rightly: position's {key} cannot be {quoted(value)}")
        restored: dict[str, Any] = {k: -math.inf if v is None else v for k, v in values.items()}
        return cls(**restored)


def _is_measured(value) -> bool:
    return value is None or type(value) in (int, float)


def _is_list_of(is_item) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


def _is_kept(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_count(value[0]) and _is_measured(value[1])


# What each entry of a position must be.
_POSITION: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("ranks", "images_per_step", "epoch", "step_in_epoch", "skipped", "best_epoch"), is_count),
    **dict.fromkeys(("best_top1", "best_ema_top1"), _is_measured),
    "schedule": lambda value: type(value) is int and 1 <= value <= SCHEDULE,
    "kept": _is_list_of(_is_kept),
    "interval_losses": _is_list_of(_is_measured),
    "bad_images": _is_list_of(is_count),
}


def restore(path, run, now: Position) -> Position:
    """Fill a run from its checkpoint.

    On the same number of ranks the run goes on exactly. On another one it goes on, which is said in the log, from the
    same epoch; with another global batch from that epoch's start.

    Args:
        path: the checkpoint.
        run: the `Trainer`, before its first step.
        now: its position there.

    Returns:
        Where the run stopped.

    Raises:
        TrainingError: the checkpoint belongs to a finished network only, or to a run of another recipe; more epochs are
            allowed.
    """
    try:
        _, arrays = load_checkpoint_and_state(path, net=run.net)
    except CheckpointError:
        # Where the recipes differ, as in `block`, that says more than the parameters that do not fit.
        _check_same_recipe(path, *_read_run(path, read_checkpoint(path)[1]), run.recipe, now)
        raise
    saved, before = _read_run(path, Description.read(run.net.metadata, path))
    _check_same_recipe(path, saved, before, run.recipe, now)
    _check_position(path, before, saved, run, now)
    of_ranks = arrays.pop(rank_statistics.KEY, None)
    rates, updates = _counted(path, arrays)
    if before.schedule != now.schedule:
        run.lr = run.learning_rates(before.schedule)
    prolonged = saved.epoch_size != run.recipe.epoch_size
    if prolonged or before.images_per_step != now.images_per_step:
        arrays[_RATES] = run.lr
    run.state.put_back(arrays, path)
    run.statistics.put_back(of_ranks, path)
    run.step.set_train()  # loading a network sets it to inference
    position = before if before.ranks == now.ranks else _elsewhere(path, before, run, now)
    if prolonged:
        following = run.lr[int(run.step.optimizer.global_step.asnumpy().item())]
        log.warning(
            "%s is prolonged from %d to %d epochs: the learning rate was %.4g in the last step and is %.4g in the "
            "next, as %s has it over %d epochs",
            *(path, saved.epoch_size, run.recipe.epoch_size, rates[max(updates - 1, 0)], following),
            *(run.recipe.scheduler, run.recipe.epoch_size),
        )
    return position


def _counted(path, arrays) -> tuple[np.ndarray, int]:
    """The learning rate of every step of the saved run, and the number of its updates."""
    rates, updates = (np.ravel(arrays.get(name, ())) for name in (_RATES, _UPDATES))
    if not len(rates) or len(updates) != 1 or not 0 <= updates[0] <= len(rates):
        raise TrainingError(
            f"{path} lacks the optimizer's state, or tells of more updates than its run has steps: it is no checkpoint "
            f"of a run to go on with; give another *_last.ckpt"
        )
    return rates, int(updates[0])


def _check_position(path, before: Position, saved: Recipe, run, now: Position):
    """Refuse a position that no run of the recipe has."""
    steps = run.steps_per_epoch if before.images_per_step == now.images_per_step else math.inf
    last = steps if before.epoch < saved.epoch_size else 0
    if before.epoch > saved.epoch_size or before.step_in_epoch > last or before.ranks < 1:
        raise TrainingError(
            f"{path} is not described rightly: its position is epoch {before.epoch}, step {before.step_in_epoch}, of "
            f"{counted(saved.epoch_size, 'epoch')} of {steps} steps"
        )


def _elsewhere(path, before: Position, run, now: Position) -> Position:
    """Where a run stands on another number of ranks."""
    log.warning(
        "%s was saved on %d devices (%d images a step), this run is on %d (%d): it goes on, but not bit for bit",
        *(path, before.ranks, before.images_per_step, now.ranks, now.images_per_step),
    )
    position = replace(before, ranks=now.ranks, images_per_step=now.images_per_step)
    if before.images_per_step != now.images_per_step:
        if before.step_in_epoch:
            log.warning("epoch %d is started again: its steps are others now", before.epoch + 1)
        position = replace(position, step_in_epoch=0, interval_losses=[])
        counter = run.step.optimizer.global_step
        counter.set_data(Tensor([position.epoch * run.steps_per_epoch], counter.dtype))
    return position


def find_run(resume, recipe: Recipe | None, overrides: Mapping, source: str = CODE) -> tuple[Recipe, Path]:
    """Find the run to go on with.

    Args:
        resume: True: the run in `ckpt_save_dir`; a folder: the run in it, which goes on there; or a run's checkpoint.
        recipe: what it is to go on with; None: its own recipe.
        overrides: recipe keys and their values, over the recipe's.
        source: where the overrides are from.

    Returns:
        The recipe, and the run's checkpoint.

    Raises:
        UserError: there is no such run, or a value cannot be used.
    """
    checkpoint = resume
    if resume is True or Path(resume).is_dir():
        own = (recipe or Recipe()).ckpt_save_dir
        folder = overrides.get("ckpt_save_dir", own) if resume is True else resume
        model = overrides.get("model", recipe and recipe.model)
        checkpoint = find_last(folder, model and file_name_of(spelled(model)))
        overrides = {"ckpt_save_dir": str(folder), **overrides}
    return (recipe or recipe_of_run(checkpoint)).replace(source, **overrides), Path(checkpoint)


def recipe_of_run(path) -> Recipe:
    """The recipe a run's checkpoint was made with."""
    recipe, _ = _read_run(path, read_checkpoint(path)[1])
    return recipe


def _read_run(path, description: Description) -> tuple[Recipe, Position]:
    """The recipe of a run, and where it was when its checkpoint was saved."""
    if description.position is None or description.recipe is None or description.step is None:
        raise TrainingError(
            f"{path} holds a network but not the state of a run; resume from the *_last.ckpt of the run's folder"
        )
    return recipe_from_dict(description.recipe, str(path)), Position.from_dict(description.position, path)


def _check_same_recipe(path, saved: Recipe, before: Position, wanted: Recipe, now: Position):
    """Refuse to go on with a recipe that would compute something else; more epochs are no such thing."""
    free = _FREE_KEYS if before.ranks == now.ranks else _FREE_KEYS_ELSEWHERE
    if wanted.epoch_size > saved.epoch_size:
        free = {*free, "epoch_size"}
    changed = [key for key in KEYS if key not in free and getattr(saved, key) != getattr(wanted, key)]
    if not changed:
        return
    values = [f"{key} was {quoted(getattr(saved, key))} and is now {quoted(getattr(wanted, key))}" for key in changed]
    if "epoch_size" in changed:
        values.append("epoch_size can only grow (a file called stop in the folder ends a run earlier)")
    raise TrainingError(
        f"the run in {path} cannot be continued exactly: {'; '.join(values)}. Resume with the run's own recipe (leave "
        f"out -c and these options), or start a new run from its weights in another folder: --pretrained "
        f"{shlex.quote(str(path))} --ckpt_save_dir FOLDER"
    )
