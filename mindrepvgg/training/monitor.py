"""Watching a run: a log that programs read, a progress bar, a profile, and a polite way to stop."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from mindrepvgg.evaluation.run_log import read_records
from mindrepvgg.files import atomic_write, naming
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import counted, duration, table


class RunLog:
    """A file of one JSON object a line, each with `event`, `epoch` and `step`; complete lines survive a crash.

    step counts the run's steps from 1. With `keep_until`, a file of an earlier session is taken up: what it logged
    after that step is dropped, as those steps will be run again. path: None keeps the records in memory alone.
    events: an `EventFiles` that gets the numbers too.
    """

    def __init__(self, path, keep_until=None, events=None):
        self.path = path and Path(path)
        self.events = events
        self.records = []
        if keep_until is not None and self.path and self.path.exists():
            self.records = [record for record in read_records(self.path) if record["step"] <= keep_until]
        if self.path:
            with atomic_write(self.path, "w") as stream:
                stream.writelines(json.dumps(record) + "\n" for record in self.records)

    def write(self, event, epoch, step, **values):
        """Append one record."""
        record = {"event": event, "epoch": epoch, "step": step, **values}
        self.records.append(record)
        if self.path:
            with naming(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        if self.events:
            self.events.write(event, step, values)


class EventFiles:
    """TensorBoard's event files in a folder: a curve for each number of each event."""

    def __init__(self, folder, first_step=0):
        tensorboard = import_optional("tensorboardX", extra="tensorboard", purpose="tensorboard (=True)")
        # What an interrupted session wrote beyond `first_step` is hidden: those steps are run again.
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=first_step or None)

    def write(self, event, step, values):
        """Add the numbers of one record."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self):
        """Write what is left."""
        self._writer.close()


# 80 columns hold all of it; the learning rate is in the log and in the curves.
_BAR = "{desc}{percentage:3.0f}%|{bar}| {remaining} left{postfix}"


class Progress:
    """A bar over the steps of the whole run with loss, images a second and the time left.

    Shown on a terminal; elsewhere (a log file, a pipe) only `say` prints, so that files stay readable. silent: not even
    that, for all processes of a run but one.
    """

    def __init__(self, total_steps, first_step, silent=False):
        self.silent = silent
        disable = silent or not sys.stderr.isatty()
        self.bar = tqdm(
            total=total_steps, initial=first_step, bar_format=_BAR, unit="step", dynamic_ncols=True, disable=disable
        )

    def step(self, epoch, epochs, count=1):
        """Move on by `count` steps."""
        self.bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
        self.bar.update(count)

    def show(self, loss, images_per_second):
        """Refresh the figures."""
        self.bar.set_postfix_str(f"loss {loss:.3f}, {images_per_second:.0f} img/s")

    def say(self, text):
        """Print a line above the bar."""
        if not self.silent:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self):
        """End the bar's line; what is written next starts below it."""
        self.bar.close()


class Meter:
    """Where the time of the steps goes, without graph compilation, validation and saving."""

    def __init__(self):
        self._images, self._waited, self._since = 0, 0.0, time.perf_counter()
        self.total_images, self.total_seconds = 0, 0.0  # of all readings

    def restart(self):
        """Leave out what happened since the last reading."""
        self._images, self._waited, self._since = 0, 0.0, time.perf_counter()

    def count(self, images):
        """Some images are done."""
        self._images += images

    @contextlib.contextmanager
    def waiting(self):
        """The body waits for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Images a second, and the share of the time spent waiting for data, since the last reading."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        images, waited = self._images, self._waited
        self.restart()
        self.total_images, self.total_seconds = self.total_images + images, self.total_seconds + seconds
        return images / seconds, waited / seconds


def estimate(seconds: float, steps: int) -> str:
    """How long training will take, in words; seconds: of a step."""
    return f"about {duration(seconds * steps)} for {counted(steps, 'step')}; validation comes on top"


_OPERATORS_SHOWN = 10
# Of MindSpore's profiles: a file and, in it, the columns of operator, calls and time, with the time's unit in ms.
_OPERATOR_TABLES = (
    ("op_statistic*.csv", "OP Type", "Count", "Total Time(us)", 1e-3),
    ("cpu_op_type_info_*.csv", "op_type", "type_occurrences", "total_compute_time", 1.0),
)


class Profile:
    """MindSpore's profiler over the first steps after compilation, written into a folder."""

    def __init__(self, folder, steps=10):
        self.folder = folder
        self._left = steps
        self._profiler = None

    def start(self):
        """Compilation is over: record from here on."""
        from mindspore.profiler import profile, tensorboard_trace_handler

        self._profiler = profile(on_trace_ready=tensorboard_trace_handler(str(self.folder)), start_profile=False)
        self._profiler.start()

    def step(self):
        """A step is done; after the last one to record, write what was found."""
        self._left -= 1
        if not self._left:
            self.close()
        elif self._profiler:
            self._profiler.step()

    def close(self):
        """Write what was recorded, if anything."""
        if self._profiler:
            self._profiler.stop()
            self._profiler = None

    def format(self) -> str:
        """The operators that took most of the time, as a table, and where the rest is."""
        where = f"profile: {self.folder}; trace_view.json in it opens in MindStudio Insight and in chrome://tracing"
        rows = sorted(_operator_times(self.folder), key=lambda row: -row[2])
        total = sum(milliseconds for _, _, milliseconds in rows)
        if not total:
            return where
        shown = [(name, count, f"{ms:.1f}", f"{ms / total:.0%}") for name, count, ms in rows[:_OPERATORS_SHOWN]]
        return f"{table([('slowest operators', 'calls', 'ms', 'share'), *shown])}\n{where}"


def _operator_times(folder) -> list[tuple[str, int, float]]:
    """(name, calls, milliseconds in all) of each operator in a profile: on Ascend of its kernels, else of the CPU's."""
    for pattern, name, count, duration_of, unit in _OPERATOR_TABLES:
        for path in sorted(Path(folder).rglob(pattern)):
            with path.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
            return [(row[name], int(row[count]), float(row[duration_of]) * unit) for row in rows]
    return []


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request that the loop honours after the current step; a second one is at once.

    A context manager; `asked` is True once a signal has come.
    """

    def __init__(self):
        self.asked = False
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number, _frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Without the signal's name: MindSpore, once it has compiled a graph, turns Ctrl-C into SIGTERM.
        print("\nstopping soon, the state will be saved; Ctrl-C once more to stop at once", file=sys.stderr)
