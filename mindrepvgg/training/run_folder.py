"""The folder of a run: what lies where, which checkpoints are kept, and that no run is lost to another."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

from filelock import BaseFileLock, Timeout

from mindrepvgg.errors import TrainingError, UserError
from mindrepvgg.files import read_regular, remove_leftovers
from mindrepvgg.runtime import locks
from mindrepvgg.text import listed, printable

log = logging.getLogger(__name__)

# Seconds in which the process of a run that was just killed ends.
_PATIENCE = 3.0


class RunFolder:
    """Paths in the folder of a run of `model`; nothing is written or removed but by the methods that say so.

    stop: a file that somebody puts there to end the run as Ctrl-C does, on any number of machines.
    lock: what the process that owns the folder holds a lock on; the file stays when the run has ended.
    """

    def __init__(self, path, model):
        self.path = Path(path)
        self.model = model
        self.last = self.path / f"{model}_last.ckpt"
        self.best = self.path / f"{model}_best.ckpt"
        self.best_ema = self.path / f"{model}_ema_best.ckpt"
        self.precise_bn = self.path / f"{model}_precise_bn.ckpt"
        self.scales = self.path / f"{model}_scales.safetensors"  # of a search
        self.curves = self.path / "curves.png"
        self.log = self.path / "log.jsonl"
        self.recipe = self.path / "recipe.yaml"
        self.profile = self.path / "profile"
        self.tensorboard = self.path / "tensorboard"
        self.compile_cache = self.path / "compile_cache"
        self.stop = self.path / "stop"
        self.lock = self.path / ".lock"

    def epoch(self, epoch) -> Path:
        """The network as it was after an epoch."""
        return self.path / f"{self.model}-{epoch}.ckpt"

    @contextlib.contextmanager
    def owned(self):
        """Make the folder, and keep other runs out of it while the body runs, on this machine and on others.

        The lock ends with its process, however that ends. What killed writes of the run left behind is removed.

        Raises:
            TrainingError: another process has the lock; it is named. Or no folder can be there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise TrainingError(f"ckpt_save_dir (={self.path}) leads to a file; give a folder, or a new one") from None
        with contextlib.ExitStack() as stack:
            try:
                stack.callback(self._acquire().release)
            except locks.NoLocksError as error:
                log.warning(
                    "the file system of %s has no locks (%s): see to it that no other run is started in this folder",
                    *(self.path, error.strerror),
                )
            else:
                remove_leftovers(self.path, self._is_own)
            yield

    def check_free(self):
        """Refuse a folder that another process owns; `owned` says everything else that is in the way."""
        if self.lock.exists():
            with contextlib.suppress(OSError):
                self._acquire().release()

    def _acquire(self) -> BaseFileLock:
        if self.lock.exists() and not self.lock.is_file():
            raise TrainingError(f"{self.lock} is in the way of the run's lock, which is a file; remove it")
        try:
            return locks.take(self.lock, _PATIENCE, _sign)
        except Timeout:
            raise TrainingError(
                f"{self.path} belongs to a run that is under way, {self._owner()}; wait for its end, stop it (touch "
                f"{self.stop}), or give another --ckpt_save_dir"
            ) from None

    def _owner(self) -> str:
        """The process that has the lock, in its own words."""
        text = ""
        with contextlib.suppress(UserError):
            text = read_regular(self.lock, "a lock").decode(errors="replace").strip()
        return printable(text, 200) or "of a process that did not say its name"

    def _is_own(self, name) -> bool:
        """Whether a file of this name is written by runs of the model only."""
        paths = (self.last, self.best, self.best_ema, self.precise_bn, self.scales, self.curves, self.log, self.recipe)
        return name in {path.name for path in paths} or self._is_epoch(name)

    def _is_epoch(self, name) -> bool:
        """Whether a file of this name is the checkpoint of an epoch."""
        start, end = f"{self.model}-", ".ckpt"
        return name.startswith(start) and name.endswith(end) and name[len(start) : -len(end)].isdecimal()

    def check(self, resume, overwrite):
        """Refuse a folder that holds a run which is not the one to go on with."""
        if resume is not None and overwrite:
            raise TrainingError("resume continues a run and overwrite discards it; give one of the two")
        held = self.held()
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
        for last in self.held():
            run = RunFolder(self.path, last.name.removesuffix("_last.ckpt"))
            for path in (run.best, run.best_ema, run.precise_bn, run.scales):
                path.unlink(missing_ok=True)
            for path in self.path.glob(f"{run.model}-*.ckpt"):
                if run._is_epoch(path.name):
                    path.unlink()
            last.unlink()

    def standing(self) -> list:
        """Something that is another when a run in the folder has saved its state, or has come or gone."""
        return [(path.name, status.st_ino, status.st_mtime_ns) for path in self.held() for status in [path.stat()]]

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

    def held(self) -> list[Path]:
        """The *_last.ckpt in the folder, one for each run it holds."""
        return sorted(self.path.glob("*_last.ckpt"))


def _sign(descriptor):
    """Write into a lock's file whose it is."""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def find_last(folder, model=None) -> Path:
    """The checkpoint `--resume` takes up in a run's folder.

    Args:
        folder: the run's folder.
        model: what the files of the run's network begin with; None: the folder holds one run.

    Raises:
        TrainingError: there is no such run, or there are several.
    """
    held = RunFolder(folder, model).held()
    if model is not None:
        held = [path for path in held if path == RunFolder(folder, model).last]
    if not held:
        name = f"{model or '*'}_last.ckpt"
        raise TrainingError(
            f"{Path(folder) / name} does not exist: there is no run to resume; start one without --resume"
        )
    if len(held) > 1:
        names = listed([path.name for path in held])
        raise TrainingError(
            f"{folder} holds {len(held)} runs ({names}); give the one to go on with: --resume {held[0]}"
        )
    return held[0]
