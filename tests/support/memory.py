"""What reading a file takes of memory, measured in a process of its own."""

import subprocess
import sys

from support import ROOT

_PEAK = """
import importlib, sys
read = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
state = read(sys.argv[3])
assert not {"torch", "mindspore"} & set(sys.modules)
print(peak() - before, sum(array.nbytes for array in state.values()))
"""


def peak_of_reading(read, path):
    """Bytes that `read(path)` adds to the peak of memory, and bytes of the arrays that it gives by name."""
    command = [sys.executable, "-c", _PEAK, read.__module__, read.__name__, path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    peak, total = map(int, done.stdout.split())
    return peak, total
