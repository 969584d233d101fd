"""What a conversion costs beside reading and writing the file: time, and memory in sizes of the file.

A checkpoint in the official names is written to a temporary folder, in the zip form of PyTorch. Two contestants take
turns, each in a fresh process: one merely reads the file and writes what it read, the other does what convert.py does,
fusing and proof included. The ratio is the median of the pairs. Memory is the process's peak beyond what it held before
it opened the file, with its packages imported; the worst turn counts.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from mindrepvgg.measure.worker import Worker, host_memory
from mindrepvgg.runtime.timing import take_turns, times_as_fast
from mindrepvgg.text import markdown_table

CONTESTANTS = {"copy": "read and write", "convert": "convert.py: read, fuse, prove, write"}
TIME_GOAL, MEMORY_GOAL = 1.5, 2.0


def measure(model="repvgg_b3", rounds=5) -> str:
    """Return a markdown table of both contestants, and the two ratios with their goals."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "official.pth")
        _write_official(model, source)
        size = source.stat().st_size

        def turn(name):
            with Worker(_convert, name, source, Path(folder, f"{name}.ckpt")) as worker:
                return worker.answer()

        turns = take_turns({name: lambda name=name: turn(name) for name in CONTESTANTS}, rounds)
    seconds = {name: [found[0] for found in done] for name, done in turns.items()}
    memory = {name: max(found[1] for found in done) / size for name, done in turns.items()}
    rows = [
        (label, *(f"{figure(seconds[name]):.1f}" for figure in (statistics.median, min, max)), f"{memory[name]:.2f}")
        for name, label in CONTESTANTS.items()
    ]
    headings = ("", "seconds, median", "fastest", "slowest", "memory, in sizes of the file")
    ratio = times_as_fast(seconds["copy"], seconds["convert"])
    return (
        f"{model}, {size / 1e6:.0f} MB, CPU ({os.cpu_count()} cores), {rounds} turns:\n\n"
        f"{markdown_table(headings, rows)}\n\n"
        f"- converting takes {ratio:.2f} times as long as reading and writing (goal: at most {TIME_GOAL})\n"
        f"- converting takes {memory['convert']:.2f} times the file's size of memory (goal: at most {MEMORY_GOAL})"
    )


def _write_official(model, path):
    """Write a freshly initialised network of the family as the official repository would publish it."""
    import torch

    from mindrepvgg.models.parameters import network_arrays
    from mindrepvgg.weights.load import create_model
    from mindrepvgg.weights.rename import from_ours

    net = create_model(model)
    arrays = from_ours(network_arrays(net), "official", net.variant)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def _convert(contestant, source, destination):
    """Yield seconds and bytes of one turn, in a `Worker`."""
    from mindrepvgg.runtime import device
    from mindrepvgg.weights import containers, convert, torchfile

    device.setup("CPU", mode=1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    memory, start = host_memory(), time.perf_counter()
    if contestant == "copy":
        containers.write_weights(destination, torchfile.read_torch_file(source))
    else:
        convert.convert_checkpoint(source, destination)
    yield time.perf_counter() - start, memory()
