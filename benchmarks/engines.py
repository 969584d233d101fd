"""Inference: ours beside MindCV, engines beside each other, the family beside ResNets."""

import contextlib
import functools
import io
import itertools
import os
import statistics
import warnings

import numpy as np

from mindrepvgg.deployment.engine import OnnxEngine, engine_of
from mindrepvgg.measure import contest
from mindrepvgg.measure.settings import ENGINES, Settings
from mindrepvgg.measure.torch_network import torch_network
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.repvgg import build
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.synthetic import parameter_values
from mindrepvgg.models.variants import TRAIN, find
from mindrepvgg.reparam.compare import difference
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.runtime import device
from mindrepvgg.runtime.timing import take_turns, timed, times_as_fast
from mindrepvgg.text import markdown_table

_AGREEMENT = 1e-4  # of the largest logit


def _measured(**settings):
    """Return the finished report of a benchmark."""
    device.setup("CPU")
    *_, found = contest.measure(Settings(**settings))
    return found


def beside_mindcv(model="repvgg_a0", batch_size=16, rounds=15) -> str:
    """Measure both forms and MindCV's network of the same name, which has no deploy form that can be built."""
    return _measured(models=model, baselines=model, batch_sizes=(batch_size,), rounds=rounds).markdown()


def family(picture) -> str:
    """Measure table 4 of the paper, as far as a CPU goes in reasonable time, and draw it."""
    found = _measured(
        models="repvgg_a0,repvgg_a1,repvgg_b0,repvgg_b1",
        baselines="resnet18,resnet34,resnet50,resnet101",
        engines="mindspore,onnxruntime",
        batch_sizes="1",
        rounds=12,
    )
    found.draw(picture)
    return found.markdown()


def engines(models=("repvgg_a0", "repvgg_b1"), batch_sizes=(1, 16), image_size=224, rounds=15) -> str:
    """Measure the deploy form under every engine; then our ONNX file and PyTorch's own export of the same network."""
    found = _measured(
        models=models, forms="deploy", engines=ENGINES, batch_sizes=batch_sizes, image_size=image_size, rounds=rounds
    )
    cases = itertools.product(models, batch_sizes)
    rows = [_exports(model, batch_size, image_size, rounds) for model, batch_size in cases]
    headings = ("network", "batch", "our file, median ms", "PyTorch's file, median ms", "ours is times as fast")
    return f"{found.markdown()}\n\nBoth files under onnxruntime:\n\n{markdown_table(headings, rows)}"


def _exports(model, batch_size, image_size, rounds):
    """Return the row of a network and batch size."""
    variant = find(model)
    arrays = parameter_values(parameter_shapes(variant, TRAIN))
    deployed, threads = to_deploy(build(variant, arrays=arrays)), len(os.sched_getaffinity(0))
    images = np.random.default_rng(0).standard_normal((batch_size, 3, image_size, image_size), np.float32)
    theirs = _torch_export(torch_network(deployed.variant, network_arrays(deployed)), images)
    contestants = {"ours": engine_of(deployed, threads), "theirs": OnnxEngine(theirs, threads)}
    _, max_rel = difference(*(engine(images) for engine in contestants.values()))
    if not max_rel <= _AGREEMENT:
        raise SystemExit(f"error: the two files differ by {max_rel:.1e} of the largest logit: nothing was timed")
    times = take_turns(
        {name: timed(functools.partial(engine, images)) for name, engine in contestants.items()}, rounds, warmup=3
    )
    medians = (f"{1000 * statistics.median(seconds):.1f}" for seconds in times.values())
    return model, batch_size, *medians, f"{times_as_fast(times['ours'], times['theirs']):.2f}"


def _torch_export(net, images) -> bytes:
    """Return PyTorch's own export of a network for batches like `images`."""
    import torch

    content = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that needs no further package
        torch.onnx.export(net, torch.from_numpy(images), content, dynamo=False, opset_version=17)
    return content.getvalue()
