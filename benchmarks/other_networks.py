"""Networks of MindCV and of MindYOLO's layers, fused: what is left of them, whether they compute the same, how fast."""

import importlib
import os
import statistics

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.reparam import insert, to_deploy, verify_equivalence
from mindrepvgg.reparam.maps import is_convolution, is_norm
from mindrepvgg.runtime.device import execution_mode
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.timing import take_turns, timed, times_as_fast
from mindrepvgg.text import markdown_table

SHAPE = 1, 3, 224, 224


def mindcv(name, block=None):
    """A network of MindCV's; with blocks in the place of every convolution larger than 1x1 that has a BN."""
    net = importlib.import_module("mindcv").create_model(name)
    return net if block is None else insert(net, block, inputs=_images())


def yolo(kind):
    """MindYOLO's stem, and at three widths a cell of this kind and a convolution that halves the map."""
    from support.other_projects import stand_ins  # the tests'

    with stand_ins():
        convs = importlib.import_module("mindyolo.models.layers.conv")
    cells = [convs.ConvNormAct(3, 16, 3, 2)]
    for width in (16, 32, 64):
        if kind == "RepConv":
            cells += [convs.RepConv(width, width), convs.RepConv(width, 2 * width, 3, 2)]
        else:
            bottleneck = importlib.import_module("mindyolo.models.layers.bottleneck")
            cells += [bottleneck.RepVGGDW(width), convs.ConvNormAct(width, 2 * width, 3, 2)]
    return nn.SequentialCell(*cells)


NETWORKS = {
    "MindCV's `repvgg_a0`": lambda: mindcv("repvgg_a0"),
    "MindCV's `repvgg_b1g4`": lambda: mindcv("repvgg_b1g4"),
    "MindCV's `resnet18`, with `acb`": lambda: mindcv("resnet18", "acb"),
    "MindCV's `resnet18`, with `dbb`": lambda: mindcv("resnet18", "dbb"),
    "MindCV's `mobilenet_v1_100`, with `dbb`": lambda: mindcv("mobilenet_v1_100", "dbb"),
    "MindYOLO's `RepConv` and others": lambda: yolo("RepConv"),
    "MindYOLO's `RepVGGDW` and others": lambda: yolo("RepVGGDW"),
}


def measure(rounds=15) -> str:
    """A markdown table, and what it was measured on."""
    rows = [_row(name, make, rounds) for name, make in NETWORKS.items()]
    headings = ["network", "convolutions", "BN", "largest difference", "forward (ms)", "times as fast"]
    return (
        f"{'x'.join(map(str, SHAPE))}, float32, graph mode, CPU ({processor()}, {os.cpu_count()} cores), MindSpore "
        f"{ms.__version__}, medians of {rounds} turns:\n\n{markdown_table(headings, rows)}"
    )


def _images():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def _row(name, make, rounds):
    from support import randomise_bn  # the tests'

    x = Tensor(_images())
    try:
        with execution_mode(ms.PYNATIVE_MODE):
            net = randomise_bn(make()).set_train(False)
            deployed = to_deploy(net, fold_bn=True)
    except ImportError:
        return name, "not installed", *4 * ("",)
    with execution_mode(ms.GRAPH_MODE):
        report = verify_equivalence(net, deployed, x, raise_on_failure=False)
        forwards = {form: timed(lambda form=form: form(x).asnumpy()) for form in (net, deployed)}
        seconds = take_turns(forwards, rounds, warmup=3)
    before, after = seconds[net], seconds[deployed]
    numbers = [f"{_count(net, kind)} / {_count(deployed, kind)}" for kind in (is_convolution, is_norm)]
    times = " / ".join(f"{1000 * statistics.median(turns):.1f}" for turns in (before, after))
    found = name, *numbers, f"{report.max_rel:.1e}", times, f"{times_as_fast(after, before):.2f}"
    print(*found, flush=True)
    return found


def _count(net, kind):
    return sum(kind(cell) for _, cell in net.cells_and_names())
