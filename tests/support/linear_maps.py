"""Linear maps with random values, and what PyTorch's float64 convolutions make of them."""

import torch
from torch.nn import functional

from mindrepvgg.reparam.algebra import LinearMap
from support import array, relative_difference

torch.set_num_threads(1)  # two pools of threads on the same cores would wait for each other

EPS = 1e-5


def random_map(rng, out=8, inputs=8, size=(3, 3), groups=1, bias=True, **place):
    kernel = rng.normal(size=(out, inputs // groups, *size))
    return LinearMap(kernel, rng.normal(size=out) if bias else None, groups=groups, **place)


def bn_vectors(rng, channels):
    """A BN with a history: gamma (some negative), beta, mean, variance."""
    gamma = rng.uniform(0.5, 1.5, channels) * rng.choice([1, -1], channels)
    return gamma, rng.normal(size=channels), rng.normal(size=channels), rng.uniform(0.1, 3, channels)


def pictures(rng, channels=8, size=(13, 16)):
    return torch.tensor(rng.normal(size=(2, channels, *size)))


def around(x, padding, value=0.0):
    """X with its border: negative padding cuts, and `value` may be one for each channel."""
    top, bottom, left, right = padding
    value = torch.as_tensor(value, dtype=x.dtype).reshape(1, -1, 1, 1)
    return functional.pad(x - value, (left, right, top, bottom)) + value


def convolved(linear_map, x):
    """What PyTorch computes of a map."""
    found = LinearMap(*linear_map)
    bias = None if found.bias is None else torch.tensor(array(found.bias))
    kernel = torch.tensor(array(found.kernel))
    return functional.conv2d(around(x, found.padding), kernel, bias, found.stride, 0, found.dilation, found.groups)


def batch_norm(y, vectors, eps=EPS):
    gamma, beta, mean, var = map(torch.tensor, vectors)
    return functional.batch_norm(y, mean, var, gamma, beta, training=False, eps=eps)


def error(linear_map, expected, x):
    return relative_difference(convolved(linear_map, x), expected)
