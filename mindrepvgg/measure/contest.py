"""The contestants of a benchmark: what there is to measure, and who takes turns with whom."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindrepvgg.deployment.graph import GraphOptions, build_onnx, require_onnx
from mindrepvgg.errors import UserError
from mindrepvgg.measure.process import BrokenDown, Network, Process, filled_network, read_arrays
from mindrepvgg.measure.report import (
    DEPLOY,
    MINDSPORE,
    ONNXRUNTIME,
    REFERENCE,
    TORCH,
    TRAIN,
    Contestant,
    Report,
    Result,
    Settings,
)
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.summary import summarise
from mindrepvgg.runtime.optional import require_optional
from mindrepvgg.text import nearest

# What a network's logits may differ by between contestants, over the largest: a network that computes something else is
# off by the largest itself. Loose, as NPUs round float32 convolutions.
_AGREEMENT = {"float32": 1e-2, "float16": 1e-1}
# Seconds before a turn: PyTorch's threads go on spinning for some milliseconds after their call.
_REST = 0.05


def measure(settings: Settings, show_progress=False) -> Iterator[Report]:
    """Yield the report each time a batch size has been measured, or with `alone` a contestant; it grows.

    Contestants that compute the same network must agree in their logits before anything is timed. One that does not,
    or breaks down, is left out with its reason. Raises UserError when there is nothing to measure, an optional package
    that was asked for is missing, or a network is unknown.
    """
    _check_packages(settings)
    with tempfile.TemporaryDirectory() as folder:
        networks = _prepare(settings, folder)
        contestants, left_out = _plan(settings, networks)
        report, logits = Report(settings, left_out=left_out), {}
        calls = len(contestants) * (1 + settings.warmup + settings.rounds + 1)
        hidden = not (show_progress and sys.stderr.isatty())
        with tqdm(total=calls, desc="benchmark", leave=False, disable=hidden) as bar:
            for group in _groups(contestants, settings.alone):
                _compete(report, group, networks, folder, logits, bar.update)
                if report.results:
                    yield report
    if not report.results:
        raise UserError(f"nothing could be measured: {'; '.join(report.left_out)}")


def _check_packages(settings):
    """Raise UserError for an engine, or a network of MindCV's, that is not there."""
    if ONNXRUNTIME in settings.engines:
        require_onnx()
    if TORCH in settings.engines:
        require_optional("torch", "torch", "the engine torch")
    if settings.baselines:
        import mindcv

        for name in settings.baselines:
            if name not in mindcv.list_models():
                near = nearest(name, mindcv.list_models())
                hint = f"; did you mean {near}?" if near else ""
                raise UserError(f"baselines (={name!r}) must be networks of MindCV, as {REFERENCE}{hint}")


def _prepare(settings, folder) -> dict[str, Network]:
    """Each network's arrays in files, by form: all contestants of a network get the same numbers."""
    from mindrepvgg.models.synthetic import parameter_value
    from mindrepvgg.reparam.deploy import to_deploy
    from mindrepvgg.weights.checkpoint import network_arrays
    from mindrepvgg.weights.load import load_weights

    networks = {}
    for number, label in enumerate((*settings.models, *settings.ckpt_paths)):
        if number < len(settings.models):
            variant = variants.find(label)
            shapes = parameter_shapes(variant, False, aux_heads=False)
            # A rule that keeps the signal alive: weights of which float16 would make zeros or infinities say little.
            arrays = {name: parameter_value(name, shape) for name, shape in shapes.items()}
            net = filled_network(Network(variant, 1000, 3, {}), False, arrays)
        else:
            net = load_weights(label)
            if net.variant.aux_heads:
                net.drop_aux_heads()
        files = {}
        for form in settings.forms:
            if form == DEPLOY or not net.deploy:
                chosen = to_deploy(net) if form == DEPLOY and not net.deploy else net
                files[form] = str(Path(folder, f"{number}_{form}.npz"))
                np.savez(files[form], **network_arrays(chosen))
        networks[label] = Network(net.variant, net.num_classes, net.in_channels, files)
    return networks


def _plan(settings, networks) -> tuple[list[Contestant], list[str]]:
    """The combinations that make sense, those of one batch size in a row, and a line for each kind that does not."""
    left_out = []
    if ONNXRUNTIME in settings.engines and TRAIN in settings.forms and networks:
        left_out.append("train form under onnxruntime: only the deploy form is exported")
    if settings.baselines and MINDSPORE not in settings.engines:
        left_out.append(f"{', '.join(settings.baselines)}: run under mindspore, which is not among the engines")
    if TRAIN in settings.forms:
        fused = [label for label, network in networks.items() if TRAIN not in network.weights]
        left_out += [f"{label}, train form: its branches are fused and cannot be recovered" for label in fused]
    contestants = []
    for batch_size, precision in itertools.product(settings.batch_sizes, settings.precisions):
        if MINDSPORE in settings.engines:
            contestants += [Contestant(name, "", MINDSPORE, precision, batch_size) for name in settings.baselines]
        contestants += [
            Contestant(label, form, engine, precision, batch_size)
            for engine, (label, network), form in itertools.product(settings.engines, networks.items(), settings.forms)
            if form in network.weights and (engine, form) != (ONNXRUNTIME, TRAIN)
        ]
    if not contestants:
        raise UserError(f"nothing to measure: {'; '.join(left_out)}")
    return contestants, left_out


def _groups(contestants, alone):
    """Those that are alive together."""
    if alone:
        return [[contestant] for contestant in contestants]
    grouped = itertools.groupby(contestants, key=lambda contestant: contestant.batch_size)
    return [list(group) for _, group in grouped]


def _compete(report, group, networks, folder, logits, update):
    """Measure the contestants of a group in turns, and add them to the report.

    logits: (network, batch size) -> the first contestant and its logits, which the others must agree with.
    """
    settings, facts, memory = report.settings, {}, {}
    times = {contestant: [] for contestant in group}
    with contextlib.ExitStack() as stack:
        processes = {}

        def attempt(contestant, act):
            """Call `act`; who breaks down in it takes no further part."""
            try:
                act()
            except (BrokenDown, UserError) as error:
                if process := processes.pop(contestant, None):
                    process.close()
                report.left_out.append(f"{contestant.format()}: {error}")
                report.failed = True
            update()

        def enter(contestant):
            """Start a contestant and let it make its first call. One after the other: compilation takes all cores."""
            network = networks.get(contestant.network)
            source = _source(contestant, network, folder)
            process = Process(contestant, network, source, settings)
            processes[contestant] = process
            stack.callback(process.close)
            facts[contestant] = process.answer()
            if network:
                _check_agreement(contestant, facts[contestant].logits, logits)

        def turn(contestant, counted):
            time.sleep(_REST)
            seconds = processes[contestant].call()
            if counted:
                times[contestant].append(seconds)

        def finish(contestant):
            memory[contestant] = processes[contestant].peak_memory()

        for contestant in group:
            attempt(contestant, functools.partial(enter, contestant))
        shuffle = random.Random(0).shuffle
        for number in range(settings.warmup + settings.rounds):
            turns = list(processes)
            shuffle(turns)
            for contestant in turns:
                attempt(contestant, functools.partial(turn, contestant, number >= settings.warmup))
        for contestant in list(processes):
            attempt(contestant, functools.partial(finish, contestant))
    for contestant in memory:
        network, own = networks.get(contestant.network), facts[contestant]
        parameters = own.parameters if network is None else _count(network, contestant.form)
        report.results.append(
            Result(contestant, own.device, tuple(times[contestant]), own.first_seconds, memory[contestant], parameters)
        )


def _count(network, form):
    """What training learns, without the auxiliary heads that inference leaves out."""
    sizes = network.num_classes, network.in_channels
    return summarise(network.variant, *sizes, aux_heads=False).total(form).params


def _source(contestant, network, folder):
    """The file a process builds its network from: arrays, or for onnxruntime an ONNX file; None for one of MindCV's."""
    if network is None:
        return None
    arrays = network.weights[contestant.form]
    if contestant.engine != ONNXRUNTIME:
        return arrays
    path = Path(folder, f"{Path(arrays).stem}_{contestant.precision}.onnx")
    if not path.exists():
        options = GraphOptions(precision=contestant.precision)
        path.write_bytes(build_onnx(network.variant, read_arrays(arrays), options).SerializeToString())
    return str(path)


def _check_agreement(contestant, found, logits):
    """Keep the first contestant's logits; raise when another's differ, or some are not finite."""
    if not np.isfinite(found).all():
        raise BrokenDown("its logits are not finite")
    first, expected = logits.setdefault((contestant.network, contestant.batch_size), (contestant, found))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if difference > max(_AGREEMENT[own.precision] for own in (first, contestant)):
        raise BrokenDown(f"its logits differ from the first contestant's by {difference:.1e} of the largest")
