"""The compiled train step here and that of MindCV's own trainer: time, compilation, memory, and a restart.

Both have the same batch, loss (label smoothing 0.1), optimizer (SGD with momentum, decay on everything) and precision.
Each contestant is a process of its own, so that its memory can be told; they take turns, step by step. A restart is the
first step of a new process that finds the graphs which an earlier one compiled. A first step is the compilation and the
graph's first run, which a cache of graphs cannot shorten.
"""

import contextlib
import os
import statistics
import tempfile
from collections.abc import Generator

from mindrepvgg.measure.worker import Worker, status_bytes
from mindrepvgg.runtime.timing import quartiles, take_turns, timed, times_as_fast
from mindrepvgg.text import markdown_table

OURS, MINDCV = "mindrepvgg", "MindCV"

# A rate this small keeps the numbers of a random network on random images in range over many steps.
_RATES = [1e-4] * 1000


def measure(model="repvgg_a0", batch_size=16, image_size=224, rounds=15) -> str:
    """Return a markdown table of both contestants, and the ratios."""
    import mindspore as ms

    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())

        def start(contestant, cache=None):
            worker = stack.enter_context(Worker(_steps, contestant, model, batch_size, image_size, cache))
            worker.answer()
            return worker

        workers = {name: start(name) for name in (OURS, MINDCV)}
        first = {name: worker.ask() for name, worker in workers.items()}  # one by one: compilation takes all cores
        times = take_turns({name: worker.ask for name, worker in workers.items()}, rounds)
        memory = {name: worker.ask("memory") for name, worker in workers.items()}
        cold, warm = (start(OURS, cache).ask() for _ in range(2))
    rows = []
    for name, seconds in times.items():
        low, _, high = (1000 * time for time in quartiles(seconds))
        median, mebibytes = 1000 * statistics.median(seconds), memory[name] / 2**20
        begin = f"{sum(first[name]):.1f} s"
        rows.append((name, f"{median:.0f}", f"{low:.0f} - {high:.0f}", begin, f"{mebibytes:.0f} MiB"))
    headings = ("train step", "ms", "quartiles", "first step, with compilation", "peak memory")
    return (
        f"{model}, batch {batch_size}, {image_size}x{image_size}, float32, graph mode, MindSpore {ms.__version__}, "
        f"{os.cpu_count()} cores, median of {rounds} steps:\n\n{markdown_table(headings, rows)}\n\n"
        f"- train step: {times_as_fast(times[OURS], times[MINDCV]):.2f} times as fast as MindCV's trainer, "
        f"{memory[OURS] / memory[MINDCV]:.2f} of its memory, {sum(first[OURS]) / sum(first[MINDCV]):.2f} of the time "
        "to the first step's end\n"
        f"- restart with the compile cache: the first step takes {sum(warm):.1f} s, {sum(cold):.1f} s without: "
        f"{sum(warm) / sum(cold):.2f} of it. Of these, compilation takes {warm[0]:.1f} s, {cold[0]:.1f} s without: "
        f"{warm[0] / cold[0]:.2f}; the rest is the graph's first run"
    )


def _steps(contestant, model, batch_size, image_size, cache) -> Generator:
    """Build a contestant in a `Worker`.

    Yields None, then the seconds of compilation and of the first run, then a step's seconds, or to "memory" the peak in
    bytes.
    """
    import mindspore as ms
    import numpy as np

    from mindrepvgg.runtime import device
    from mindrepvgg.runtime.compile_cache import kept_graphs

    device.setup("auto", seed=1)
    graphs = kept_graphs(cache, [model, batch_size, image_size]) if cache else contextlib.nullcontext()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, 3, image_size, image_size))
    batch = ms.Tensor(images, ms.float32), ms.Tensor(rng.integers(0, 1000, batch_size), ms.int32)
    step = {OURS: _our_step, MINDCV: _mindcv_step}[contestant](model)

    def run():
        outcome = step(*batch)
        return (outcome[0] if isinstance(outcome, tuple) else outcome).asnumpy()

    yield None
    with graphs:
        compile_seconds, first_run = timed(lambda: step.compile(*batch))(), timed(run)()
    request = yield compile_seconds, first_run
    while True:
        request = yield status_bytes("VmHWM") if request == "memory" else timed(run)()


def _our_step(model):
    import numpy as np

    from mindrepvgg.training.loss import build_loss
    from mindrepvgg.training.optim import build_optimizer
    from mindrepvgg.training.step import NetworkWithLoss, TrainStep
    from mindrepvgg.weights.load import create_model

    net = create_model(model)
    optimizer = build_optimizer(net, np.array(_RATES), weight_decay=1e-4, weight_decay_filter="all")
    return TrainStep(NetworkWithLoss(net, build_loss("CE", 0.1)), optimizer)


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
