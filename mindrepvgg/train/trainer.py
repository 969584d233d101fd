"""The loop: epochs of compiled steps, validation, checkpoints, and an end that loses nothing."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from mindspore import Tensor

from .. import runtime
from ..checkpoint import save_checkpoint
from ..data import TrainLoader, open_source
from ..errors import DataError, TrainingError
from ..evaluate import Evaluation, eval_loader, evaluate
from ..files import atomic_write
from ..optim import build_optimizer
from ..pretrained import create_model
from ..schedule import learning_rates
from .monitor import Progress, RunLog, StopRequest, draw_curves
from .resume import Position, optimizer_state, restore
from .step import NetworkWithLoss, TrainStep


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `finished`, or stopped by a signal; the last validation, and where everything lies."""

    finished: bool
    evaluation: Evaluation | None
    best_top1: float
    last: Path
    best: Path
    curves: Path


class Trainer:
    """A run of a recipe in its folder (`ckpt_save_dir`); everything is built and checked before the first step.

    resume: the checkpoint of an interrupted run to go on with, exactly; its log is taken up as well.
    overwrite: start anew in a folder that holds a run. Without it, and without resume, such a folder is refused.
    Raises UserError when recipe, data, checkpoint and folder do not fit together.
    """

    def __init__(self, recipe, resume=None, overwrite=False):
        self.recipe = recipe
        self.folder = Path(recipe.ckpt_save_dir)
        self.last = self.folder / f"{recipe.model}_last.ckpt"
        self.best = self.folder / f"{recipe.model}_best.ckpt"
        self.curves = self.folder / "curves.png"
        held = sorted(self.folder.glob("*_last.ckpt"))
        _check_folder(self.folder, held, resume, overwrite)
        runtime.setup(recipe.device_target, recipe.mode, recipe.jit_level, recipe.seed)
        self.train_loader = _train_loader(recipe)
        self.eval_loader = eval_loader(recipe) if recipe.val_while_train else None
        if self.eval_loader and self.eval_loader.source.class_names != self.train_loader.source.class_names:
            raise DataError("the training and validation splits have different classes; give both the same folders")
        self.lr = learning_rates(
            scheduler=recipe.scheduler,
            lr=recipe.lr,
            steps_per_epoch=self.train_loader.steps_per_epoch,
            epoch_size=recipe.epoch_size,
            min_lr=recipe.min_lr,
            warmup_epochs=recipe.warmup_epochs,
            warmup_factor=recipe.warmup_factor,
            decay_epochs=recipe.decay_epochs,
        )
        weights = recipe.pretrained if recipe.pretrained and resume is None else None
        self.net = create_model(
            recipe.model, recipe.num_classes, recipe.in_channels, weights=weights, **recipe.model_args
        )
        self.optimizer = build_optimizer(
            self.net, self.lr, recipe.momentum, recipe.use_nesterov, recipe.weight_decay, recipe.weight_decay_filter
        )
        self.position = Position() if resume is None else restore(resume, self.net, self.optimizer, recipe)
        self.step = TrainStep(NetworkWithLoss(self.net, recipe.label_smoothing, recipe.aux_weight), self.optimizer)
        if overwrite:
            _remove_runs(held)
        self.log = RunLog(self.folder / "log.jsonl", keep_until=None if resume is None else self.steps_done)
        with atomic_write(self.folder / "recipe.yaml", "w") as stream:
            yaml.safe_dump(recipe.to_dict(), stream, sort_keys=False)
        self.evaluation = None

    @property
    def steps_done(self) -> int:
        """Steps of the whole run that are behind us."""
        return self.position.epoch * self.train_loader.steps_per_epoch + self.position.step_in_epoch

    def run(self) -> RunResult:
        """Train to the end, or to Ctrl-C or SIGTERM, which saves the state after the step under way."""
        recipe, position = self.recipe, self.position
        with closing(Progress(len(self.lr), self.steps_done)) as progress, StopRequest() as stop:
            self._meter = _Meter()
            while position.epoch < recipe.epoch_size and not stop.asked:
                if self._train_epoch(progress, stop):
                    position.epoch, position.step_in_epoch = position.epoch + 1, 0
                    self._end_epoch(progress)
                else:
                    self._check_finite()
                    self._save(self.last, with_state=True)
        self._draw()
        return RunResult(
            finished=position.epoch == recipe.epoch_size,
            evaluation=self.evaluation,
            best_top1=position.best_top1,
            last=self.last,
            best=self.best,
            curves=self.curves,
        )

    def _train_epoch(self, progress, stop) -> bool:
        """Run the rest of the epoch under way; False when a signal cut it short."""
        recipe, position, loader = self.recipe, self.position, self.train_loader
        losses = []
        with closing(loader.epoch(position.epoch, position.step_in_epoch)) as batches:
            for images, labels in batches:
                losses.append(self.step(Tensor(images), Tensor(labels)))
                position.step_in_epoch += 1
                if self._meter.first_step:
                    losses[-1].asnumpy()
                    progress.say(f"first step, with graph compilation: {self._meter.start():.1f} s")
                else:
                    self._meter.count(len(labels))
                progress.step(position.epoch + 1, recipe.epoch_size)
                end_of_epoch = position.step_in_epoch == loader.steps_per_epoch
                if end_of_epoch or self.steps_done % recipe.log_interval == 0:
                    self._log_losses(losses, progress)
                    losses = []
                if stop.asked and not end_of_epoch:
                    position.interval_losses = self._interval_losses(losses)
                    return False
        return True

    def _interval_losses(self, losses) -> list:
        """The loss of each step since the last log record; stops the run when one is no longer a number."""
        values = self.position.interval_losses + _floats(losses)
        for step, value in enumerate(values, self.steps_done - len(values) + 1):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} at step {step} (epoch {self.position.epoch + 1}, learning rate "
                    f"{self.lr[step - 1]:.3g}); the last good state is {self._last_good()}. "
                    f"Lower lr, lengthen warmup_epochs, or check the data"
                )
        return values

    def _log_losses(self, losses, progress):
        """Write the mean loss since the last record."""
        position = self.position
        loss = float(np.mean(self._interval_losses(losses)))
        position.interval_losses = []
        lr = float(self.lr[self.steps_done - 1])
        speed = self._meter.images_per_second()
        steps_per_epoch = self.train_loader.steps_per_epoch
        self.log.write(
            "train",
            position.epoch + 1,
            self.steps_done,
            progress=self.steps_done / steps_per_epoch,
            loss=loss,
            lr=lr,
            images_per_second=speed,
        )
        progress.show(loss, lr, speed)

    def _end_epoch(self, progress):
        """Validate, save, and tell."""
        recipe, position = self.recipe, self.position
        is_last = position.epoch == recipe.epoch_size
        self._check_finite()
        line = f"epoch {position.epoch}/{recipe.epoch_size}: loss {self.log.records[-1]['loss']:.4f}"
        improved = False
        if self.eval_loader and (is_last or position.epoch % recipe.val_interval == 0):
            self.evaluation = evaluate(self.net, self.eval_loader)
            self.log.write("validate", position.epoch, self.steps_done, **asdict(self.evaluation))
            line += f", top-1 {self.evaluation.top1:.2f}%, top-5 {self.evaluation.top5:.2f}%"
            improved = self.evaluation.top1 > position.best_top1
            if improved:
                position.best_top1, position.best_epoch = self.evaluation.top1, position.epoch
                line += " (best)"
        if improved:
            self._save(self.best)
        self._save_epoch()
        # After the others: when the process dies in between, the epoch is run again and they are saved again.
        self._save(self.last, with_state=True)
        self._draw()
        self._meter.restart()
        progress.say(line)

    def _check_finite(self):
        """Refuse to save a network that holds a NaN or infinity: a ReLU can hide them from the loss."""
        for parameter in self.net.get_parameters():
            if not np.isfinite(parameter.asnumpy()).all():
                raise TrainingError(
                    f"{parameter.name} is no longer finite at step {self.steps_done}; the last good state is "
                    f"{self._last_good()}. Lower lr or lengthen warmup_epochs"
                )

    def _last_good(self):
        """The checkpoint to fall back on, in words."""
        return self.last if self.last.exists() else "none yet"

    def _save_epoch(self):
        """Keep the newest `keep_checkpoint_max` epochs' networks."""
        keep = self.recipe.keep_checkpoint_max
        if keep:
            self._save(self._epoch_path(self.position.epoch))
            self._epoch_path(self.position.epoch - keep).unlink(missing_ok=True)

    def _epoch_path(self, epoch):
        return self.folder / f"{self.recipe.model}-{epoch}.ckpt"

    def _save(self, path, with_state=False):
        recipe = self.recipe
        source = self.train_loader.source
        facts = {
            "image_size": list(recipe.image_size),
            "preprocessing": {
                "mean": list(recipe.mean),
                "std": list(recipe.std),
                "crop_pct": recipe.crop_pct,
                "interpolation": recipe.interpolation,
            },
            "dataset": recipe.dataset,
            "class_names": list(source.class_names),
            "recipe": recipe.to_dict(),
            "epoch": self.position.epoch,
            "step": self.steps_done,
            "metrics": asdict(self.evaluation) if self.evaluation else None,
        }
        # `position` comes from a resumed checkpoint's metadata too, and must not outlive the state it belongs to.
        self.net.metadata.pop("position", None)
        if with_state:
            facts["position"] = self.position.to_dict()
        state = optimizer_state(self.optimizer, self.net) if with_state else None
        save_checkpoint(self.net, path, training_state=state, **facts)

    def _draw(self):
        if self.log.records:
            draw_curves(self.log.records, self.curves, f"{self.recipe.model} on {self.recipe.dataset}")


class _Meter:
    """Images a second of the steps alone, without graph compilation, validation and saving."""

    def __init__(self):
        self.first_step = True
        self._images = 0
        self._since = time.perf_counter()

    def start(self) -> float:
        """The first step is done; returns the seconds it took."""
        seconds = time.perf_counter() - self._since
        self.first_step = False
        self.restart()
        return seconds

    def restart(self):
        """Leave out what happened since the last reading."""
        self._images, self._since = 0, time.perf_counter()

    def count(self, images):
        self._images += images

    def images_per_second(self) -> float:
        """The rate since the last reading."""
        speed = self._images / max(time.perf_counter() - self._since, 1e-9)
        self.restart()
        return speed


def _check_folder(folder, held, resume, overwrite):
    """Refuse to write over a run (`held`: the *_last.ckpt in the folder) that is not the one to go on with."""
    if not held:
        return
    if resume is None and not overwrite:
        raise TrainingError(
            f"{folder} holds a run already ({held[0].name}); add --resume to continue it, --overwrite to start anew, "
            f"or give another --ckpt_save_dir"
        )
    if resume is not None and Path(resume).exists() and not any(path.samefile(resume) for path in held):
        raise TrainingError(f"{folder} holds another run ({held[0].name}) than {resume}; give another --ckpt_save_dir")


def _remove_runs(held):
    """Remove the checkpoints of the runs that saved `held`, so that none of them is taken for the new run's."""
    for last in held:
        model = last.name.removesuffix("_last.ckpt")
        last.with_name(f"{model}_best.ckpt").unlink(missing_ok=True)
        for path in last.parent.glob(f"{model}-*.ckpt"):
            if path.stem.removeprefix(f"{model}-").isdecimal():
                path.unlink()
        last.unlink()


def _floats(losses):
    """Losses as numbers; waits for the device."""
    return [float(loss.asnumpy()) for loss in losses]


def _train_loader(recipe) -> TrainLoader:
    source = open_source(recipe.dataset, recipe.data_dir, "train", recipe.num_classes)
    return TrainLoader(
        source,
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        mean=recipe.mean,
        std=recipe.std,
        in_channels=recipe.in_channels,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        interpolation=recipe.interpolation,
        seed=recipe.seed,
        num_parallel_workers=recipe.num_parallel_workers,
        drop_remainder=recipe.drop_remainder,
    )
