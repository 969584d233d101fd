"""A benchmark of inference: networks by form, engine, precision and batch size, measured side by side.

- Time: of one call, with the images in the host's memory, until the logits are an array of the host. Copying the logits
  counts, and so does copying the images, where an engine copies them in each call.
- First call: the graph is built in it; for onnxruntime and OpenVINO it includes opening the file.
- Processes: each contestant has one of its own, so that its memory can be told and no framework meets another's threads
  or settings. The contestants of one batch size are alive together and take turns, see `turns`.
- Speed ratio: the median of the rounds' ratios.
- float16: MindSpore's amp level O3, the float16 export under onnxruntime, half-precision tensors in PyTorch.
- bfloat16: the float32 file under OpenVINO, with its hint.
- An exported file is run as it is, in its own precision, at its own batch and size where these are fixed.
- Memory: the most that a contestant's process held, beyond what it held with its framework loaded; on an NPU, what
  MindSpore allocated there.

This has run on CPUs only. Where an NPU takes one process at a time, `alone` is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindrepvgg.deployment.engine import RUNS, is_exported, open_engine
from mindrepvgg.deployment.engine_base import MINDSPORE, ONNXRUNTIME, OPENVINO
from mindrepvgg.deployment.exported import precision_of
from mindrepvgg.deployment.graph import GraphOptions, build_onnx, require_onnx
from mindrepvgg.errors import UserError
from mindrepvgg.measure.contestants import Network, compete, filled_network, read_arrays
from mindrepvgg.measure.report import Report, Result
from mindrepvgg.measure.settings import FILE, PRECISIONS, REFERENCE, TORCH, TORCH_COMPILED, Contestant, Settings
from mindrepvgg.measure.worker import BrokenDown, Worker
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.summary import summarise
from mindrepvgg.models.variants import DEPLOY, TRAIN
from mindrepvgg.reparam.compare import difference
from mindrepvgg.runtime.optional import require_optional
from mindrepvgg.runtime.timing import turns
from mindrepvgg.text import nearest, quoted

# What a network's logits may differ by between contestants, over the largest. Loose, because NPUs round float32
# convolutions; a network that computes something else differs by about the largest itself.
# Two engines round the integers of an INT8 file differently; "" is a file that does not tell its precision.
_AGREEMENT = {"float32": 1e-2, "float16": 1e-1, "bfloat16": 2e-1, "int8": 3e-1, "": 3e-1}
# Seconds before a turn: PyTorch's threads spin for some milliseconds after their call.
_REST = 0.05


def measure(settings: Settings, show_progress=False) -> Iterator[Report]:
    """Measure all contestants.

    Contestants that compute the same network must agree in their logits before anything is timed. A contestant that
    does not agree, or breaks down, is left out with its reason.

    Args:
        settings: what to measure, and how.
        show_progress: whether to show a bar on a terminal.

    Yields:
        The report, which grows: after each batch size, with `alone` after each contestant.

    Raises:
        UserError: there is nothing to measure, an optional package is missing, or a network is unknown.
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
    """Raise UserError for an engine that is not installed, or a network that MindCV does not have."""
    if ONNXRUNTIME in settings.engines:
        require_onnx()
    if OPENVINO in settings.engines:
        require_optional("openvino", "openvino", "the engine openvino")
        require_optional("onnx", "onnx", "the engine openvino")
    for engine in (TORCH, TORCH_COMPILED):
        if engine in settings.engines:
            require_optional("torch", "torch", f"the engine {engine}")
    if settings.baselines:
        import mindcv

        for name in settings.baselines:
            if name not in mindcv.list_models():
                near = nearest(name, mindcv.list_models())
                hint = f"; did you mean {near}?" if near else ""
                raise UserError(f"baselines (={quoted(name)}) must be networks of MindCV, as {REFERENCE}{hint}")


def _prepare(settings, folder) -> dict[str, Network]:
    """Write each network's arrays into files, by form: all contestants of a network get the same numbers."""
    from mindrepvgg.models.parameters import network_arrays
    from mindrepvgg.models.synthetic import parameter_values
    from mindrepvgg.reparam.deploy import to_deploy
    from mindrepvgg.weights.load import load_weights

    networks = {label: _exported(label) for label in settings.ckpt_paths if is_exported(label)}
    checkpoints = [label for label in settings.ckpt_paths if label not in networks]
    for number, label in enumerate((*settings.models, *checkpoints)):
        if number < len(settings.models):
            variant = variants.find(label)
            shapes = parameter_shapes(variant, TRAIN, aux_heads=False)
            # The rule keeps the signal alive: with other weights, float16 would be compared by zeros or infinities.
            net = filled_network(Network(variant, 1000, 3, {}), TRAIN, parameter_values(shapes))
        else:
            net = load_weights(label)
            if net.variant.features:
                raise UserError(f"{label} gives maps, and what is measured are networks that classify")
            if net.variant.family_layout("measuring a checkpoint").aux_heads:
                net.drop_aux_heads()
        files = {}
        for form in settings.forms:
            if form == DEPLOY or not net.deploy:
                chosen = to_deploy(net) if form == DEPLOY and not net.deploy else net
                files[form] = str(Path(folder, f"{number}_{form}.npz"))
                np.savez(files[form], **network_arrays(chosen))
        networks[label] = Network(net.variant, net.num_classes, net.in_channels, files)
    return networks


def _exported(path) -> Network:
    """Read what an exported file tells, with the first engine that runs it."""
    engine = open_engine(path)
    if engine.gives_maps or not engine.in_channels:
        raise UserError(f"{path} cannot be measured: it gives maps, or leaves the channels of its input open")
    variant = engine.description.variant if engine.description else None
    facts = variant, engine.num_classes, engine.in_channels, {FILE: str(path)}
    sizes = engine.batch_size, engine.image_size
    return Network(*facts, precision_of(engine.metadata), engine.preprocesses, *sizes)


def _plan(settings, networks) -> tuple[list[Contestant], list[str]]:
    """Return the combinations to measure, ordered by batch size, and a line for each kind that is left out."""
    left_out = []
    files = {label: network for label, network in networks.items() if FILE in network.weights}
    networks = {label: network for label, network in networks.items() if label not in files}
    for engine in (ONNXRUNTIME, OPENVINO):
        if engine in settings.engines and TRAIN in settings.forms and networks:
            left_out.append(f"train form under {engine}: only the deploy form is exported")
    for engine, precision in itertools.product(settings.engines, settings.precisions):
        if precision not in PRECISIONS[engine] and networks:
            left_out.append(f"{precision} under {engine}: it computes in {' and '.join(PRECISIONS[engine])}")
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
            if form in network.weights and precision in PRECISIONS[engine]
            if form != TRAIN or engine not in (ONNXRUNTIME, OPENVINO)
        ]
    contestants += _plan_files(settings, files, left_out)
    contestants.sort(key=lambda contestant: settings.batch_sizes.index(contestant.batch_size))
    if not contestants:
        raise UserError(f"nothing to measure: {'; '.join(left_out)}")
    return contestants, left_out


def _plan_files(settings, files, left_out):
    """Return the contestants of the exported files; add to `left_out` what their fixed sizes rule out."""
    contestants = []
    for label, network in files.items():
        runs = RUNS[Path(label).suffix]
        engines = [engine for engine in settings.engines if engine in runs] or [runs[0]]
        side = settings.image_size
        if network.image_size not in (None, (side, side)):
            height, width = network.image_size
            hint = f"give --image_size {height}" if height == width else "only square images are measured"
            left_out.append(f"{label}: it takes {height}x{width}; {hint}")
            continue
        for batch_size in settings.batch_sizes:
            if network.batch_size not in (None, batch_size):
                left_out.append(f"{label}, batch {batch_size}: its batch is fixed at {network.batch_size}")
                continue
            for engine in engines:
                contestants.append(Contestant(label, FILE, engine, network.precision, batch_size))
                if engine == OPENVINO and "bfloat16" in settings.precisions and network.precision == "float32":
                    contestants.append(Contestant(label, FILE, engine, "bfloat16", batch_size))
    return contestants


def _groups(contestants, alone):
    """Return who takes turns with whom: all of a batch size, or everybody alone."""
    if alone:
        return [[contestant] for contestant in contestants]
    grouped = itertools.groupby(contestants, key=lambda contestant: contestant.batch_size)
    return [list(group) for _, group in grouped]


def _compete(report, group, networks, folder, logits, update):
    """Measure the contestants of a group in turns, and add them to the report.

    Args:
        report: what was measured so far.
        group: the contestants.
        networks: label -> `Network`.
        folder: where files for the contestants are written.
        logits: (network, batch size) -> the first contestant and its logits, which the others must agree with.
        update: called after each step of a contestant.
    """
    settings, facts, memory, differs = report.settings, {}, {}, {}
    times = {contestant: [] for contestant in group}
    with contextlib.ExitStack() as stack:
        workers: dict[Contestant, Worker] = {}

        @contextlib.contextmanager
        def step(contestant):
            """Take a contestant out of the running when it breaks down inside of the block."""
            try:
                yield
            except (BrokenDown, UserError) as error:
                if worker := workers.pop(contestant, None):
                    worker.close()
                report.left_out.append(f"{contestant.format()}: {error}")
                report.failed = True
            update()

        for contestant in group:  # one after the other: compilation takes all cores
            with step(contestant):
                network = _network(networks, contestant)
                source = _source(contestant, network, folder)
                workers[contestant] = worker = Worker(compete, contestant, network, source, settings)
                stack.callback(worker.close)
                facts[contestant] = worker.answer()
                if network:
                    differs[contestant] = _check_agreement(contestant, facts[contestant].logits, logits)
        for contestant, counts in turns(workers, settings.rounds, settings.warmup, _REST):
            with step(contestant):
                seconds = workers[contestant].ask("call")
                if counts:
                    times[contestant].append(seconds)
        for contestant in list(workers):
            with step(contestant):
                memory[contestant] = workers[contestant].ask("memory")
    for contestant in memory:
        network, own = _network(networks, contestant), facts[contestant]
        parameters = own.parameters if network is None else _count(network, contestant.form)
        report.results.append(
            Result(
                contestant,
                own.device,
                tuple(times[contestant]),
                own.first_seconds,
                memory[contestant],
                parameters,
                differs.get(contestant),
            )
        )


def _network(networks, contestant) -> Network | None:
    """Return a contestant's network; None for one of MindCV's, which may have the name of one of ours."""
    return networks[contestant.network] if contestant.form else None


def _count(network, form):
    """Count the numbers that training learns, without auxiliary heads, which inference leaves out; None: not known."""
    if network.variant is None:
        return None
    form = DEPLOY if form == FILE else form
    sizes = network.num_classes, network.in_channels
    return summarise(network.variant, *sizes, aux_heads=False).total(form).params


def _source(contestant, network, folder):
    """Return the file that a process builds its network from, see `compete`."""
    if network is None:
        return None
    arrays = network.weights[contestant.form]
    if contestant.form == FILE or contestant.engine not in (ONNXRUNTIME, OPENVINO):
        return arrays
    precision = "float16" if contestant.precision == "float16" else "float32"
    path = Path(folder, f"{Path(arrays).stem}_{precision}.onnx")
    if not path.exists():
        options = GraphOptions(precision=precision)
        path.write_bytes(build_onnx(network.variant, read_arrays(arrays), options).SerializeToString())
    return str(path)


def _check_agreement(contestant, found, logits) -> float:
    """Keep the first contestant's logits; raise BrokenDown where another's differ, or some are not finite.

    Returns:
        How far the logits are from the first contestant's, over the largest of these.
    """
    if not np.isfinite(found).all():
        raise BrokenDown("its logits are not finite")
    first, expected = logits.setdefault((contestant.network, contestant.batch_size), (contestant, found))
    _, max_rel = difference(expected, found)
    if max_rel > max(_AGREEMENT[own.precision] for own in (first, contestant)):
        raise BrokenDown(f"its logits differ from the first contestant's by {max_rel:.1e} of the largest")
    return max_rel
