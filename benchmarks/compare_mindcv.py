"""repvgg_a0 here and in MindCV, on the same device in one run: graph compilation, train step, inference in both forms.

    python benchmarks/compare_mindcv.py [--model repvgg_a0] [--batch_size 16] [--image_size 224] [--rounds 15]

The contestants take turns, call by call, so that a slow spell of the machine meets all of them; medians are printed
with the quartiles, and the ratios are medians of the pairs. MindCV's network has no deploy form that can be built.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, installed or not

import mindrepvgg
from mindrepvgg import cli


def main(argv=None):
    """Measure and print a markdown table."""
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="repvgg_a0")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15, help="counted calls of each contestant")
    arguments = parser.parse_args(argv)

    import mindcv
    import mindspore as ms
    import numpy as np

    from mindrepvgg import runtime

    device = runtime.setup("auto")
    images = np.random.default_rng(0).normal(size=(arguments.batch_size, 3, arguments.image_size, arguments.image_size))
    labels = np.random.default_rng(1).integers(0, 1000, arguments.batch_size)
    batch = ms.Tensor(images, ms.float32), ms.Tensor(labels, ms.int32)

    ours = mindrepvgg.create_model(arguments.model)
    contestants = {
        "inference, MindCV": _inference(mindcv.create_model(arguments.model), batch),
        "inference, train form": _inference(ours, batch),
        "inference, deploy form": _inference(mindrepvgg.to_deploy(ours), batch),
        "train step, MindCV": _train_step(mindcv.create_model(arguments.model), batch),
        "train step": _train_step(mindrepvgg.create_model(arguments.model), batch),
    }
    compiled = {name: _seconds(call) for name, call in contestants.items()}
    for call in contestants.values():
        call()
    times = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, call in contestants.items():
            times[name].append(_seconds(call))

    print(
        f"{arguments.model}, batch {arguments.batch_size}, {arguments.image_size}x{arguments.image_size}, float32, ",
        end="",
    )
    print(f"graph mode, MindSpore {ms.__version__}, {device}: {_processor()}\n")
    print("| | images/s | quartiles | first call, with compilation |")
    print("|---|---|---|---|")
    for name, values in times.items():
        low, middle, high = (arguments.batch_size / q for q in reversed(statistics.quantiles(values, n=4)))
        print(f"| {name} | {middle:.1f} | {low:.1f} - {high:.1f} | {compiled[name]:.1f} s |")
    print()
    for faster, slower in (
        ("inference, train form", "inference, MindCV"),
        ("train step", "train step, MindCV"),
        ("inference, deploy form", "inference, train form"),
    ):
        ratio = statistics.median(b / a for a, b in zip(times[faster], times[slower], strict=True))
        print(f"- {faster} is {ratio:.2f} times as fast as {slower}")


def _inference(net, batch):
    """A call that runs `net` on the batch and waits for the result."""
    net.set_train(False)
    return lambda: net(batch[0]).asnumpy()


def _train_step(net, batch):
    """A call that trains `net` for one step: the same loss, optimizer and step for both contestants."""
    import numpy as np

    from mindrepvgg.optim import build_optimizer
    from mindrepvgg.train.step import NetworkWithLoss, TrainStep

    # A rate this small keeps the numbers of a random network on random images in range over many steps.
    optimizer = build_optimizer(net, np.full(1000, 1e-4), weight_decay=1e-4)
    step = TrainStep(NetworkWithLoss(net), optimizer)
    return lambda: step(*batch).asnumpy()


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


if __name__ == "__main__":
    sys.exit(cli.run(main))
