"""The folder of a run: what lies where, which checkpoints are kept, and that no run is lost to another."""

from __future__ import annotations

from pathlib import Path

from mindrepvgg.errors import TrainingError


class RunFolder:
    """Paths in the folder of a run of `model`; nothing is written or removed but by the methods that say so.

    stop: a file that somebody puts there to end the run as Ctrl-C does, on any number of machines.
    """

    def __init__(self, path, model):
        self.path = Path(path)
        self.model = model
        self.last = self.path / f"{model}_last.ckpt"
        self.best = self.path / f"{model}_best.ckpt"
        self.best_ema = self.path / f"{model}_ema_best.ckpt"
        self.precise_bn = self.path / f"{model}_precise_bn.ckpt"
        self.curves = self.path / "curves.png"
        self.log = self.path / "log.jsonl"
        self.recipe = self.path / "recipe.yaml"
        self.profile = self.path / "profile"
        self.tensorboard = self.path / "tensorboard"
        self.compile_cache = self.path / "compile_cache"
        self.stop = self.path / "stop"

    def epoch(self, epoch) -> Path:
        """The network as it was after an epoch."""
        return self.path / f"{self.model}-{epoch}.ckpt"

    def check(self, resume, overwrite):
        """Refuse a folder that holds a run which is not the one to go on with."""
        held = self._held()
        if not held:
            return
        if resume is None and not overwrite:
            raise TrainingError(
                f"{self.path} holds a run already ({held[0].name}); add --resume to continue it, --overwrite to start "
                f"anew, or give another --ckpt_save_dir"
            )
        if resume is not None and Path(resume).exists() and not any(path.samefile(resume) for path in held):
            raise TrainingError(
                f"{self.path} holds another run ({held[0].name}) than {resume}; give another --ckpt_save_dir"
            )

    def start_anew(self):
        """Remove the checkpoints of the runs in the folder, so that none of them is taken for the new run's."""
        for last in self._held():
            run = RunFolder(self.path, last.name.removesuffix("_last.ckpt"))
            for path in (run.best, run.best_ema, run.precise_bn):
                path.unlink(missing_ok=True)
            for path in self.path.glob(f"{run.model}-*.ckpt"):
                if path.stem.removeprefix(f"{run.model}-").isdecimal():
                    path.unlink()
            last.unlink()

    def take_stop(self) -> bool:
        """Whether a stop was asked for by a file; removes it."""
        asked = self.stop.exists()
        self.stop.unlink(missing_ok=True)
        return asked

    def keep(self, kept, most, policy):
        """Choose of the epoch checkpoints, (epoch, top-1 or None) each, those to keep; remove the others' files.

        policy: 'latest_k' or 'top_k', of equals the latest. An epoch that was not validated counts as the worst.
        """
        worth = {
            "latest_k": lambda entry: entry[0],
            "top_k": lambda entry: (-1.0 if entry[1] is None else entry[1], entry[0]),
        }[policy]
        chosen = sorted(kept, key=worth, reverse=True)[:most]
        for entry in kept:
            if entry not in chosen:
                self.epoch(entry[0]).unlink(missing_ok=True)
        return [entry for entry in kept if entry in chosen]

    def _held(self):
        """The *_last.ckpt in the folder, one for each run it holds."""
        return sorted(self.path.glob("*_last.ckpt"))


def find_last(folder, model) -> Path:
    """The checkpoint `--resume` takes up in a run's folder. Raises TrainingError when there is none."""
    path = RunFolder(folder, model).last
    if not path.exists():
        raise TrainingError(f"{path} does not exist: there is no run to resume; start one without --resume")
    return path
