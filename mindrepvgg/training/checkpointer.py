"""Validating and saving the network of a run: the best, the last, its moving average, and with precise BN."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import numpy as np

from mindrepvgg.data.normalize import Normalize
from mindrepvgg.errors import TrainingError
from mindrepvgg.evaluation.loop import Evaluation, evaluate
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.reparam.precision import float32_precision
from mindrepvgg.text import counted
from mindrepvgg.training.batches import host_batches
from mindrepvgg.training.monitor import RunLog
from mindrepvgg.training.precise_bn import precise_bn
from mindrepvgg.weights.checkpoint import save_checkpoint
from mindrepvgg.weights.scales import write_scales


class Checkpointer:
    """Validates the network of a run and saves what is to be kept; the first rank alone writes.

    run: the `Trainer`; log: its log. `evaluation` is the last validation, None before the first.
    """

    def __init__(self, run, log: RunLog):
        self.evaluation: Evaluation | None = None
        self._run = run
        self._log = log

    def end_epoch(self) -> str:
        """Validate where it is time to, and save; what came out, in words that go on a line."""
        run, position, recipe = self._run, self._run.position, self._run.recipe
        top1, line = None, ""
        if run.eval_loader and (position.epoch == recipe.epoch_size or position.epoch % recipe.val_interval == 0):
            self.evaluation = self._evaluate("validate")
            found = self.evaluation
            top1 = found.top1
            line = f", val loss {found.loss:.4f}, top-1 {top1:.2f}%, top-5 {found.top5:.2f}%{found.not_counted}"
            if top1 > position.best_top1:
                position.best_top1, position.best_epoch = top1, position.epoch
                line += " (best)"
                self._save(run.folder.best)
            if recipe.ema:
                line += self._end_epoch_of_average()
        if recipe.keep_checkpoint_max and position.epoch % recipe.ckpt_save_interval == 0:
            self._save(run.folder.epoch(position.epoch))
            kept = [*position.kept, [position.epoch, top1]]
            position.kept = run.folder.keep(kept, recipe.keep_checkpoint_max, recipe.ckpt_save_policy)
        self._save_searched_scales()
        # After the others: when the process dies in between, the epoch is run again and they are saved again.
        self._save_state()
        return line

    def _end_epoch_of_average(self) -> str:
        """Validate the moving average of the weights, save it as a network of its own when it is the best so far."""
        run, position = self._run, self._run.position
        with run.step.averaged_weights():
            found = self._evaluate("validate_ema")
            if found.top1 > position.best_ema_top1:
                position.best_ema_top1 = found.top1
                self._save(run.folder.best_ema, metrics=asdict(found), weights="ema")
        return f", EMA top-1 {found.top1:.2f}%"

    def save_midway(self):
        """Save a run that stops in the middle of an epoch, with every rank's own BN statistics."""
        of_ranks = self._run.statistics.gather()
        self._run.statistics.average()
        self.check_finite()
        self._save_state(of_ranks)

    def take_precise_bn(self) -> str | None:
        """Take BN's statistics anew, validate and save the network that results; what came out, in words.

        None where that was done before: a finished run was resumed.
        """
        run, recipe = self._run, self._run.recipe
        epoch, most = run.position.epoch, recipe.precise_bn_steps
        if any((record["event"], record["epoch"]) == ("precise_bn", epoch) for record in self._log.records):
            return None
        with contextlib.closing(host_batches(run.train_loader, epoch, 0)) as batches:
            prepare = Normalize(recipe.preprocessing)
            images = (prepare(images) for _, (images, _) in zip(range(most), batches, strict=False))
            precise_bn(run.net, images, run.ranks)
        line = f"precise BN over {counted(min(most, run.train_loader.steps_per_epoch), 'batch')}"
        if run.eval_loader:
            self.evaluation = self._evaluate("precise_bn")
            line += f": top-1 {self.evaluation.top1:.2f}%, top-5 {self.evaluation.top5:.2f}%"
        else:
            self._log.write("precise_bn", epoch, run.steps_done)
        self._save(run.folder.precise_bn)
        return f"{line}; {run.folder.precise_bn}"

    def check_finite(self):
        """Refuse to go on with a network that holds a NaN or infinity: a ReLU can hide them from the loss."""
        for parameter in self._run.net.get_parameters():
            if not np.isfinite(parameter.asnumpy()).all():
                raise TrainingError(
                    f"{parameter.name} is no longer finite at step {self._run.steps_done}; the last good state is "
                    f"{self.last_good()}. Lower lr or lengthen warmup_epochs"
                )

    def last_good(self):
        """The checkpoint to fall back on, in words."""
        return self._run.folder.last if self._run.folder.last.exists() else "none yet"

    def _evaluate(self, event) -> Evaluation:
        """Validate the network as it is now, in float32, as the verb validate will see it."""
        run = self._run
        with float32_precision(run.net, run.recipe.amp_level, run.recipe.amp_dtype):
            found = evaluate(run.net, run.eval_loader, ranks=run.ranks)
        self._log.write(event, run.position.epoch, run.steps_done, **asdict(found))
        return found

    def _save_state(self, of_ranks=None):
        """Save everything that `--resume` needs; of_ranks: what is not the same on all of them."""
        state = {**self._run.state.arrays(), **(of_ranks or {})}
        self._save(self._run.folder.last, state, position=self._run.position.to_dict())

    def _save_searched_scales(self):
        """Write the scales of a network of linear additions, for RepOptimizer to train another network with."""
        run = self._run
        if run.recipe.searches_scales and run.ranks.is_first:
            facts = {
                "scales_of": run.net.variant.to_dict(),
                "recipe": run.recipe.to_dict(),
                "epoch": run.position.epoch,
            }
            write_scales(run.folder.scales, network_arrays(run.net), **facts)

    def _save(self, path, training_state=None, **more):
        run = self._run
        if not run.ranks.is_first:
            return
        facts = {
            **run.recipe.preprocessing.describe(),
            "dataset": run.recipe.dataset,
            "class_names": list(run.train_loader.source.class_names),
            "recipe": run.recipe.to_dict(),
            "epoch": run.position.epoch,
            "step": run.steps_done,
            "metrics": asdict(self.evaluation) if self.evaluation else None,
        }
        # `position` comes from a resumed checkpoint's metadata too, and must not outlive the state it belongs to.
        run.net.metadata.pop("position", None)
        save_checkpoint(run.net, path, training_state=training_state or run.state.constants, **{**facts, **more})
