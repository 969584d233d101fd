"""Parameters that are the same on every machine, whatever its generators: for checks and benchmarks."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping

import numpy as np

# A leaf of the BN after a block's sum, in a network of the family.
_AFTER_SUM = re.compile(r"stage\d(\.\d+)?\.bn\.\w+")


def uniform(name: str, shape) -> np.ndarray:
    """Numbers in [-1, 1) as float64 that depend on the name alone, on every machine and in every version of NumPy.

    Philox's raw stream is guaranteed to stay the same. The distributions that NumPy draws from it are not.
    """
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((raw >> 11) * 2.0**-52 - 1).reshape(shape)


def parameter_value(name: str, shape) -> np.ndarray:
    """A float32 array for the parameter called `name`.

    Weights have He's variance; BN has a history. Rounding must not grow with depth, or a sound device could not be told
    from a broken one. So the identity weighs more than the other branches, and BN keeps four in five of a ReLU's inputs
    positive, because an input that changes sides switches its gradient on or off. SE lets most of the map pass.
    A QARepVGG's identity has no BN, so its 1x1, which has none either, weighs less; the BN after the sum is as an
    identity's, and shifts as the large branch's does elsewhere. A linear addition's scales make up for its BN's gamma.
    """
    numbers = uniform(name, shape)
    leaf = name.rpartition(".")[2]
    after_sum = _AFTER_SUM.fullmatch(name)
    if leaf == "weight" and len(shape) == 1:
        numbers = 4 + numbers
    elif leaf == "weight":
        numbers *= math.sqrt(6 / np.prod(shape[1:])) / (4 if name.endswith("rbr_1x1.weight") else 1)
    elif leaf == "gamma":
        numbers = (4 + numbers) / (4 if after_sum or "rbr_identity" in name or "rbr_skip" in name else 16)
    elif leaf == "moving_variance":
        numbers = 1 + numbers / 2
    elif name.endswith(("rbr_dense.bn.beta", "rbr_conv.0.bn.beta")) or (after_sum and leaf == "beta"):
        numbers = 1 + numbers / 10
    elif name.endswith("se.up.bias"):
        numbers = 2 + numbers
    else:
        numbers /= 10
    return numbers.astype(np.float32)


def parameter_values(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays for a network's parameters, see `parameter_value`; `shapes` as `shapes.parameter_shapes` has them."""
    return {name: parameter_value(name, shape) for name, shape in shapes.items()}
