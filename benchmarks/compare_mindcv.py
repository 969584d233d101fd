"""repvgg_a0 here and in MindCV, on the same device in one run: inference in both forms, with graph compilation.

    python benchmarks/compare_mindcv.py [--model repvgg_a0] [--batch_size 16] [--image_size 224] [--rounds 15]

The contestants take turns, call by call, so that a slow spell of the machine meets all of them; medians are printed
with the quartiles, and the ratios are medians of the pairs. MindCV's network has no deploy form that can be built.
"""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, installed or not

import mindrepvgg
from mindrepvgg.cli import entry


def main(argv=None):
    """Measure and print a markdown table."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="repvgg_a0")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15, help="counted calls of each contestant")
    arguments = parser.parse_args(argv)
    print(measure(arguments.model, arguments.batch_size, arguments.image_size, arguments.rounds))
    return 0


def measure(model="repvgg_a0", batch_size=16, image_size=224, rounds=15) -> str:
    """A markdown table of all contestants, and the ratios."""
    import mindcv
    import mindspore as ms
    import numpy as np

    from mindrepvgg.runtime import device
    from mindrepvgg.runtime.environment import processor

    target = device.setup("auto")
    images = np.random.default_rng(0).normal(size=(batch_size, 3, image_size, image_size))
    batch = ms.Tensor(images, ms.float32)

    ours = mindrepvgg.create_model(model)
    contestants = {
        "inference, MindCV": _inference(mindcv.create_model(model), batch),
        "inference, train form": _inference(ours, batch),
        "inference, deploy form": _inference(mindrepvgg.to_deploy(ours), batch),
    }
    compiled = {name: _seconds(call) for name, call in contestants.items()}
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(_seconds(call))

    lines = [
        f"{model}, batch {batch_size}, {image_size}x{image_size}, float32, graph mode, MindSpore {ms.__version__}, "
        f"{target} ({processor()}, {os.cpu_count()} cores), median of {rounds} turns:",
        "",
        "| | images/s | quartiles | first call, with compilation |",
        "|---|---|---|---|",
    ]
    for name, values in times.items():
        low, middle, high = (batch_size / q for q in reversed(statistics.quantiles(values, n=4)))
        lines.append(f"| {name} | {middle:.1f} | {low:.1f} - {high:.1f} | {compiled[name]:.1f} s |")
    lines.append("")
    for faster, slower in (
        ("inference, train form", "inference, MindCV"),
        ("inference, deploy form", "inference, train form"),
    ):
        ratio = statistics.median(b / a for a, b in zip(times[faster], times[slower], strict=True))
        lines.append(f"- {faster}: {ratio:.2f} times as fast as {slower}")
    return "\n".join(lines)


def _inference(net, batch):
    """A call that runs `net` on the batch and waits for the result."""
    net.set_train(False)
    return lambda: net(batch).asnumpy()


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(entry.run(main))
