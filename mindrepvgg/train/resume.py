"""Where a run stands, and taking it up from a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..checkpoint import TRAIN, load_arrays, load_checkpoint_and_state
from ..errors import TrainingError
from ..recipe import KEYS, Recipe, recipe_from_dict
from ..weights import read_weights

# What may differ between the sessions of one run: where things lie and how they are shown, not what is computed.
_FREE_KEYS = {
    "data_dir",
    "ckpt_save_dir",
    "keep_checkpoint_max",
    "num_parallel_workers",
    "device_target",
    "jit_level",
}


@dataclass
class Position:
    """How far a run has come; `interval_losses` are those of the steps since the last log record."""

    epoch: int = 0  # epochs completed
    step_in_epoch: int = 0  # steps completed in the epoch under way
    best_top1: float = -math.inf
    best_epoch: int = 0
    interval_losses: list = field(default_factory=list)

    def to_dict(self) -> dict:
        """Plain types for the checkpoint; no accuracy yet is null there, JSON knows no infinity."""
        return {**asdict(self), "best_top1": None if math.isinf(self.best_top1) else self.best_top1}

    @classmethod
    def from_dict(cls, values):
        """The position that `to_dict` wrote."""
        best = values["best_top1"]
        return cls(**{**values, "best_top1": -math.inf if best is None else best})


def optimizer_state(optimizer, net) -> dict:
    """The optimizer's own parameters by name: its moments and step count, not the network's weights."""
    weights = {parameter.name for parameter in net.get_parameters()}
    return {p.name: p.asnumpy() for p in optimizer.get_parameters() if p.name not in weights}


def restore(path, net, optimizer, recipe) -> Position:
    """Fill network and optimizer from a run's checkpoint and return where it stopped.

    Raises TrainingError when the checkpoint belongs to a finished network only, or to a run of another recipe.
    """
    net, state = load_checkpoint_and_state(path, net=net, form=TRAIN)
    _check_resumable(path, net.metadata)
    _check_same_recipe(path, recipe_from_dict(net.metadata["recipe"], str(path)), recipe)
    own = optimizer_state(optimizer, net)
    holder = _Parameters([p for p in optimizer.get_parameters() if p.name in own])
    load_arrays(holder, state, f"the optimizer's state in {path}")
    return Position.from_dict(net.metadata["position"])


def recipe_of_run(path) -> Recipe:
    """The recipe a run's checkpoint was made with."""
    description = read_weights(path).description
    _check_resumable(path, description)
    return recipe_from_dict(description["recipe"], str(path))


class _Parameters:
    """A bare collection with a cell's way of listing parameters."""

    def __init__(self, parameters):
        self._parameters = parameters

    def get_parameters(self):
        return self._parameters


def _check_resumable(path, description):
    if "position" not in description or "recipe" not in description:
        raise TrainingError(
            f"{path} holds a network but not the state of a run; resume from the *_last.ckpt of the run's folder"
        )


def _check_same_recipe(path, before: Recipe, now: Recipe):
    """Refuse to go on with a recipe that would compute something else."""
    changed = [
        f"{key} was {getattr(before, key)!r} and is now {getattr(now, key)!r}"
        for key in KEYS
        if key not in _FREE_KEYS and getattr(before, key) != getattr(now, key)
    ]
    if changed:
        raise TrainingError(
            f"the run in {path} cannot be continued exactly: {'; '.join(changed)}. Resume with the run's own recipe "
            f"(leave out -c and these options), or start a new run in another --ckpt_save_dir"
        )


def find_last(folder, model) -> Path:
    """The checkpoint `--resume` takes up in a run's folder. Raises TrainingError when there is none."""
    path = Path(folder) / f"{model}_last.ckpt"
    if not path.exists():
        raise TrainingError(f"{path} does not exist: there is no run to resume; start one without --resume")
    return path
