"""Watching a run: a log that programs read, a picture of the curves, a progress bar, and a polite way to stop."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_write


class RunLog:
    """A file of one JSON object a line, each with `event`, `epoch` and `step`; complete lines survive a crash.

    step counts the run's steps from 1. With `keep_until`, a file of an earlier session is taken up: what it logged
    after that step is dropped, as those steps will be run again.
    """

    def __init__(self, path, keep_until=None):
        self.path = Path(path)
        self.records = []
        if keep_until is not None and self.path.exists():
            self.records = [record for record in _read_lines(self.path) if record["step"] <= keep_until]
        with atomic_write(self.path, "w") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in self.records)

    def write(self, event, epoch, step, **values):
        """Append one record."""
        record = {"event": event, "epoch": epoch, "step": step, **values}
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


def _read_lines(path):
    """The records of a log; a last line cut short by a crash is left out."""
    records = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if line.endswith("\n"):
                raise UserError(f"line {number} of {path} is not JSON; move the file away to start a new log") from None
    return records


class Progress:
    """A bar over the steps of the whole run with loss, learning rate, images a second and the time left.

    Shown on a terminal; elsewhere (a log file, a pipe) only `say` prints, so that files stay readable.
    """

    def __init__(self, total_steps, first_step):
        self.bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def step(self, epoch, epochs, count=1):
        """Move on by `count` steps."""
        self.bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
        self.bar.update(count)

    def show(self, loss, lr, images_per_second):
        """Refresh the figures."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {images_per_second:.0f} img/s")

    def say(self, text):
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self):
        """End the bar's line; what is written next starts below it."""
        self.bar.close()


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
        print("\nstopping after this step; Ctrl-C once more to stop at once", file=sys.stderr)


def draw_curves(records, path, title=""):
    """Draw loss, accuracy and learning rate over the epochs as a PNG, from a run's log records."""
    # Drawn without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    trained = [record for record in records if record["event"] == "train"]
    judged = [record for record in records if record["event"] == "validate"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    loss.plot([r["progress"] for r in trained], [r["loss"] for r in trained], lw=0.9, label="training")
    rate.plot([r["progress"] for r in trained], [r["lr"] for r in trained], color="tab:green")
    if judged:
        epochs = [r["epoch"] for r in judged]
        loss.plot(epochs, [r["loss"] for r in judged], "o-", ms=3, label="validation")
        best = max(judged, key=lambda r: r["top1"])
        accuracy.plot(epochs, [r["top1"] for r in judged], "o-", ms=3, label="top-1")
        accuracy.plot(epochs, [r["top5"] for r in judged], "o-", ms=3, label="top-5")
        accuracy.axhline(best["top1"], color="grey", lw=0.6, ls=":")
        accuracy.set_title(f"accuracy, best top-1 {best['top1']:.2f}% (epoch {best['epoch']})")
        accuracy.legend(loc="lower right")
    else:
        accuracy.set_title("accuracy (not validated yet)")
    loss.set_title("loss")
    loss.set_yscale("log")
    loss.legend()
    rate.set_title("learning rate")
    accuracy.set_ylabel("%")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
    figure.suptitle(title)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
