"""Inference: ours beside MindCV, engines beside each other, the family beside ResNets."""

import contextlib
import functools
import importlib.metadata
import io
import itertools
import os
import statistics
import tempfile
import warnings
from pathlib import Path

import convolution_profile
import file_kinds
import numpy as np

from mindrepvgg.deployment import graph
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.engine_base import MINDSPORE, ONNXRUNTIME, OPENVINO
from mindrepvgg.measure import contest
from mindrepvgg.measure.settings import ENGINES, TORCH, Settings
from mindrepvgg.measure.torch_network import torch_network
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.repvgg import build
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.summary import summarise
from mindrepvgg.models.synthetic import parameter_values
from mindrepvgg.models.variants import DEPLOY, TRAIN, find
from mindrepvgg.reparam.compare import difference
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.runtime import device
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.timing import quartiles, take_turns, timed, times_as_fast
from mindrepvgg.text import markdown_table

_AGREEMENT = 1e-4  # of the largest logit
_THREADS = len(os.sched_getaffinity(0))
_REST = 0.05  # seconds before a turn: threads spin for some milliseconds after their call


def _measured(**settings):
    """Return the finished report of a benchmark."""
    device.setup("CPU")
    *_, found = contest.measure(Settings(**settings))
    return found


def beside_mindcv(model="repvgg_a0", batch_sizes=(1, 4, 16), rounds=15) -> str:
    """Measure both forms and MindCV's network of the same name, which has no deploy form; profile ours."""
    found = _measured(models=model, baselines=model, batch_sizes=batch_sizes, rounds=rounds)
    return f"{found.markdown()}\n\n{convolution_profile.measure(model, batch_sizes[-1])}"


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


def engines(models=("repvgg_a0", "repvgg_b1"), batch_sizes=(1, 16), image_size=224, rounds=9) -> str:
    """Measure the deploy form and files of it under every engine, and say how far the goals are met."""
    cases = list(itertools.product(models, batch_sizes))
    found = [_all_engines(model, batch_size, image_size, rounds) for model, batch_size in cases]
    rates = (_gigaflops(case, times[_OURS], image_size) for case, times in zip(cases, found, strict=True))
    told = f"GFLOP/s of {_OURS}; {_matrix_product():.0f} in a matrix product", "", *(f"{rate:.0f}" for rate in rates)
    tables = _tables(cases, found, _RATIOS, [told])
    return f"Deploy form, {_conditions(image_size, rounds)}; {_versions()}:\n\n{tables}"


_OURS = "onnxruntime, our file"
_FIXED, _THEIRS, _INT8 = "of a fixed batch", "PyTorch's export", "INT8"
_RATIOS = (
    (_OURS, "torch", "1.2"),
    (_OURS, "torch.compile", "1.2"),
    (f"onnxruntime, {_INT8}", _OURS, ""),
    ("openvino", _OURS, ""),
    ("openvino, bfloat16", "openvino", ""),
    (f"openvino, {_INT8}", "openvino", ""),
    (f"openvino, {_INT8}", f"onnxruntime, {_INT8}", ""),
)

# Pairs of files in one process under onnxruntime, where contestants disturb each other least.
_FILE_RATIOS = ((_OURS, _THEIRS, "0.98"), (_OURS, _FIXED, "0.95"), (_INT8, _OURS, "3.5"))


def files(models=("repvgg_a0", "repvgg_b1", "repvgg_d2se"), batch_sizes=(1, 16), image_size=224, rounds=21) -> str:
    """Measure our file of any batch beside PyTorch's own export, our file of a fixed batch and INT8."""
    cases = list(itertools.product(models, batch_sizes))
    found = []
    for model, batch_size in cases:
        with _files(model, batch_size, image_size) as (images, paths):
            calls = {
                label: timed(functools.partial(OnnxEngine(path, _THREADS), images)) for label, path in paths.items()
            }
            found.append(take_turns(calls, rounds, warmup=3, rest=_REST))
    return f"onnxruntime, {_conditions(image_size, rounds)}:\n\n{_tables(cases, found, _FILE_RATIOS)}"


def _conditions(image_size, rounds):
    return f"{image_size}x{image_size}, {rounds} rounds in turns, {os.cpu_count()} cores, {processor()}"


def _tables(cases, found, wanted, more=()):
    """Return two tables with a column for each case: the times, and how many times as fast one is as another.

    Args:
        cases: (network, batch size).
        found: of each case, label -> seconds.
        wanted: (label, label of what it is compared with, goal).
        more: further rows of the second table.
    """
    headings = [f"{model}, batch {batch_size}" for model, batch_size in cases]
    times = [(label, *(_milliseconds(times.get(label)) for times in found)) for label in found[0]]
    ratios = [
        (f"{own} to {other}", goal, *(_ratio(times, own, other) for times in found)) for own, other, goal in wanted
    ]
    return (
        f"{markdown_table(('ms a batch, median (quartiles)', *headings), times)}\n\n"
        f"{markdown_table(('times as fast', 'goal', *headings), [*ratios, *more])}"
    )


def _all_engines(model, batch_size, image_size, rounds) -> dict[str, tuple[float, ...]]:
    """Measure a network under every engine, and files of it, in one run; the seconds by what they are called here."""
    with _files(model, batch_size, image_size) as (_, paths):
        files = {label: path for label, path in paths.items() if label != _OURS}
        found = _measured(
            models=model,
            ckpt_paths=tuple(map(str, files.values())),
            forms="deploy",
            engines=ENGINES,
            precisions="float32,bfloat16",
            batch_sizes=(batch_size,),
            image_size=image_size,
            rounds=rounds,
        )
    labels = {str(path): label for label, path in files.items()}
    return {_label(result.contestant, labels): result.seconds for result in found.results}


@contextlib.contextmanager
def _files(model, batch_size, image_size):
    """Write files of a network; yields pictures, and the files by what they are called here."""
    variant = find(model)
    deployed = to_deploy(build(variant, arrays=parameter_values(parameter_shapes(variant, TRAIN))))
    arrays = network_arrays(deployed)
    images = np.random.default_rng(0).standard_normal((batch_size, 3, image_size, image_size), np.float32)
    fixed = graph.GraphOptions(batch_size=batch_size, image_size=(image_size, image_size))
    with tempfile.TemporaryDirectory() as folder:
        labels = (_OURS, _FIXED, _THEIRS, _INT8)
        paths = {label: Path(folder, f"{number}.onnx") for number, label in enumerate(labels)}
        for label, options in ((_OURS, graph.GraphOptions()), (_FIXED, fixed)):
            paths[label].write_bytes(graph.build_onnx(deployed.variant, arrays, options).SerializeToString())
        paths[_THEIRS].write_bytes(_torch_export(torch_network(deployed.variant, arrays), images))
        file_kinds.as_int8(paths[_OURS], paths[_INT8], deployed, images)
        _check_same(paths[_OURS], paths[_THEIRS], images)
        yield images, paths


def _label(contestant, labels):
    precision = f", {contestant.precision}" if contestant.precision == "bfloat16" else ""
    file = labels.get(contestant.network, "our file" if contestant.engine == ONNXRUNTIME else "")
    return f"{contestant.engine}{precision}{', ' if file else ''}{file}"


def _check_same(ours, theirs, images):
    """Give up where two files of one network do not compute the same."""
    _, max_rel = difference(*(OnnxEngine(path, _THREADS)(images) for path in (ours, theirs)))
    if not max_rel <= _AGREEMENT:
        raise SystemExit(f"error: the two files differ by {max_rel:.1e} of the largest logit: nothing was timed")


def _milliseconds(seconds):
    return "{1:.1f} ({0:.1f} - {2:.1f})".format(*(1000 * q for q in quartiles(seconds))) if seconds else "-"


def _ratio(found, own, other):
    return f"{times_as_fast(found[own], found[other]):.2f}" if {own, other} <= found.keys() else "-"


def _gigaflops(case, seconds, image_size):
    model, batch_size = case
    macs = summarise(find(model), image_size=image_size).total(DEPLOY).macs
    return 2 * macs * batch_size / statistics.median(seconds) / 1e9


def _matrix_product(size=2048, rounds=20) -> float:
    """GFLOP/s of PyTorch's product of two float32 matrices: the best of some rounds."""
    import torch

    torch.set_num_threads(_THREADS)
    a, b = torch.rand(2, size, size)
    return 2 * size**3 / min(timed(lambda: a @ b)() for _ in range(rounds)) / 1e9


def _versions():
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (MINDSPORE, ONNXRUNTIME, OPENVINO, TORCH))


def _torch_export(net, images) -> bytes:
    """Return PyTorch's own export of a network for batches like `images`."""
    import torch

    content = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that needs no further package
        torch.onnx.export(net, torch.from_numpy(images), content, dynamo=False, opset_version=17)
    return content.getvalue()
