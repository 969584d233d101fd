"""Compiled train steps of one layout with other blocks: RepVGG's, QARepVGG's, RepOpt-VGG's, and one plain convolution.

All networks have the same widths, batch, loss and optimizer (SGD with Nesterov's momentum, the paper's decay).
RepOpt-VGG and the plain network are one network; the first is trained by RepOptimizer. Each contestant is a process of
its own, so that its memory can be told; they take turns, step by step.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Generator

from mindrepvgg.measure.worker import Worker, status_bytes
from mindrepvgg.models.variants import find
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.timing import quartiles, take_turns
from mindrepvgg.text import markdown_table

PLAIN, REPOPT, REPVGG, QAREPVGG = "plain", "RepOpt-VGG", "RepVGG", "QARepVGG"
# The family whose network it is, and the recipe's key `scales`.
_CONTESTANTS = {
    PLAIN: ("repopt_vgg", "none"),
    REPOPT: ("repopt_vgg", "initial"),
    REPVGG: ("repvgg", ""),
    QAREPVGG: ("qarepvgg", ""),
}


def measure(layouts=(("repvgg_a0", 16, 224, 15), ("repvgg_b1", 4, 224, 7))) -> str:
    """Return a markdown table of all contestants, with the ratios to the plain network.

    Args:
        layouts: a network whose blocks and widths all have, the batch size, the pictures' side in pixels, and how many
            steps of each are measured.
    """
    rows = [row for layout in layouts for row in _rows(*layout)]
    headings = ("widths of", "batch", "pixels", "turns", "blocks", "ms", "quartiles", "of plain", "memory", "of plain")
    return (
        f"Train steps in graph mode, float32; medians, also of the ratios in each turn; memory is the process's peak; "
        f"{processor()}, {os.cpu_count()} cores:\n\n{markdown_table(headings, rows)}"
    )


def _rows(model, batch_size, image_size, rounds):
    variant = find(model)
    sizes = {"num_blocks": list(variant.num_blocks), "widths": list(variant.widths)}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in _CONTESTANTS:
            workers[name] = stack.enter_context(Worker(_steps, name, sizes, batch_size, image_size))
            workers[name].answer()
            workers[name].ask()  # one by one: compilation takes all cores
        times = take_turns({name: worker.ask for name, worker in workers.items()}, rounds, warmup=1)
        memory = {name: worker.ask("memory") for name, worker in workers.items()}
    for name, seconds in times.items():
        low, _, high = (1000 * time for time in quartiles(seconds))
        ratio = statistics.median(own / plain for own, plain in zip(seconds, times[PLAIN], strict=True))
        yield (
            *(
                model,
                batch_size,
                image_size,
                rounds,
                name,
                f"{1000 * statistics.median(seconds):.0f}",
                f"{low:.0f} - {high:.0f}",
            ),
            *(f"{ratio:.3f}", f"{memory[name] / 2**20:.0f} MiB", f"{memory[name] / memory[PLAIN]:.2f}"),
        )


def _steps(name, sizes, batch_size, image_size) -> Generator:
    """Build a contestant in a `Worker`; yield None, then a step's seconds, or to "memory" the peak in bytes."""
    import mindspore as ms
    import numpy as np

    from mindrepvgg.recipe.schema import Recipe
    from mindrepvgg.runtime import device
    from mindrepvgg.runtime.ranks import Ranks
    from mindrepvgg.training import assemble

    target = device.setup("auto", seed=1)
    family, scales = _CONTESTANTS[name]
    recipe = Recipe(
        model=family,
        model_args=sizes,
        num_classes=1000,
        scales=scales,
        use_nesterov=True,
        dataset="mnist5k",
        batch_size=batch_size,
        image_resize=image_size,
        device_target=target,
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    batch = ms.Tensor(images), ms.Tensor(rng.integers(0, 1000, batch_size), ms.int32)
    # A rate this small keeps a network on random pictures in range.
    step = assemble.build_step(recipe, assemble.build_network(recipe, Ranks()), np.full(1000, 1e-4), Ranks())
    request = yield None
    while True:
        start = time.perf_counter()
        if request != "memory":
            step(*batch)[0].asnumpy()
        request = yield status_bytes("VmHWM") if request == "memory" else time.perf_counter() - start
