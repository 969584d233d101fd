"""Latency and throughput of inference by network, form, engine, precision and batch size, measured side by side.

A time is that of one call: the images lie in the host's memory, and the logits come back as an array of the host. That
waits for the device, so that copying the logits, and the images where the engine copies them in each call, counts.
Each contestant is a process of its own, so that its memory can be told and no framework meets another's threads or
settings. Those of one batch size are alive together and take turns in rounds of shuffled order: a slow spell of the
machine meets all of them. A speed ratio is the median of the rounds' ratios.
Building the graph is apart: it is in the first call, which for onnxruntime includes making the session.
float16 is MindSpore's amp level O3, the float16 export under onnxruntime, and half-precision tensors in PyTorch.
Memory is what a contestant's process held at most, beyond what it held with its framework loaded; on an NPU, what
MindSpore allocated there. This has run on CPUs only; where an NPU takes one process at a time, `alone` is needed.
"""

from .contest import measure
from .report import ENGINES, PUBLISHED_TOP1, Contestant, Report, Result, Settings, check_plot
from .torch_network import torch_eager, torch_network

__all__ = [
    "ENGINES",
    "PUBLISHED_TOP1",
    "Contestant",
    "Report",
    "Result",
    "Settings",
    "check_plot",
    "measure",
    "torch_eager",
    "torch_network",
]
