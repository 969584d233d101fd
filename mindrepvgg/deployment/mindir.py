"""The deploy form as a MindIR or AIR file."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.deployment.graph import GraphOptions
from mindrepvgg.errors import UserError


def write_mindir(net, path: Path, options: GraphOptions, suffix: str) -> Callable | None:
    """Write the deploy form with MindSpore's own exporter.

    Args:
        net: in deploy form; it stays as it was.
        path: the file.
        options: what the file takes and gives.
        suffix: the format: '.mindir' or '.air'.

    Returns:
        The function that a MindIR file computes; None for AIR, which nothing but Ascend's tools reads.

    Raises:
        UserError: MindSpore wrote the weights into further files.
    """
    served = _Served(net, options)
    shape = options.input_shape(net.in_channels, None, None, None)
    kind = ms.uint8 if options.preprocess else ms.float32
    example = Tensor(shape=shape, dtype=kind) if None in shape else Tensor(np.zeros(shape), kind)
    # In a folder of its own: MindSpore makes what it exports read-only, and some formats close the folder to others.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
        written = Path(folder, f"model{suffix}")
        ms.export(served, example, file_name=str(written), file_format=suffix[1:].upper())
        others = [found.name for found in Path(folder).iterdir() if found != written]
        if others:
            raise UserError(
                f"the weights are too many for one {suffix} file: MindSpore wrote {', '.join(others)} as well"
            )
        graph = nn.GraphCell(ms.load(str(written))) if suffix == ".mindir" else None
        os.chmod(written, 0o600)
        shutil.move(written, path)
    return (lambda images: _arrays(graph(Tensor(images)))) if graph else None


def _arrays(outputs):
    """One array, or a tuple of them, as the network gives."""
    return tuple(one.asnumpy() for one in outputs) if isinstance(outputs, tuple) else outputs.asnumpy()


class _Served(nn.Cell):
    """A deploy network with preprocessing, precision and softmax as an exported file has them.

    The parameters keep their names, and `net` stays as it was.
    """

    def __init__(self, net, options):
        super().__init__(auto_prefix=False)  # which would rename the network's own parameters
        self.preprocesses = options.preprocess is not None
        if self.preprocesses:
            self.gain, self.bias = (Tensor(values) for values in options.preprocess.gain_and_bias())
        self.dtype = getattr(ms, options.precision)
        if options.precision == "float16":
            net = copy.deepcopy(net)
            for parameter in net.get_parameters():
                parameter.set_dtype(ms.float16)
        self.net = net
        self.gives_maps = net.variant.features is not None
        self.softmax = nn.Softmax(-1) if options.softmax else None
        self.set_train(False)

    def construct(self, images):
        x = images
        if self.preprocesses:
            x = x.transpose(0, 3, 1, 2).astype(ms.float32) * self.gain + self.bias
        outputs = self.net(x.astype(self.dtype))
        if self.gives_maps:
            return tuple(one.astype(ms.float32) for one in outputs)
        outputs = outputs.astype(ms.float32)
        return outputs if self.softmax is None else self.softmax(outputs)
