"""A child process that runs cases of one corpus: `python -m fuzz.worker CORPUS FOLDER [SEED SECONDS]`.

With a seed it draws cases for so many seconds; without one it runs the case that lies in the folder. Each case is first
written to FOLDER/case.json, so that it is known when the process dies of it. FOLDER/stderr has what C++ code printed.
On standard output goes a line "ready RSS", and for each case the lines "case" and
{"outcome", "text", "peak": bytes}. A line on standard input asks for the next case.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.cases import Case, judge

BATCH = 200


def _memory(name):
    """VmRSS or VmHWM of this process, in bytes."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name))


def main(name: str, folder: str, number: str | None = None, seconds: str = "0"):
    """Run cases until the time is over."""
    reports, requests = os.fdopen(os.dup(1), "w", buffering=1), os.fdopen(os.dup(0))
    stderr = os.open(Path(folder, "stderr"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (null, 1), (stderr, 2)):
        os.dup2(source, target)
    faulthandler.enable(stderr)
    corpus, file = importlib.import_module(f"fuzz.{name}"), Path(folder, "case.json")

    def run(case):
        os.truncate(stderr, 0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        print("case", file=reports)
        outcome, text = judge(case, corpus.DOORS)
        print(json.dumps({"outcome": outcome, "text": text, "peak": _memory("VmHWM")}), file=reports)

    def ready():
        print("ready", _memory("VmRSS"), file=reports)

    if number is None:
        case = Case.from_json(file.read_text())
        ready()
        run(case)
        return
    cases, end = corpus.cases(), time.monotonic() + float(seconds)
    ready()
    for batch in range(10**6):

        @seed(int(number) + batch)
        @settings(max_examples=BATCH, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(cases)
        def draw(case):
            if time.monotonic() > end:
                os._exit(0)
            file.write_text(case.to_json())
            run(case)
            requests.readline()

        draw()


if __name__ == "__main__":
    main(*sys.argv[1:])
