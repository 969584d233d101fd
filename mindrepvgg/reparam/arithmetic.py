"""Structural re-parameterisation as plain arithmetic: three branches with BN fold into one 3x3 convolution.

The formulas are written once, with operators that NumPy arrays and MindSpore tensors share. `fuse_branches` runs on
either. So the block's differentiable kernel and the exact float64 fusion of a finished network are the same formulas.
Source: RepVGG, section 3.3 and figure 4, arXiv:2101.03697.
"""

from __future__ import annotations

import numpy as np

BN_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")

# Output channels are fused a few at a time: in float64, a large kernel's copies would fill caches and memory.
_CHANNELS_AT_ONCE = 64


def identity_kernel(channels: int, groups: int = 1) -> np.ndarray:
    """The 1x1 convolution that returns its input: output i takes input i.

    Args:
        channels: inputs and outputs.
        groups: the convolution's groups. Input i is number i % (channels // groups) of its group.

    Returns:
        (channels, channels // groups, 1, 1) float64.

    Raises:
        ValueError: `groups` does not divide `channels`.
    """
    if channels % groups:
        raise ValueError(f"channels (={channels}) must be divisible by groups (={groups})")
    per_group = channels // groups
    kernel = np.zeros((channels, per_group, 1, 1))
    kernel[np.arange(channels), np.arange(channels) % per_group] = 1
    return kernel


def fold(kernel, gamma, beta, mean, var, eps):
    """Fold a BN into the convolution before it, for any array type: K * gamma / sigma, beta - mean * gamma / sigma.

    Args:
        kernel: (out, in // groups, kh, kw).
        gamma, beta, mean, var: (out,); var is the moving variance, and sigma = sqrt(var + eps).
        eps: the BN's epsilon.

    Returns:
        The kernel, of the same shape, and the bias (out,), both in the arguments' type.
    """
    scale = gamma / _root(var + eps)
    return kernel * scale.reshape((-1, 1, 1, 1)), beta - mean * scale


def _root(x):
    """The square root of any array type. Not x ** 0.5: MindSpore's power gives other last bits in a process's first
    steps than later, and a resumed run would not repeat the one that was stopped.
    """
    return x.sqrt() if hasattr(x, "sqrt") else np.sqrt(x)


def fuse_branches(dense, pointwise, identity, add_to_centre):
    """Fuse a block's branches into one kernel and one bias, for any array type.

    Args:
        dense, pointwise: each branch's arguments of `fold` as a tuple, with kernels (out, in // groups, 3, 3) and (out,
            in // groups, 1, 1).
        identity: the same with `identity_kernel`; None where the block has no such branch.
        add_to_centre: (3x3 kernel, 1x1 kernel) -> their sum, the small one added to the centre of the large one.

    Returns:
        Kernel (out, in // groups, 3, 3) and bias (out,).
    """
    kernel, bias = fold(*dense)
    for branch in (pointwise,) if identity is None else (pointwise, identity):
        branch_kernel, branch_bias = fold(*branch)
        kernel = add_to_centre(kernel, branch_kernel)
        bias = bias + branch_bias
    return kernel, bias


def add_1x1(kernel, kernel_1x1):
    """Add a 1x1 kernel to the centre of a 3x3 kernel, in place: `fuse_branches`'s addition for NumPy arrays."""
    kernel[:, :, 1:2, 1:2] += kernel_1x1
    return kernel


def fold_bn(kernel, gamma, beta, mean, var, eps):
    """Fold a BN into the bias-free convolution before it: K * gamma / sigma, beta - mean * gamma / sigma.

    Args:
        kernel: (out, in // groups, kh, kw).
        gamma, beta, mean, var: (out,); var is the moving variance.
        eps: the BN's epsilon.

    Returns:
        The kernel, of the same shape, and the bias (out,), both float64.

    Raises:
        ValueError: a vector's length is not the kernel's `out`, or a variance is negative; the message names both.

    Source: RepVGG, section 3.3, arXiv:2101.03697.
    """
    return fold(*_checked_branch("convolution", kernel, (gamma, beta, mean, var), eps))


def fuse_block(params: dict, eps: float | dict[str, float], dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Fuse one block, given its parameters by their names within the block; computed in float64.

    Args:
        params: `rbr_dense.conv.weight` (out, in // groups, 3, 3), `rbr_1x1.conv.weight` (out, in // groups, 1, 1), and
            for both `.bn.{gamma,beta,moving_mean,moving_variance}` (out,); with an identity branch also
            `rbr_identity.{gamma,...}`.
        eps: the BN's epsilon, or a dict of them by branch.
        dtype: what the results are rounded to at the end.

    Returns:
        Kernel (out, in // groups, 3, 3) and bias (out,).

    Raises:
        ValueError: a parameter is missing or of the wrong shape.
    """
    of = eps if isinstance(eps, dict) else dict.fromkeys(("rbr_dense", "rbr_1x1", "rbr_identity"), eps)
    dense = _branch(params, "rbr_dense", of["rbr_dense"], (3, 3))
    pointwise = _branch(params, "rbr_1x1", of["rbr_1x1"], (1, 1))
    if dense[0].shape[:2] != pointwise[0].shape[:2]:
        raise ValueError(f"rbr_dense {dense[0].shape} and rbr_1x1 {pointwise[0].shape} have other channels or groups")
    identity = None
    if "rbr_identity.gamma" in params:
        out, per_group = dense[0].shape[:2]
        kernel = identity_kernel(out, out // per_group)
        identity = _checked_branch("rbr_identity", kernel, _bn_vectors(params, "rbr_identity"), of["rbr_identity"])
    kernel, bias = np.empty(dense[0].shape, dtype), np.empty(dense[0].shape[:1], dtype)
    for start in range(0, len(kernel), _CHANNELS_AT_ONCE):
        chunk = slice(start, start + _CHANNELS_AT_ONCE)
        parts = [
            branch and (*(array[chunk] for array in branch[:-1]), branch[-1]) for branch in (dense, pointwise, identity)
        ]
        kernel[chunk], bias[chunk] = fuse_branches(parts[0], parts[1], parts[2], add_1x1)
    return kernel, bias


def _branch(params, name, eps, size):
    """A branch's `fold` arguments, float64; its kernel must be of `size`."""
    kernel = _get(params, f"{name}.conv.weight")
    if kernel.ndim != 4 or kernel.shape[2:] != size:
        expected = ", ".join(map(str, ("out", "in // groups", *size)))
        raise ValueError(f"{name}.conv.weight has shape {kernel.shape}, expected ({expected})")
    return _checked_branch(name, kernel, _bn_vectors(params, f"{name}.bn"), eps)


def _bn_vectors(params, prefix):
    return tuple(_get(params, f"{prefix}.{leaf}") for leaf in BN_LEAVES)


def _get(params, name):
    if name not in params:
        raise ValueError(f"the block has no parameter {name}; it is not in train form")
    return np.asarray(params[name])


def _checked_branch(name, kernel, vectors, eps):
    """`fold`'s arguments, after checking that the BN fits the kernel; the products come out in float64.

    A float64 vector times a kernel of any type is float64: a copy of the kernel would only cost time and memory.
    """
    kernel = np.asarray(kernel)
    vectors = tuple(np.asarray(vector, np.float64) for vector in vectors)
    for leaf, vector in zip(BN_LEAVES, vectors, strict=True):
        if vector.shape != kernel.shape[:1]:
            raise ValueError(f"{name}: BN {leaf} has shape {vector.shape}, the kernel's outputs are {kernel.shape[:1]}")
    if (vectors[3] < 0).any():
        raise ValueError(f"{name}: the BN's moving variance is negative ({vectors[3].min():g}): damaged statistics")
    return (kernel, *vectors, float(eps))
