"""What a conversion costs beside reading and writing the file: time, and memory in sizes of the file.

    python benchmarks/convert_cost.py [--model repvgg_b3] [--rounds 5]

A checkpoint in the official names is written to a temporary folder, in the zip form of PyTorch. Two contestants take
turns, each in a fresh process: one merely reads it and writes what it read, the other does what convert.py does, with
fusing and proof. Medians are printed; the ratio is the median of the pairs. Memory is the process's peak over what it
held, packages imported, before it opened the file; the worst turn counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mindrepvgg.cli import entry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, installed or not


CONTESTANTS = {"copy": "read and write", "convert": "convert.py: read, fuse, prove, write"}
TIME_GOAL, MEMORY_GOAL = 3, 2.5


def main(argv=None):
    """Measure and print a markdown table."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="repvgg_b3")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)  # contestant, source, destination: one turn
    arguments = parser.parse_args(argv)
    if arguments.work:
        print(json.dumps(one_turn(*arguments.work)))
    else:
        print(measure(arguments.model, arguments.rounds))
    return 0


def measure(model="repvgg_b3", rounds=5) -> str:
    """A markdown table of both contestants, and the two ratios with their goals."""
    turns = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "official.pth")
        write_official(model, source)
        size = source.stat().st_size
        for _ in range(rounds):
            for name, done in turns.items():
                command = [sys.executable, __file__, "--work", name, source, Path(folder, f"{name}.ckpt")]
                answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                done.append(json.loads(answer.splitlines()[-1]))
    seconds = {name: [turn["seconds"] for turn in done] for name, done in turns.items()}
    memory = {name: max(turn["memory"] for turn in done) / size for name, done in turns.items()}
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    lines = [
        f"{model}, {size / 1e6:.0f} MB, CPU ({os.cpu_count()} cores), {rounds} turns:",
        "",
        "| | seconds, median | fastest | slowest | memory, in sizes of the file |",
        "|---|---|---|---|---|",
    ]
    for name, label in CONTESTANTS.items():
        low, middle, high = min(seconds[name]), statistics.median(seconds[name]), max(seconds[name])
        lines.append(f"| {label} | {middle:.1f} | {low:.1f} | {high:.1f} | {memory[name]:.2f} |")
    lines += [
        "",
        f"- converting takes {ratio:.2f} times as long as reading and writing (goal: at most {TIME_GOAL})",
        f"- converting takes {memory['convert']:.2f} times the file's size of memory (goal: at most {MEMORY_GOAL})",
    ]
    return "\n".join(lines)


def write_official(model, path):
    """A freshly initialised network of the family as the official repository would publish it."""
    import torch

    import mindrepvgg
    from mindrepvgg.models.parameters import network_arrays
    from mindrepvgg.weights.rename import from_ours

    net = mindrepvgg.create_model(model)
    arrays = from_ours(network_arrays(net), "official", net.variant)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def one_turn(contestant, source, destination) -> dict:
    """Seconds and bytes of one contestant's turn in this process."""
    from mindrepvgg.runtime import device
    from mindrepvgg.weights import containers, convert, torchfile

    device.setup("CPU", mode=1)
    before = _process_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    start = time.perf_counter()
    if contestant == "copy":
        containers.write_weights(destination, torchfile.read_torch_file(source))
    else:
        convert.convert_checkpoint(source, destination)
    return {"seconds": time.perf_counter() - start, "memory": _process_bytes("VmHWM") - before}


def _process_bytes(field):
    """A size from this process's status, which Linux tells in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(entry.run(main))
