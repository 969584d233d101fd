"""A run of a recipe: everything it needs is built and checked here, before its first step."""

from __future__ import annotations

import contextlib
import os
import shlex
import time

import numpy as np
import yaml

from mindrepvgg.data.loaders import eval_loader, look_at_validation, train_loader
from mindrepvgg.errors import DataError, TrainingError
from mindrepvgg.files import atomic_write
from mindrepvgg.recipe.mindcv_keys import mindcv_notice
from mindrepvgg.reparam.precision import check_precision, set_precision
from mindrepvgg.runtime import device, gathering, ranks
from mindrepvgg.text import counted
from mindrepvgg.training.assemble import build_learning_rates, build_network, build_step, count_steps
from mindrepvgg.training.batches import host_batches
from mindrepvgg.training.loop import Loop, Stepper
from mindrepvgg.training.monitor import EventFiles, Profile, Progress, RunLog, StopRequest, estimate
from mindrepvgg.training.rank_statistics import RankStatistics
from mindrepvgg.training.repoptimizer import recipe_scales
from mindrepvgg.training.result import RunResult
from mindrepvgg.training.resume import Position, restore
from mindrepvgg.training.run_folder import RunFolder
from mindrepvgg.training.schedule import SCHEDULE
from mindrepvgg.training.state import TrainingState

_DRY_STEPS = 5


class Trainer:
    """A run of a recipe in its folder (`ckpt_save_dir`); everything is built and checked before the first step.

    resume: the checkpoint of an interrupted run to go on with, exactly; its log is taken up as well.
    overwrite: start anew in a folder that holds a run. Without it, and without resume, such a folder is refused.
    dry_run: compile and run a few steps, say what they cost, and write nothing; any folder will do.
    Under a launcher (msrun) every process makes one, and they train together; the first alone writes and prints.
    Raises UserError when recipe, data, checkpoint and folder do not fit together, or another run owns the folder.
    """

    def __init__(self, recipe, resume=None, overwrite=False, dry_run=False):
        self.recipe = recipe
        self.folder = RunFolder(recipe.ckpt_save_dir, recipe.variant.file_name)
        self._replaces = overwrite
        self._is_dry = dry_run
        self.device = device.setup(recipe.device_target, recipe.mode, recipe.jit_level, recipe.seed)
        check_precision(recipe.amp_level, recipe.amp_dtype, self.device)
        self.ranks = ranks.start(recipe.distribute)
        if not dry_run:
            if self.ranks.is_first:
                self.folder.check_free()
            self.folder.check(resume, overwrite)
        self._found = self.folder.standing()
        if recipe.data_dir:  # a checkpoint is read from other folders too
            place = os.path.abspath(os.path.expanduser(recipe.data_dir))
            recipe = recipe.replace(recipe.sources["data_dir"], data_dir=place)
        self.train_loader = train_loader(recipe, self.ranks)
        if recipe.num_classes is None:
            recipe = recipe.replace("the data", num_classes=self.train_loader.source.num_classes)
        self.recipe = recipe
        self.eval_loader = eval_loader(recipe, self.ranks, as_uint8=True) if recipe.val_while_train else None
        if self.eval_loader and self.eval_loader.source.class_names != self.train_loader.source.class_names:
            raise DataError("the training and validation splits have different classes; give both the same folders")
        self.steps_per_epoch = count_steps(recipe, self.train_loader)
        self.images_per_step = recipe.global_batch(self.ranks.size)
        self.lr = self.learning_rates(SCHEDULE)
        weights = recipe.pretrained if recipe.pretrained and resume is None else None
        # Those of a run that goes on are in its checkpoint; the file may be gone.
        scales = recipe_scales(recipe, resuming=resume is not None)
        self.net = build_network(recipe, self.ranks, weights, scales)
        self.step = build_step(recipe, self.net, self.lr, self.ranks, scales)
        self.loss_scale = self.step.loss_scale
        self.statistics = RankStatistics(self.net, self.step, self.ranks)
        self.state = TrainingState(self.net, self.step)
        self.position = Position(self.ranks.size, self.images_per_step, SCHEDULE)
        self._resumed_at = None
        if resume is not None:
            self.position = restore(resume, self, self.position)
            self._resumed_at = self.net.metadata["step"]

    def learning_rates(self, schedule: int) -> np.ndarray:
        """The learning rate of every step; `schedule` as in `schedule.learning_rates`."""
        return build_learning_rates(self.recipe, self.steps_per_epoch, self.images_per_step, schedule)

    @property
    def steps_done(self) -> int:
        """Steps of the whole run that are behind us."""
        return self.position.epoch * self.steps_per_epoch + self.position.step_in_epoch

    @property
    def _finished(self) -> bool:
        """Whether no epoch is left."""
        return self.position.epoch == self.recipe.epoch_size

    def _describe_end(self) -> str:
        """Say that a run was finished before it was taken up again."""
        return (
            f"the run in {self.folder.path} was finished before, with {counted(self.recipe.epoch_size, 'epoch')}; to "
            f"prolong it, give --resume with a larger --epoch_size"
        )

    def describe(self) -> str:
        """The run in a few lines: network, precision, device, data, steps, learning rate, and the folder it writes."""
        recipe = self.recipe
        precision = "float32" if recipe.amp_level == "O0" else f"{recipe.amp_dtype} ({recipe.amp_level})"
        factors = [f"{recipe.batch_size}"]
        factors += [f"{self.ranks.size} devices"] * (self.ranks.size > 1)
        factors += [f"{recipe.gradient_accumulation_steps} batches"] * (recipe.gradient_accumulation_steps > 1)
        batch = counted(self.images_per_step, "image") + (f" ({' x '.join(factors)})" if len(factors) > 1 else "")
        scaled = f" ({recipe.lr:g} for {recipe.lr_per_batch})" if recipe.lr_per_batch else ""
        parameters = counted(sum(p.size for p in self.net.trainable_params()), "parameter")
        epochs = counted(recipe.epoch_size, "epoch")
        steps, lr = f"{counted(self.steps_per_epoch, 'step')} of {batch}", f"lr up to {self.lr.max():.4g}{scaled}"
        notice = mindcv_notice(recipe)
        by = f" by RepOptimizer (scales: {recipe.scales})" if recipe.uses_repoptimizer else ""
        return (
            f"{notice + chr(10) if notice else ''}"
            f"{recipe.model}: {parameters} to train{by}, {precision}, on {self._describe_device()}\n"
            f"{self._describe_data()}\n"
            f"{epochs} of {steps}, {lr}{self._describe_output()}"
        )

    def _describe_device(self):
        """The device; on Ascend, and where a compile level was asked for, the level too."""
        recipe = self.recipe
        level = device.choose_jit_level(recipe.jit_level, self.device, recipe.mode)
        name = f"{self.device}{' in PyNative mode' if recipe.mode else ''}"
        return f"{name}, jit level: {level.reason}" if self.device != "CPU" or recipe.jit_level != "auto" else name

    def _describe_data(self):
        """The pictures of each split, where they are, and their size in the network."""
        recipe, source = self.recipe, self.train_loader.source
        place = f"{source.title} in {recipe.data_dir}" if recipe.data_dir else source.title
        height, width = recipe.image_size
        counts = [f"{counted(len(source), 'picture')} to train on"]
        if self.eval_loader:
            share = f" (val_share {recipe.val_share:g})" if source.divided else ""
            counts.append(f"{len(self.eval_loader.source):,} to validate on{share}")
        return f"{place}: {', '.join(counts)}, {counted(source.num_classes, 'class')}, {width}x{height} pixels"

    def _describe_output(self):
        """The folder of the run, and where in the run it is taken up; under msrun, where each process prints."""
        lines, position, recipe = [], self.position, self.recipe
        if not self._is_dry:
            lines.append(f"output: {self.folder.path}")
        if lines and self._resumed_at is not None and not self._finished:
            step = f"step {position.step_in_epoch + 1} of {self.steps_per_epoch}"
            lines[0] += f"; resuming at epoch {position.epoch + 1}, {step}"
        if lines and recipe.tensorboard:
            place = shlex.quote(str(self.folder.tensorboard))
            lines.append(f"to look at the curves: pip install tensorboard; tensorboard --logdir {place}")
        path = gathering.output_file() if self.ranks.size > 1 else None
        if path:
            lines.append(f"{self.ranks.size} processes; rank 0 prints into {path}, the others beside it")
        return "".join(f"\n{line}" for line in lines)

    def run(self, profile=False) -> RunResult | None:
        """Train to the end, or to Ctrl-C, SIGTERM or a file `stop` in the folder: the state is saved then.

        profile: record the first steps after compilation with MindSpore's profiler.
        None after a dry run.
        """
        if self._is_dry:
            self._dry_run()
            self.ranks.leave()
            return None
        with contextlib.ExitStack() as stack:
            log, profiler = self._open_folder(stack, profile)
            self.ranks.any(False)  # none writes before the first has the folder
            progress = Progress(len(self.lr), self.steps_done, silent=not self.ranks.is_first)
            stack.callback(progress.close)
            stop = stack.enter_context(StopRequest())
            progress.say(self.describe())
            if self._finished:
                progress.say(self._describe_end())
            self._look_at_validation()
            loop = Loop(self, log, progress, stop, profiler)
            loop.train()
        set_precision(self.net, "O0")
        self.ranks.leave()
        result = RunResult(
            finished=self._finished,
            evaluation=loop.checkpoints.evaluation,
            best_top1=self.position.best_top1,
            last=self.folder.last,
            best=self.folder.best,
            curves=self.folder.curves,
            scales=self.folder.scales if self.recipe.searches_scales else None,
        )
        if profiler:
            profiler.close()
            progress.say(profiler.format())
        progress.say(result.format())
        return result

    def _look_at_validation(self):
        """Before the first epoch; a run that is taken up later has validated, or is looked at no more than once."""
        if self.eval_loader and not self.position.epoch:
            look_at_validation(self.recipe, self.eval_loader.source, self.ranks)

    def _open_folder(self, stack, profile) -> tuple[RunLog, Profile | None]:
        """Open what the run writes to, on the first rank only: the log, and the profiler if one is wanted."""
        recipe, folder = self.recipe, self.folder
        if not self.ranks.is_first:
            return RunLog(None), None
        stack.enter_context(folder.owned())
        if folder.standing() != self._found:
            raise TrainingError(f"another run wrote to {folder.path} while this one was starting; start this one again")
        if self._replaces:
            folder.start_anew()
        folder.take_stop()  # one that came too late for the session before
        events = None
        if recipe.tensorboard:
            events = EventFiles(folder.tensorboard, self._resumed_at or 0)
            stack.callback(events.close)
        log = RunLog(folder.log, self._resumed_at, events)
        with atomic_write(folder.recipe, "w") as stream:
            yaml.safe_dump(recipe.to_dict(), stream, sort_keys=False)
        if not profile:
            return log, None
        profiler = Profile(folder.profile)
        stack.callback(profiler.close)
        return log, profiler

    def _dry_run(self):
        """Compile and run a few steps, and say what they cost."""
        count = min(1 + _DRY_STEPS, self.steps_per_epoch, len(self.lr) - self.steps_done)
        progress = Progress(count, 0, silent=not self.ranks.is_first)
        stepper, times = Stepper(self, progress, keep_graphs=False), []
        batches = host_batches(self.train_loader, 0, 0)
        with contextlib.closing(progress), contextlib.closing(batches):
            progress.say(self.describe())
            self._look_at_validation()
            for _ in range(count):
                start = time.perf_counter()
                loss, _ = stepper.take(batches)
                loss.asnumpy()
                times.append(time.perf_counter() - start)
                progress.step(1, 1)
            _, waiting = stepper.meter.read()
            if times:
                seconds = float(np.median(times[1:] or times))
                source = f"median of {len(times) - 1}" if times[1:] else "a single step, with its compilation"
                progress.say(
                    f"{1000 * seconds:.1f} ms a step ({source}), {self.images_per_step / seconds:.0f} "
                    f"images/s, {waiting:.0%} of it waiting for data; peak memory {device.peak_memory()}"
                )
                progress.say(estimate(seconds, len(self.lr) - self.steps_done))
            else:
                progress.say(self._describe_end())
            progress.say("dry run: nothing was written")
