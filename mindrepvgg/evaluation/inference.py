"""A network as a function of arrays, as everything that evaluates one takes it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.data.normalize import Normalize
from mindrepvgg.models.preprocessing import Preprocessing

ArrayFunction = Callable[[np.ndarray], np.ndarray]


def as_function(net: nn.Cell | ArrayFunction, pixels: Preprocessing | None = None) -> ArrayFunction:
    """A network as a function of arrays; what is one already is returned as it is.

    Args:
        net: a network, whose mode, training or inference, stays as it is; or a function.
        pixels: a network's images are uint8 (N, H, W, C), and are normalised with this on its device. None: they are
            normalised already, float32 (N, C, H, W).

    Returns:
        A function of a batch of images that returns their logits (N, classes).
    """
    if not isinstance(net, nn.Cell):
        return net
    if pixels is None:
        return lambda images: net(Tensor(images)).asnumpy()
    # A graph of its own, because others may have compiled the network's.
    normalize = _normalize(pixels)
    return lambda images: net(normalize(Tensor(images))).asnumpy()


@functools.lru_cache(maxsize=1)
def _normalize(preprocessing):
    """The cell that normalises, compiled once for all the validations of a run."""
    return Normalize(preprocessing)
