"""The loop: epochs of compiled steps, validation, checkpoints, and an end that loses nothing."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict

import numpy as np
import yaml

from mindrepvgg.data.loaders import eval_loader, train_loader
from mindrepvgg.data.normalize import Normalize
from mindrepvgg.errors import DataError, RecipeError, TrainingError
from mindrepvgg.evaluation.loop import Evaluation, evaluate
from mindrepvgg.files import atomic_write
from mindrepvgg.recipe.mindcv_keys import mindcv_notice
from mindrepvgg.reparam.precision import check_precision, float32_precision, set_precision
from mindrepvgg.runtime import device, ranks
from mindrepvgg.runtime.compile_cache import kept_graphs
from mindrepvgg.training.assemble import build_learning_rates, build_network, build_step, count_steps
from mindrepvgg.training.batches import DeviceQueue, host_batches
from mindrepvgg.training.folder import RunFolder
from mindrepvgg.training.monitor import EventFiles, Meter, Profile, Progress, RunLog, StopRequest, draw_curves
from mindrepvgg.training.precise_bn import precise_bn
from mindrepvgg.training.result import RunResult
from mindrepvgg.training.resume import Position, RunState, restore
from mindrepvgg.weights.checkpoint import save_checkpoint

_DRY_STEPS = 5

# Skipped updates in a row after which a run is given up: no scale is left to halve by then.
_MOST_SKIPPED = 30

# The share of the time spent waiting for data from which on it is said.
_MUCH_WAITING = 0.25


class Trainer:
    """A run of a recipe in its folder (`ckpt_save_dir`); everything is built and checked before the first step.

    resume: the checkpoint of an interrupted run to go on with, exactly; its log is taken up as well.
    overwrite: start anew in a folder that holds a run. Without it, and without resume, such a folder is refused.
    Under a launcher (msrun) every process makes one, and they train together; the first alone writes and prints.
    Raises UserError when recipe, data, checkpoint and folder do not fit together.
    """

    def __init__(self, recipe, resume=None, overwrite=False):
        self.recipe = recipe
        self.folder = RunFolder(recipe.ckpt_save_dir, recipe.model)
        self.folder.check(resume, overwrite)
        self._replaces = overwrite
        self.device = device.setup(recipe.device_target, recipe.mode, recipe.jit_level, recipe.seed)
        check_precision(recipe.amp_level, recipe.amp_dtype, self.device)
        self.ranks = ranks.start(recipe.distribute, self.device)
        self.train_loader = train_loader(recipe, self.ranks)
        self.eval_loader = eval_loader(recipe, self.ranks, as_uint8=True) if recipe.val_while_train else None
        if self.eval_loader and self.eval_loader.source.class_names != self.train_loader.source.class_names:
            raise DataError("the training and validation splits have different classes; give both the same folders")
        self.steps_per_epoch = count_steps(recipe, self.train_loader)
        self.images_per_step = recipe.batch_size * self.ranks.size * recipe.gradient_accumulation_steps
        self.lr = build_learning_rates(recipe, self.steps_per_epoch, self.images_per_step)
        weights = recipe.pretrained if recipe.pretrained and resume is None else None
        self.net = build_network(recipe, self.ranks, weights)
        self.step = build_step(recipe, self.net, self.lr, self.ranks)
        self.loss_scale = self.step.loss_scale
        self.state = RunState(self.net, self.step, self.ranks)
        self.position = Position(self.ranks.size, self.images_per_step)
        self._resumed_at = None
        if resume is not None:
            self.position = restore(resume, self.state, recipe, self.position, self.steps_per_epoch)
            self._resumed_at = self.net.metadata["step"]
        self.evaluation = None
        self._compiled = False
        self._stopping = False
        self._skipped_in_row = 0
        self._said_waiting = False

    @property
    def steps_done(self) -> int:
        """Steps of the whole run that are behind us."""
        return self.position.epoch * self.steps_per_epoch + self.position.step_in_epoch

    def describe(self) -> str:
        """The run in a few lines: network, device, precision, compile level, steps and learning rate."""
        recipe = self.recipe
        level = device.choose_jit_level(recipe.jit_level, self.device, recipe.mode)
        precision = "float32" if recipe.amp_level == "O0" else f"{recipe.amp_dtype} ({recipe.amp_level})"
        factors = [f"{recipe.batch_size}"]
        factors += [f"{self.ranks.size} devices"] * (self.ranks.size > 1)
        factors += [f"{recipe.gradient_accumulation_steps} batches"] * (recipe.gradient_accumulation_steps > 1)
        batch = f"{self.images_per_step} images" + (f" ({' x '.join(factors)})" if len(factors) > 1 else "")
        scaled = f" ({recipe.lr:g} for {recipe.lr_per_batch})" if recipe.lr_per_batch else ""
        parameters, mode = sum(p.size for p in self.net.trainable_params()), ("graph", "PyNative")[recipe.mode]
        steps, lr = f"{self.steps_per_epoch} steps of {batch}", f"lr up to {self.lr.max():.4g}{scaled}"
        notice = mindcv_notice(recipe)
        return (
            f"{notice + chr(10) if notice else ''}"
            f"{recipe.model}: {parameters:,} parameters to train, {precision}\n"
            f"{self.device}, {mode} mode, jit level: {level.reason}\n"
            f"{recipe.epoch_size} epochs of {steps}, {lr}"
        )

    def run(self, dry_run=False, profile=False) -> RunResult | None:
        """Train to the end, or to Ctrl-C, SIGTERM or a file `stop` in the folder: the state is saved then.

        dry_run: compile and run a few steps, say what they cost, write nothing and return None.
        profile: record the first steps after compilation with MindSpore's profiler.
        """
        if dry_run:
            self._dry_run()
            self.ranks.leave()
            return None
        recipe, position = self.recipe, self.position
        with contextlib.ExitStack() as stack:
            self._open_folder(stack, profile)
            self._progress = Progress(len(self.lr), self.steps_done, silent=not self.ranks.is_first)
            stack.callback(self._progress.close)
            self._stop = stack.enter_context(StopRequest())
            self._meter = Meter()
            self._progress.say(self.describe())
            self._queue = self._device_queue()
            while position.epoch < recipe.epoch_size and not self._stopping:
                if self._train_epoch():
                    position.epoch, position.step_in_epoch = position.epoch + 1, 0
                    self._end_epoch()
                else:
                    self._save_state(self.state.gather_statistics())
                    self._draw()
            if position.epoch == recipe.epoch_size and recipe.precise_bn_steps:
                self._take_precise_bn()
        set_precision(self.net, "O0")
        self.ranks.leave()
        result = RunResult(
            finished=position.epoch == recipe.epoch_size,
            evaluation=self.evaluation,
            best_top1=position.best_top1,
            last=self.folder.last,
            best=self.folder.best,
            curves=self.folder.curves,
        )
        self._progress.say(result.format())
        return result

    def _open_folder(self, stack, profile):
        """Open what the run writes to; on the first rank only."""
        recipe, folder = self.recipe, self.folder
        self._profile = None
        if not self.ranks.is_first:
            self.log = RunLog(None)
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        if self._replaces:
            folder.start_anew()
        folder.take_stop()  # one that came too late for the session before
        events = None
        if recipe.tensorboard:
            events = EventFiles(folder.tensorboard, self._resumed_at or 0)
            stack.callback(events.close)
        self.log = RunLog(folder.log, self._resumed_at, events)
        with atomic_write(folder.recipe, "w") as stream:
            yaml.safe_dump(recipe.to_dict(), stream, sort_keys=False)
        if profile:
            self._profile = Profile(folder.profile)
            stack.callback(self._profile.close)

    def _device_queue(self):
        """The queue the device fetches its batches from, None where they are handed over one by one."""
        recipe, position = self.recipe, self.position
        if not recipe.dataset_sink_mode or self.device != "Ascend":
            return None
        if not recipe.drop_remainder:
            raise RecipeError("dataset_sink_mode (=True) needs drop_remainder: the device takes batches of one size")
        batches = self.steps_per_epoch * recipe.gradient_accumulation_steps
        start = position.step_in_epoch * recipe.gradient_accumulation_steps
        return DeviceQueue(self.train_loader, position.epoch, start, recipe.epoch_size, batches)

    def _train_epoch(self) -> bool:
        """Run the rest of the epoch under way; False when a signal cut it short."""
        recipe, position = self.recipe, self.position
        start = position.step_in_epoch * recipe.gradient_accumulation_steps
        batches = self._queue.batches(start) if self._queue else host_batches(self.train_loader, position.epoch, start)
        outcomes = []
        with contextlib.closing(batches):
            while position.step_in_epoch < self.steps_per_epoch:
                outcomes.append(self._take_step(batches))
                position.step_in_epoch += 1
                self._progress.step(position.epoch + 1, recipe.epoch_size)
                end_of_epoch = position.step_in_epoch == self.steps_per_epoch
                end_of_interval = end_of_epoch or self.steps_done % recipe.log_interval == 0
                if end_of_interval:
                    self._read_losses(outcomes)
                    self._log_interval()
                    outcomes = []
                self._agree_to_stop(end_of_interval)
                if self._stopping and not end_of_epoch:
                    self._read_losses(outcomes)
                    break
        position.bad_images = self.ranks.union({*position.bad_images, *self.train_loader.bad_images.of(position.epoch)})
        return position.step_in_epoch == self.steps_per_epoch

    def _take_step(self, batches):
        """One update, from as many batches as are accumulated; (loss, whether it was made) of it, on the device."""
        last = self.recipe.gradient_accumulation_steps - 1
        start = time.perf_counter()
        with self._kept_graphs():
            for number in range(last + 1):
                with self._meter.waiting():
                    images, targets = next(batches)
                outcome = self.step(images, targets) if number == last else self.step.accumulate(images, targets)
                self._meter.count(len(targets) * self.ranks.size)
        if not self._compiled:
            outcome[0].asnumpy()
            self._compiled = True
            self._progress.say(f"first step, with graph compilation: {time.perf_counter() - start:.1f} s")
            self._meter.restart()
            if self._profile:
                self._profile.start()
        elif self._profile:
            self._profile.step()
        return outcome

    def _kept_graphs(self):
        """The compile cache, of the step's graphs alone: validation and the rest come in no fixed order."""
        recipe = self.recipe
        if self._compiled or not recipe.compile_cache:
            return contextlib.nullcontext()
        facts = [recipe.to_dict(), self.steps_per_epoch, self.ranks.size, self.device]
        return kept_graphs(self.folder.compile_cache, facts)

    def _agree_to_stop(self, end_of_interval):
        """Take up a signal, alone after every step, or the folder's stop file; ranks ask each other after intervals."""
        asked = self._stop.asked or (end_of_interval and self.ranks.is_first and self.folder.take_stop())
        if self.ranks.size == 1:
            self._stopping = asked
        elif end_of_interval:
            self._stopping = self.ranks.any(asked)

    def _read_losses(self, outcomes):
        """Fetch the latest steps' losses, None for a skipped one; stops the run when one is no longer a number."""
        position = self.position
        for step, (loss, done) in enumerate(outcomes, self.steps_done - len(outcomes) + 1):
            if not bool(done.asnumpy()):
                position.skipped += 1
                self._skipped_in_row += 1
                position.interval_losses.append(None)
                if self._skipped_in_row >= _MOST_SKIPPED:
                    raise self._diverged(f"{_MOST_SKIPPED} updates in a row overflowed, the last", step)
                continue
            self._skipped_in_row = 0
            value = float(loss.asnumpy())
            if not math.isfinite(value):
                raise self._diverged(f"the loss became {value}", step)
            position.interval_losses.append(value)

    def _diverged(self, what, step):
        """The error that ends a run which has lost its way."""
        scale = f", loss scale {self.loss_scale.value:g}" if self.loss_scale else ""
        return TrainingError(
            f"{what} at step {step} (epoch {self.position.epoch + 1}, learning rate {self._lr_of(step):.3g}{scale}); "
            f"the last good state is {self._last_good()}. Lower lr, lengthen warmup_epochs, or check the data"
        )

    def _lr_of(self, step) -> float:
        """The learning rate of a step, counted from 1; a skipped update uses none up."""
        return float(self.lr[max(step - self.position.skipped, 1) - 1])

    def _log_interval(self):
        """Write what happened since the last record."""
        position = self.position
        losses = [loss for loss in position.interval_losses if loss is not None]
        position.interval_losses = []
        loss = float(np.mean(losses)) if losses else None
        lr, (speed, waiting) = self._lr_of(self.steps_done), self._meter.read()
        scaling = {"loss_scale": self.loss_scale.value, "skipped": position.skipped} if self.loss_scale else {}
        self.log.write(
            "train",
            position.epoch + 1,
            self.steps_done,
            progress=self.steps_done / self.steps_per_epoch,
            loss=loss,
            lr=lr,
            **scaling,
            images_per_second=speed,
            data_wait=waiting,
        )
        self._progress.show(math.nan if loss is None else loss, lr, speed)
        if waiting > _MUCH_WAITING and not self._said_waiting:
            self._said_waiting = True
            self._progress.say(
                f"warning: {waiting:.0%} of the time goes into waiting for data, {speed:.0f} images/s come through; "
                f"raise num_parallel_workers (={self.train_loader.num_workers} in use), or store smaller images"
            )

    def _end_epoch(self):
        """Validate, save, and tell."""
        recipe, position = self.recipe, self.position
        self.state.average_statistics()
        self._check_finite()
        bad = self._take_bad_images()
        losses = [r["loss"] for r in self.log.records if r["event"] == "train" and r["epoch"] == position.epoch]
        losses = [loss for loss in losses if loss is not None]
        line = f"epoch {position.epoch}/{recipe.epoch_size}: loss {np.mean(losses) if losses else math.nan:.4f}"
        line += f", {bad} images unreadable" if bad else ""
        top1 = None
        if self.eval_loader and (position.epoch == recipe.epoch_size or position.epoch % recipe.val_interval == 0):
            self.evaluation = self._evaluate("validate")
            top1 = self.evaluation.top1
            line += f", top-1 {top1:.2f}%, top-5 {self.evaluation.top5:.2f}%{self.evaluation.not_counted}"
            if top1 > position.best_top1:
                position.best_top1, position.best_epoch = top1, position.epoch
                line += " (best)"
                self._save(self.folder.best)
            if recipe.ema:
                line += self._end_epoch_of_average()
        if recipe.keep_checkpoint_max and position.epoch % recipe.ckpt_save_interval == 0:
            self._save(self.folder.epoch(position.epoch))
            kept = [*position.kept, [position.epoch, top1]]
            position.kept = self.folder.keep(kept, recipe.keep_checkpoint_max, recipe.ckpt_save_policy)
        # After the others: when the process dies in between, the epoch is run again and they are saved again.
        self._save_state()
        self._draw()
        self._meter.restart()
        self._progress.say(line)

    def _take_bad_images(self) -> int:
        """Log the images that could not be read in the epoch behind us; how many they are."""
        position, loader = self.position, self.train_loader
        bad, position.bad_images = position.bad_images, []
        if bad:
            files = [loader.source.name(index) for index in bad]
            self.log.write("bad_images", position.epoch, self.steps_done, count=len(bad), files=files)
            loader.bad_images.check(position.epoch - 1, bad)
        return len(bad)

    def _end_epoch_of_average(self) -> str:
        """Validate the moving average of the weights, save it as a network of its own when it is the best so far."""
        position = self.position
        with self.step.averaged_weights():
            found = self._evaluate("validate_ema")
            if found.top1 > position.best_ema_top1:
                position.best_ema_top1 = found.top1
                self._save(self.folder.best_ema, metrics=asdict(found), weights="ema")
        return f", EMA top-1 {found.top1:.2f}%"

    def _evaluate(self, event) -> Evaluation:
        """Validate the network as it is now, in float32, as the verb validate will see it."""
        with float32_precision(self.net, self.recipe.amp_level, self.recipe.amp_dtype):
            assert self.eval_loader is not None  # the callers have looked
            found = evaluate(self.net, self.eval_loader, ranks=self.ranks)
        self.log.write(event, self.position.epoch, self.steps_done, **asdict(found))
        return found

    def _take_precise_bn(self):
        """Take BN's statistics anew, validate and save the network that results."""
        if any(record["event"] == "precise_bn" for record in self.log.records):
            return  # a finished run was resumed
        epoch, most = self.position.epoch, self.recipe.precise_bn_steps
        with contextlib.closing(host_batches(self.train_loader, epoch, 0)) as batches:
            prepare = Normalize(self.recipe.preprocessing)
            images = (prepare(images) for _, (images, _) in zip(range(most), batches, strict=False))
            precise_bn(self.net, images, self.ranks)
        line = f"precise BN over {min(most, self.train_loader.steps_per_epoch)} batches"
        if self.eval_loader:
            self.evaluation = self._evaluate("precise_bn")
            line += f": top-1 {self.evaluation.top1:.2f}%, top-5 {self.evaluation.top5:.2f}%"
        else:
            self.log.write("precise_bn", epoch, self.steps_done)
        self._save(self.folder.precise_bn)
        self._progress.say(f"{line}; {self.folder.precise_bn}")

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
        return self.folder.last if self.folder.last.exists() else "none yet"

    def _save_state(self, statistics_of_ranks=None):
        """Save everything that `--resume` needs; statistics_of_ranks: what is not the same on all of them."""
        if statistics_of_ranks is not None:
            self.state.average_statistics()
            self._check_finite()
        state = {**self.state.arrays(), **(statistics_of_ranks or {})}
        self._save(self.folder.last, state, position=self.position.to_dict())

    def _save(self, path, training_state=None, **more):
        if not self.ranks.is_first:
            return
        recipe = self.recipe
        facts = {
            **recipe.preprocessing.describe(),
            "dataset": recipe.dataset,
            "class_names": list(self.train_loader.source.class_names),
            "recipe": recipe.to_dict(),
            "epoch": self.position.epoch,
            "step": self.steps_done,
            "metrics": asdict(self.evaluation) if self.evaluation else None,
        }
        # `position` comes from a resumed checkpoint's metadata too, and must not outlive the state it belongs to.
        self.net.metadata.pop("position", None)
        save_checkpoint(self.net, path, training_state=training_state, **{**facts, **more})

    def _draw(self):
        if self.log.records and self.ranks.is_first:
            draw_curves(self.log.records, self.folder.curves, f"{self.recipe.model} on {self.recipe.dataset}")

    def _dry_run(self):
        """Compile and run a few steps, and say what they cost."""
        self._progress, self._meter, self._profile = Progress(_DRY_STEPS, 0, not self.ranks.is_first), Meter(), None
        batches = host_batches(self.train_loader, 0, 0)
        with contextlib.closing(self._progress), contextlib.closing(batches):
            self._progress.say(self.describe())
            times = []
            for _ in range(min(1 + _DRY_STEPS, self.steps_per_epoch)):
                start = time.perf_counter()
                loss, _ = self._take_step(batches)
                loss.asnumpy()
                times.append(time.perf_counter() - start)
                self._progress.step(1, 1)
            _, waiting = self._meter.read()
            seconds = float(np.median(times[1:] or times))
            self._progress.say(
                f"{1000 * seconds:.1f} ms a step (median of {len(times[1:])}), {self.images_per_step / seconds:.0f} "
                f"images/s, {waiting:.0%} of it waiting for data; peak memory {device.peak_memory()}"
            )
            self._progress.say("dry run: nothing was written")
