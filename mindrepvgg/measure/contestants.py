"""What a contestant of a benchmark does in its process: it builds a network under an engine and calls it when asked."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mindrepvgg.deployment.engine_base import MINDSPORE, ONNXRUNTIME, OPENVINO
from mindrepvgg.measure.settings import FILE, TORCH_COMPILED
from mindrepvgg.measure.torch_network import torch_call, torch_network
from mindrepvgg.measure.worker import host_memory
from mindrepvgg.runtime.timing import timed


@dataclass(frozen=True)
class Network:
    """What a process needs to build a network of the family, or to call an exported file.

    Attributes:
        variant: the layout; None for a file that does not describe itself.
        num_classes, in_channels: the network's.
        weights: form -> file of its arrays; FILE -> the exported file.
        precision: of an exported file, see `Contestant`.
        preprocesses: whether it takes uint8 (N, H, W, C).
        batch_size, image_size: where it fixes them; None for any.
    """

    variant: Any
    num_classes: int | None
    in_channels: int
    weights: dict[str, str]
    precision: str = ""
    preprocesses: bool = False
    batch_size: int | None = None
    image_size: tuple[int, int] | None = None


class Facts(NamedTuple):
    """What a contestant tells once it has made its first call; parameters: of MindCV's networks."""

    device: str
    parameters: int | None
    first_seconds: float
    logits: np.ndarray


class _Prepared(NamedTuple):
    """A contestant in its process: what to call, and how to tell its peak memory in bytes."""

    device: str
    call: Callable
    peak_memory: Callable
    parameters: int | None = None


def compete(contestant, network, source, settings) -> Generator:
    """Build a contestant and answer the requests of a `Worker`.

    Args:
        contestant: a `Contestant`.
        network: a `Network`; None for one of MindCV's.
        source: the file that the network is built from: arrays, for onnxruntime and openvino an ONNX file, or an
            exported file; None for MindCV's.
        settings: the benchmark's `Settings`.

    Yields:
        `Facts` after the first call, then to each "call" its seconds and to each "memory" the peak in bytes.
    """
    if settings.num_threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.num_threads])
    channels = network.in_channels if network else 3
    shape = (contestant.batch_size, channels, settings.image_size, settings.image_size)
    images: np.ndarray = np.random.default_rng(0).standard_normal(shape, np.float32)
    if network and network.preprocesses:
        images = np.random.default_rng(0).integers(0, 256, (shape[0], *shape[2:], channels), np.uint8)
    prepares = {MINDSPORE: _mindspore, ONNXRUNTIME: _onnxruntime, OPENVINO: _openvino}
    prepare = prepares.get(contestant.engine, _torch)
    prepared = prepare(contestant, network, source, images, settings.device_target)
    start = time.perf_counter()
    logits = prepared.call()
    first = time.perf_counter() - start
    request = yield Facts(prepared.device, prepared.parameters, first, np.asarray(logits, np.float32))
    seconds = timed(prepared.call)
    while True:
        request = yield prepared.peak_memory() if request == "memory" else seconds()


def _mindspore(contestant, network, source, images, device_target):
    """Build it under MindSpore in graph mode; half precision is validation's, 'O3' of `precision.set_precision`."""
    import mindspore as ms

    from mindrepvgg.reparam.precision import set_precision
    from mindrepvgg.runtime import device

    if network is None:
        import mindcv
    if contestant.form == FILE:
        from mindrepvgg.deployment.mindir_engine import MindIREngine
    target = device.setup(device_target)
    peak_memory = host_memory() if target == "CPU" else ms.runtime.max_memory_allocated
    if contestant.form == FILE:
        file = MindIREngine(source)
        return _Prepared(target, lambda: file(images), peak_memory)
    if network is None:
        net = mindcv.create_model(contestant.network)
    else:
        net = filled_network(network, contestant.form, read_arrays(source))
    if contestant.precision == "float16":
        set_precision(net, "O3")
    net.set_train(False)
    batch = ms.Tensor(images)
    parameters = sum(parameter.size for parameter in net.trainable_params())
    return _Prepared(target, lambda: net(batch).asnumpy(), peak_memory, parameters)


def _onnxruntime(contestant, network, source, images, device_target):
    """Build it under onnxruntime on the CPU."""
    import onnxruntime  # noqa: F401 - before memory is counted

    from mindrepvgg.deployment.engine import OnnxEngine

    peak_memory = host_memory()
    engine = functools.cache(lambda: OnnxEngine(source, len(os.sched_getaffinity(0))))
    return _Prepared("CPU", lambda: engine()(images), peak_memory)


def _openvino(contestant, network, source, images, device_target):
    """Build it under OpenVINO on the CPU, in float32 unless the contestant is one of bfloat16."""
    import openvino  # noqa: F401 - before memory is counted

    from mindrepvgg.deployment.openvino_engine import OpenVinoEngine

    peak_memory = host_memory()
    precision = "bfloat16" if contestant.precision == "bfloat16" else "float32"
    engine = functools.cache(lambda: OpenVinoEngine(source, len(os.sched_getaffinity(0)), precision))
    return _Prepared("CPU", lambda: engine()(images), peak_memory)


def _torch(contestant, network, source, images, device_target):
    """Build it under PyTorch on the CPU, eager or compiled."""
    # This package sets it for MindSpore when it is imported; PyTorch's convolutions would be slower with it.
    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    peak_memory = host_memory()
    net = torch_network(network.variant, read_arrays(source))
    compiled = contestant.engine == TORCH_COMPILED
    return _Prepared("CPU", torch_call(net, images, contestant.precision, compiled), peak_memory)


def filled_network(network, form, arrays):
    """Build the MindSpore network of these arrays, which become its memory."""
    from mindrepvgg.models.repvgg import build

    facts = network.variant, network.num_classes, network.in_channels, form
    return build(*facts, arrays, aux_heads=False, source=network.variant.name, copy=False)


def read_arrays(path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file by name."""
    with np.load(path) as arrays:
        return dict(arrays)
