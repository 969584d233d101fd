"""The compiled train step here and that of MindCV's own trainer: time, compilation, memory, and a restart.

    python benchmarks/train_step.py [--models repvgg_a0,repvgg_b1g4] [--batch_size 16] [--image_size 224] [--rounds 15]

Same batch, loss (label smoothing 0.1), optimizer (SGD with momentum, decay on everything) and precision. Each
contestant is a process of its own, so that its memory can be told; they take turns, step by step, so that a slow spell
of the machine meets both. A restart is the first step of a new process that finds the graphs an earlier one compiled.
"""

import contextlib
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


OURS, MINDCV = "mindrepvgg", "MindCV"


def main(argv=None):
    """Measure and print a markdown table for each network."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="repvgg_a0,repvgg_b1g4", help="networks, separated by commas")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15, help="counted steps of each contestant")
    parser.add_argument("--contestant", choices=(OURS, MINDCV), help="be one of the processes (used by the program)")
    parser.add_argument("--compile_cache", default="", help="folder for compiled graphs (used by the program)")
    arguments = parser.parse_args(argv)
    if arguments.contestant:
        return _serve(arguments)
    for model in arguments.models.split(","):
        print(measure(model, arguments.batch_size, arguments.image_size, arguments.rounds), end="\n\n")
    return 0


def measure(model="repvgg_a0", batch_size=16, image_size=224, rounds=15) -> str:
    """A markdown table of both contestants, and the ratios."""
    import mindspore as ms

    settings = f"--models={model} --batch_size={batch_size} --image_size={image_size}".split()
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        cold = _Process(stack, [*settings, f"--contestant={OURS}", f"--compile_cache={cache}"])
        processes = {OURS: _Process(stack, [*settings, f"--contestant={OURS}"])}
        processes[MINDCV] = _Process(stack, [*settings, f"--contestant={MINDCV}"])
        # One after the other: compilation takes all cores.
        first = {name: process.step()["seconds"] for name, process in processes.items()}
        times = {name: [] for name in processes}
        for _ in range(rounds):
            for name, process in processes.items():
                times[name].append(process.step()["seconds"])
        memory = {name: process.step()["memory"] for name, process in processes.items()}
        cold_seconds = cold.step()["seconds"]
        warm = _Process(stack, [*settings, f"--contestant={OURS}", f"--compile_cache={cache}"])
        warm_seconds = warm.step()["seconds"]

    lines = [
        f"{model}, batch {batch_size}, {image_size}x{image_size}, float32, graph mode, MindSpore {ms.__version__}, "
        f"{os.cpu_count()} cores, median of {rounds} steps:",
        "",
        "| train step | ms | quartiles | first step, with compilation | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, values in times.items():
        low, middle, high = (1000 * q for q in statistics.quantiles(values, n=4))
        spread = f"{low:.0f} - {high:.0f}"
        lines.append(f"| {name} | {middle:.0f} | {spread} | {first[name]:.1f} s | {memory[name] / 1024:.0f} MiB |")
    faster = statistics.median(b / a for a, b in zip(times[OURS], times[MINDCV], strict=True))
    memory_share, first_share = (values[OURS] / values[MINDCV] for values in (memory, first))
    lines += [
        "",
        f"- train step: {faster:.2f} times as fast as MindCV's trainer, {memory_share:.2f} of its memory, "
        f"{first_share:.2f} of the time to the first step's end",
        f"- restart with the compile cache: the first step takes {warm_seconds:.1f} s, {cold_seconds:.1f} s without: "
        f"{warm_seconds / cold_seconds:.2f} of it",
    ]
    return "\n".join(lines)


class _Process:
    """A contestant: built when made, does one step each time it is asked."""

    def __init__(self, stack, options):
        command = [sys.executable, __file__, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        stack.callback(self.process.wait)
        stack.callback(self.process.stdin.close)
        self._answer()

    def step(self):
        """One step's seconds, and the process's peak memory in KiB."""
        print("step", file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended with status {self.process.wait()}")


def _serve(arguments):
    """Build one contestant, then do a step for each line of standard input."""
    import resource

    import mindspore as ms
    import numpy as np

    from mindrepvgg.runtime import device
    from mindrepvgg.runtime.compile_cache import kept_graphs

    device.setup("auto", seed=1)
    cache = contextlib.nullcontext()
    if arguments.compile_cache:
        facts = [arguments.models, arguments.batch_size, arguments.image_size]
        cache = kept_graphs(arguments.compile_cache, facts)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(arguments.batch_size, 3, arguments.image_size, arguments.image_size))
    batch = ms.Tensor(images, ms.float32), ms.Tensor(rng.integers(0, 1000, arguments.batch_size), ms.int32)
    step = {OURS: _our_step, MINDCV: _mindcv_step}[arguments.contestant](arguments.models)
    print("{}", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        with cache:
            step(*batch).asnumpy()
        cache = contextlib.nullcontext()
        seconds = time.perf_counter() - start
        facts = {"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        print(json.dumps(facts), flush=True)
    return 0


# A rate this small keeps the numbers of a random network on random images in range over many steps.
_RATES = [1e-4] * 1000


def _our_step(model):
    import numpy as np

    from mindrepvgg import create_model
    from mindrepvgg.training.loss import build_loss
    from mindrepvgg.training.optim import build_optimizer
    from mindrepvgg.training.step import NetworkWithLoss, TrainStep

    net = create_model(model)
    optimizer = build_optimizer(net, np.array(_RATES), weight_decay=1e-4, weight_decay_filter="all")
    step = TrainStep(NetworkWithLoss(net, build_loss("CE", 0.1)), optimizer)
    return lambda images, labels: step(images, labels)[0]


def _mindcv_step(model):
    import mindcv
    from mindcv.loss import create_loss
    from mindcv.optim import create_optimizer
    from mindcv.utils.trainer_factory import create_trainer

    net = mindcv.create_model(model)
    optimizer = create_optimizer(net, opt="momentum", lr=_RATES, weight_decay=1e-4, momentum=0.9)
    trainer = create_trainer(
        network=net,
        loss=create_loss("CE", label_smoothing=0.1),
        optimizer=optimizer,
        metrics={},
        amp_level="O0",
        amp_cast_list=None,
        loss_scale_type="fixed",
    )
    return trainer._train_network  # the cell that its Model calls for every batch


if __name__ == "__main__":
    sys.exit(entry.run(main))
