"""The parent of the workers: it holds each case to its limits, counts what comes of it, and keeps what it finds."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fuzz.cases import ACCEPTED, MESSAGE, REFUSED, RIGHT, TRACEBACK, Case

ROOT = Path(__file__).parents[2]
CRASH, HANG, MEMORY, SLOW = "crash", "hang", "memory", "slow once"
OUTCOMES = (REFUSED, ACCEPTED, CRASH, HANG, TRACEBACK, MEMORY, MESSAGE)

# A process that has run for so long is ended, that leaks do not add up.
_SESSION = 60.0
_STARTING = 180.0  # MindSpore on a busy machine


@dataclass(frozen=True)
class Limits:
    """What a case may take: seconds in which no other program ran; bytes above those before the first case."""

    seconds: float = 5.0
    memory: int = 2**30


@dataclass
class Tally:
    """What came of a corpus' cases."""

    name: str
    outcomes: collections.Counter = field(default_factory=collections.Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    largest: int = 0  # bytes above the start
    finds: collections.Counter = field(default_factory=collections.Counter)  # by what they have in common

    def add(self, outcome, seconds=0.0, memory=0):
        """Count a case."""
        self.outcomes[outcome] += 1
        self.slowest, self.largest = max(self.slowest, seconds), max(self.largest, memory)

    def row(self):
        """The corpus' row of the table."""
        count = self.outcomes.total()
        counts = [self.outcomes[outcome] for outcome in OUTCOMES]
        rate = f"{count / max(self.seconds, 1e-9):.1f}"
        return self.name, count, *counts, rate, f"{self.slowest:.1f}", f"{self.largest / 2**20:.0f}"


HEADINGS = ("corpus", "cases", *OUTCOMES, "cases/s", "slowest s", "most MiB")


class _Worker:
    """A child process, in a context; `report` gives its next line, None when there is none in time."""

    def __init__(self, *arguments):
        places = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        # Names of released weights among the cases lead to a port nobody listens on.
        nowhere = {"MINDREPVGG_MIRROR": "http://127.0.0.1:9", "MINDREPVGG_CACHE": "/dev/null/cache"}
        environment = {**os.environ, **nowhere, "PYTHONPATH": places, "MS_DEV_HOST_BLOCKING_RUN": "1"}
        command = [sys.executable, "-m", "fuzz.worker", *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, bufsize=0, **pipes)
        self._selector, self._lines, self._rest = selectors.DefaultSelector(), collections.deque(), b""
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self._selector.close()

    def report(self, seconds, memory=None):
        """The next line; HANG or MEMORY when a limit is passed, CRASH when the process has ended."""
        began, waited = time.monotonic(), self._waited()
        while not self._lines:
            if self._selector.select(0.02):
                data = os.read(self.process.stdout.fileno(), 1 << 20)
                if not data:
                    return CRASH
                *whole, self._rest = (self._rest + data).split(b"\n")
                self._lines += whole
            elif memory is not None and self._resident() > memory:
                return MEMORY
            elif (took := time.monotonic() - began) > seconds:
                now = self._waited()
                if took - max((now[thread] - waited.get(thread, 0.0) for thread in now), default=0.0) > seconds:
                    return HANG
        return self._lines.popleft().decode()

    def _waited(self):
        """By thread, the seconds that it was ready to run and the machine ran others; a kernel may not count them."""
        found = {}
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread is gone
                found[file.parent.name] = int(file.read_text().split()[1]) / 1e9
        return found

    def go_on(self):
        """Let the worker take its next case."""
        self.process.stdin.write(b"\n")

    def _resident(self):
        try:
            return psutil.Process(self.process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0


def _cases(worker, limits):
    """(outcome, text, seconds, bytes above the start) of each case of a worker; what ends the process comes last."""
    first = worker.report(_STARTING)
    if not first.startswith("ready "):
        raise RuntimeError(f"no worker: {first}")
    start = int(first.split()[1])
    # Between two cases hypothesis draws the next one, which takes its time too.
    while worker.report(_STARTING) == "case":
        began = time.monotonic()
        line = worker.report(limits.seconds, start + limits.memory)
        took = time.monotonic() - began
        if line in (CRASH, HANG, MEMORY):
            yield line, "", took, limits.memory if line == MEMORY else 0
            return
        found = json.loads(line)
        above = found["peak"] - start
        yield (MEMORY if above > limits.memory else found["outcome"]), found["text"], took, above
        worker.go_on()
    if worker.process.wait() != 0:
        raise RuntimeError(f"a worker ended with status {worker.process.returncode} between two cases")


def run_corpus(name, seed, seconds, kept: Path, limits=Limits()) -> Tally:
    """Run cases of a corpus for so many seconds, and keep what is wrong.

    Args:
        name: the corpus.
        seed: of the cases; every process has one of its own.
        seconds: how long.
        kept: the folder for finds, a few of each kind.
        limits: of a case.
    """
    tally, end, number = Tally(name), time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while (left := end - time.monotonic()) > 0:
            began = time.monotonic()
            with _Worker(name, folder, seed + 10_000 * number, min(left, _SESSION)) as worker:
                try:
                    for outcome, text, took, above in _cases(worker, limits):
                        if outcome == HANG and replay(name, Path(folder, "case.json"), limits)[0] != HANG:
                            outcome = SLOW  # of a busy machine
                        tally.add(outcome, took, above)
                        if outcome not in (*RIGHT, SLOW):
                            printed = Path(folder, "stderr").read_text(errors="replace")[-2000:]
                            _keep(kept, tally, Path(folder, "case.json"), outcome, text or printed)
                except RuntimeError as error:  # of the corpus itself: told, and the other cases are worth their table
                    printed = Path(folder, "stderr").read_text(errors="replace").strip()[-300:]
                    tally.finds[f"{error}: {printed}"] += 1
            tally.seconds += time.monotonic() - began
            number += 1
    return tally


def replay(name, file: Path, limits=Limits()) -> tuple[str, str]:
    """Run one case again: what comes of it, and its text."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, Path(folder, "case.json"))
        with _Worker(name, folder) as worker:
            outcome, text, *_ = next(_cases(worker, limits))
        return outcome, text or Path(folder, "stderr").read_text(errors="replace")[-2000:]


def _keep(kept, tally, file, outcome, text):
    """Write the case down, with what was found; three of what ends alike are enough."""
    alike = _what_is_alike(outcome, text, Case.from_json(file.read_text()).door)
    tally.finds[alike] += 1
    if tally.finds[alike] > 3:
        return
    kept.mkdir(parents=True, exist_ok=True)
    values = json.loads(file.read_text()) | {"corpus": tally.name, "outcome": outcome, "text": text}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    (kept / f"{tally.name}-{outcome}-{digest}.json").write_text(json.dumps(values, indent=1))


def _what_is_alike(outcome, text, door):
    """A find's kind: of a traceback the last place and the error's class, of others the door."""
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    last = text.strip().splitlines()[-1].partition(":")[0] if text.strip() else ""
    if outcome == TRACEBACK and places:
        return f"{outcome} {last} at {os.path.relpath(places[-1][0], ROOT)}:{places[-1][1]}"
    return f"{outcome} at the door '{door}'"
