"""The deploy form under onnxruntime, beside PyTorch's own export of it, PyTorch itself and MindSpore, in one run.

    python benchmarks/onnx_speed.py [--models repvgg_a0,repvgg_b1] [--batch_sizes 1,16] [--rounds 15]

All compute the same network with the same weights; before anything is timed, their logits are compared. The contestants
take turns, call by call and in shuffled order, so that a slow spell of the machine meets all of them: medians are
printed, and the ratios are medians of the rounds. Needs PyTorch, onnx and onnxruntime.
"""

import contextlib
import copy
import functools
import io
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, installed or not

import mindrepvgg
from mindrepvgg.cli import entry

OURS, THEIRS = "onnxruntime, our export", "onnxruntime, PyTorch's export"
EAGER, MINDSPORE = "PyTorch, eager, channels last", "MindSpore, graph mode"

_SETTINGS = tuple((model, batch_size) for model in ("repvgg_a0", "repvgg_b1") for batch_size in (1, 16))
_AGREEMENT = 1e-4  # of the largest logit
# Seconds before a turn: some contestants' threads go on spinning for a while after their call, in the next one's time.
_REST = 0.3


def main(argv=None):
    """Measure and print a markdown table."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="repvgg_a0,repvgg_b1", help="networks, separated by commas")
    parser.add_argument("--batch_sizes", default="1,16", help="separated by commas")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15, help="counted calls of each contestant")
    parser.add_argument("--num_threads", type=int, help="of all but MindSpore (default: all)")
    arguments = parser.parse_args(argv)
    settings = [
        (model, int(batch)) for model in arguments.models.split(",") for batch in arguments.batch_sizes.split(",")
    ]
    for line in measure(settings, arguments.image_size, arguments.rounds, arguments.num_threads):
        print(line, flush=True)
    return 0


def measure(settings=_SETTINGS, image_size=224, rounds=15, threads=None) -> Iterator[str]:
    """Yield a markdown table, a line for each (network, batch) of `settings`: medians in ms, and the ratios."""
    import mindspore as ms
    import onnxruntime
    import torch

    from mindrepvgg.runtime import device
    from mindrepvgg.runtime.environment import processor

    threads = threads or len(os.sched_getaffinity(0))
    target = device.setup("CPU")
    torch.set_num_threads(threads)
    names = (OURS, THEIRS, EAGER, MINDSPORE)
    yield from (
        f"Deploy form, {image_size}x{image_size}, float32, ms a batch, median of {rounds} turns, {threads} threads; "
        f"onnxruntime {onnxruntime.__version__}, PyTorch {torch.__version__}, MindSpore {ms.__version__}, {target} "
        f"({processor()}, {os.cpu_count()} cores):",
        "",
        f"| network | batch | {' | '.join(names)} | ours to PyTorch's export | ours to PyTorch, eager |",
        f"|---|---|{'---|' * (len(names) + 2)}",
    )
    for model, batch_size in settings:
        times = _times(model, batch_size, image_size, rounds, threads)
        medians = " | ".join(f"{1000 * statistics.median(times[name]):.1f}" for name in names)
        ratios = " | ".join(f"{_speedup(times[OURS], times[other]):.2f} times as fast" for other in (THEIRS, EAGER))
        yield f"| {model} | {batch_size} | {medians} | {ratios} |"


def _speedup(ours, others):
    """The median over the rounds of how much longer the other took."""
    return statistics.median(other / own for own, other in zip(ours, others, strict=True))


def _times(model, batch_size, image_size, rounds, threads):
    """Seconds of every counted call, by contestant."""
    import mindspore as ms
    import numpy as np

    from mindrepvgg.deployment.engine import engine_of
    from mindrepvgg.measure.torch_network import torch_eager, torch_network
    from mindrepvgg.models.parameters import network_arrays

    net = mindrepvgg.create_model(model, deploy=True).set_train(False)
    _keep_signal(net)
    images = np.random.default_rng(0).normal(size=(batch_size, 3, image_size, image_size)).astype(np.float32)
    batch = ms.Tensor(images)
    torch_net = torch_network(net.variant, network_arrays(net))
    contestants = {
        OURS: functools.partial(engine_of(net, threads), images),
        THEIRS: _torch_export(torch_net, images, threads),
        EAGER: torch_eager(copy.deepcopy(torch_net), images),
        MINDSPORE: lambda: net(batch).asnumpy(),
    }
    logits = {name: call() for name, call in contestants.items()}
    for name, found in logits.items():
        difference = float(np.abs(found - logits[OURS]).max() / np.abs(found).max())
        if not difference <= _AGREEMENT:
            raise SystemExit(f"error: {name} differs by {difference:.1e} of the largest logit: nothing was timed")
    times = {name: [] for name in contestants}
    turns, shuffle = list(contestants), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(turns)
        for name in turns:
            time.sleep(_REST)
            start = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - start)
    return times


def _keep_signal(net):
    """He's variance for every kernel: with the fresh weights' the logits would hardly depend on the images."""
    import mindspore as ms
    import numpy as np

    rng = np.random.default_rng(0)
    for parameter in net.get_parameters():
        if parameter.name.endswith("rbr_reparam.weight"):
            std = np.sqrt(2 / np.prod(parameter.shape[1:]))
            parameter.set_data(ms.Tensor(rng.normal(0, std, parameter.shape), parameter.dtype))


def _torch_export(torch_net, images, threads):
    """A call of what torch.onnx.export makes, under onnxruntime with the same threads."""
    import torch

    from mindrepvgg.deployment.engine import OnnxEngine

    content = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that needs no further package
        torch.onnx.export(torch_net, torch.from_numpy(images), content, dynamo=False, opset_version=17)
    return functools.partial(OnnxEngine(content.getvalue(), threads), images)


if __name__ == "__main__":
    sys.exit(entry.run(main))
