"""One contestant of a benchmark in a process of its own: built there, called when asked."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrepvgg.errors import UserError
from mindrepvgg.measure.report import DEPLOY, MINDSPORE, ONNXRUNTIME, TORCH
from mindrepvgg.measure.torch_network import torch_eager, torch_network
from mindrepvgg.models.variants import Variant

_LONGEST_REASON = 200  # characters


@dataclass(frozen=True)
class Network:
    """What a process needs to build a network of the family; weights: form -> file of its arrays."""

    variant: Variant
    num_classes: int
    in_channels: int
    weights: dict[str, str]


class BrokenDown(Exception):
    """A contestant cannot go on; the message says why."""


class Facts(NamedTuple):
    """What a contestant tells once it has made its first call; parameters: of MindCV's networks."""

    device: str
    parameters: int | None
    first_seconds: float
    logits: np.ndarray


class Process:
    """A contestant: built when made, makes one call each time it is asked."""

    def __init__(self, contestant, network, source, settings):
        # Not forked: a framework's threads do not survive that, and its memory would count as the child's.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, contestant, network, source, settings)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def answer(self):
        """What the process sends next. Raises BrokenDown with its reason when it gives up, or dies."""
        try:
            found = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode
            killed = f"was killed by signal {-status}, for want of memory perhaps"
            raise BrokenDown(f"its process {killed if status < 0 else f'ended with {status}'}") from None
        if isinstance(found, BrokenDown):
            raise found
        return found

    def call(self) -> float:
        """Seconds of one call."""
        self._ask("call")
        return self.answer()

    def peak_memory(self) -> int | None:
        """Bytes; what they are of, the package tells."""
        self._ask("memory")
        return self.answer()

    def _ask(self, what):
        with contextlib.suppress(ConnectionError):  # its end is told by the answer
            self._connection.send(what)

    def close(self):
        """End the process: it stops when nobody is there to ask."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Prepared(NamedTuple):
    """A contestant in its process: what to call, and how to tell its peak memory in bytes."""

    device: str
    call: Callable
    peak_memory: Callable
    parameters: int | None = None


def _serve(connection, contestant, network, source, settings):
    """Build a contestant, make its first call, then one for each "call" that is asked for."""
    with open(os.devnull, "w") as nowhere:  # what frameworks print would mix with the results
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    try:
        if settings.num_threads:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.num_threads])
        channels = network.in_channels if network else 3
        shape = (contestant.batch_size, channels, settings.image_size, settings.image_size)
        images = np.random.default_rng(0).standard_normal(shape, np.float32)
        prepare = {MINDSPORE: _mindspore, ONNXRUNTIME: _onnxruntime, TORCH: _torch}[contestant.engine]
        prepared = prepare(contestant, network, source, images, settings.device_target)
        start = time.perf_counter()
        logits = prepared.call()
        first = time.perf_counter() - start
        connection.send(Facts(prepared.device, prepared.parameters, first, np.asarray(logits, np.float32)))
        while True:
            if connection.recv() == "memory":
                connection.send(prepared.peak_memory())
                continue
            start = time.perf_counter()
            prepared.call()
            connection.send(time.perf_counter() - start)
    except EOFError:
        return  # the other side has seen enough
    except Exception as error:  # a framework may fail in any way; what it says belongs into the report
        reason = next((line.strip() for line in str(error).splitlines() if line.strip(" -")), "no message")
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        connection.send(BrokenDown(f"{kind}{reason[:_LONGEST_REASON]}"))


def status_bytes(key) -> int | None:
    """A size of this process in bytes as Linux tells it: 'VmRSS' now, 'VmHWM' at most; None elsewhere.

    Not getrusage's maximum, which a process inherits from the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def host_memory() -> Callable:
    """A function: the most bytes this process has held beyond what it holds now."""
    held = status_bytes("VmRSS")
    return lambda: None if held is None else max(status_bytes("VmHWM") - held, 0)


def _mindspore(contestant, network, source, images, device_target):
    """Under MindSpore in graph mode; half precision as validation has it, 'O3' of `precision.set_precision`."""
    import mindspore as ms

    from mindrepvgg.reparam.precision import set_precision
    from mindrepvgg.runtime import device

    if network is None:
        import mindcv

    target = device.setup(device_target)
    peak_memory = host_memory() if target == "CPU" else ms.runtime.max_memory_allocated
    if network is None:
        net = mindcv.create_model(contestant.network)
    else:
        net = filled_network(network, contestant.form == DEPLOY, read_arrays(source))
    if contestant.precision == "float16":
        set_precision(net, "O3")
    net.set_train(False)
    batch = ms.Tensor(images)
    parameters = sum(parameter.size for parameter in net.trainable_params())
    return _Prepared(target, lambda: net(batch).asnumpy(), peak_memory, parameters)


def _onnxruntime(contestant, network, source, images, device_target):
    """Under onnxruntime on the CPU."""
    import onnxruntime  # noqa: F401 - before memory is counted

    from mindrepvgg.deployment.engine import OnnxEngine

    peak_memory = host_memory()
    engine = functools.cache(lambda: OnnxEngine(source, len(os.sched_getaffinity(0))))
    return _Prepared("CPU", lambda: engine()(images), peak_memory)


def _torch(contestant, network, source, images, device_target):
    """Under PyTorch on the CPU."""
    # Set for MindSpore's sake when this package is imported; it would hold PyTorch's convolutions back.
    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    peak_memory = host_memory()
    net = torch_network(network.variant, read_arrays(source))
    return _Prepared("CPU", torch_eager(net, images, contestant.precision), peak_memory)


def filled_network(network, deploy, arrays):
    """The MindSpore network with these arrays, which become its memory."""
    from mindspore.nn.utils import no_init_parameters

    from mindrepvgg.models.repvgg import build
    from mindrepvgg.weights.checkpoint import load_arrays

    variant = network.variant
    shape = variant.to_dict() if variant.name == "repvgg" else {}
    with no_init_parameters():  # every one of them is about to be filled
        net = build(variant.name, network.num_classes, network.in_channels, deploy, **shape)
    if variant.aux_heads:
        net.drop_aux_heads()
    load_arrays(net, arrays, variant.name, copy=False)
    return net


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name."""
    with np.load(path) as arrays:
        return dict(arrays)
