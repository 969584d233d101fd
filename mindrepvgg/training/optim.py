"""Which parameters decay, and the optimizer over them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from mindspore import nn

from mindrepvgg.text import table
from mindrepvgg.training.adamw import AdamW
from mindrepvgg.training.custom_l2 import is_block_kernel
from mindrepvgg.training.layer_decay import RateTable, ScaledRate, rate_factors
from mindrepvgg.training.repoptimizer import RepAdamW, RepMomentum, RepSGD

_NORM = ("gamma", "beta")
_STATISTICS = ("moving_mean", "moving_variance")

# The scales of a linear addition's convolutions. Its third one, of the input, decays as a kernel does.
_SCALES = ("scale_conv", "scale_1x1")


def decay_groups(net, rule: str) -> tuple[list, list]:
    """Split a network's trainable parameters into those with weight decay and those without.

    rule: 'paper': every bias and the BN of the 3x3 and 1x1 branches (and of auxiliary heads) go without, the identity
    BN's gamma decays; 'norm_and_bias': every bias and every BN go without; 'norm': every BN goes without; 'all': all
    decay; 'custom_l2': as 'paper', without the blocks' kernels, for which the loss has `CustomL2`.
    The scales of a linear addition's convolutions decay with 'all' only; that of its input decays.
    Source of 'paper': the authors' README on ImageNet training, and their `set_weight_decay`, as in RepOptimizer.
    """
    decayed, free = [], []
    for parameter in net.trainable_params():
        (decayed if _decays(parameter.name, rule) else free).append(parameter)
    return decayed, free


def _decays(name, rule):
    if rule == "all":
        return True
    if rule == "custom_l2":
        return not is_block_kernel(name) and _decays(name, "paper")
    parts = name.split(".")
    if rule == "paper" and parts[-2:] == ["rbr_identity", "gamma"]:
        return True
    if parts[-2:-1] and parts[-2] in _SCALES:
        return False
    return parts[-1] not in _NORM and (rule == "norm" or parts[-1] != "bias")


class ParameterRow(NamedTuple):
    """One parameter of a network, with the weight decay it is trained with; None: it is frozen.

    rate_factor: what the learning rate is multiplied by, see `rate_factors`.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    weight_decay: float | None
    rate_factor: float = 1.0


def parameter_groups(net, weight_decay: float, rule: str, layer_decay: float = 1.0) -> list[ParameterRow]:
    """A row for each parameter in the network's order, BN's moving statistics left out.

    rule: see `decay_groups`. layer_decay: see `rate_factors`.
    """
    factors = rate_factors(net, layer_decay)
    return [
        ParameterRow(
            parameter.name,
            tuple(parameter.shape),
            math.prod(parameter.shape),
            weight_decay * _decays(parameter.name, rule) if parameter.requires_grad else None,
            factors.get(parameter.name, 1.0),
        )
        for parameter in net.get_parameters()
        if parameter.name.rpartition(".")[2] not in _STATISTICS
    ]


def format_parameter_groups(rows: Iterable[ParameterRow]) -> str:
    """The rows as a table of name, shape and weight decay; the last line counts what each weight decay falls on.

    Where learning rates differ, their factors have a column.
    """
    rows = list(rows)
    parameters, elements = Counter(), Counter()
    headings, scaled = ("parameter", "shape", "weight decay"), any(row.rate_factor != 1 for row in rows)
    cells = [(*headings, "lr factor") if scaled else headings]
    for row in rows:
        parameters[row.weight_decay] += 1
        elements[row.weight_decay] += row.size
        factor = (f"{row.rate_factor:.4g}",) if scaled else ()
        cells.append((row.name, "x".join(map(str, row.shape)), _decay_in_words(row.weight_decay), *factor))
    totals = [
        f"{_decay_in_words(decay)}: {parameters[decay]} ({elements[decay]:,})"
        for decay in sorted(parameters, key=lambda decay: -1 if decay is None else decay, reverse=True)
    ]
    return f"{table(cells, '<')}\nparameters (elements) a weight decay: {', '.join(totals)}"


def _decay_in_words(weight_decay):
    return "frozen" if weight_decay is None else f"{weight_decay:g}"


def build_optimizer(
    net: nn.Cell,
    learning_rates: np.ndarray,
    *,
    opt: str = "momentum",
    momentum: float = 0.9,
    use_nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_filter: str = "all",
    layer_decay: float = 1.0,
    scales: Mapping[str, np.ndarray] | None = None,
) -> nn.Optimizer:
    """The optimizer over the network's trainable parameters, in their order.

    With g the gradient (times M, with `scales`), lr the step's learning rate, and decay being weight_decay or 0:
        momentum, sgd: v = momentum * v + (g + decay * w); w = w - lr * v. Nesterov's form with g' = g + decay * w:
            w = w - lr * (g' + momentum * v)
        adamw: see `AdamW`

    Args:
        net: the network.
        learning_rates: (steps,) float, the rate of every step of the run.
        opt: momentum, sgd or adamw.
        momentum, use_nesterov: of momentum and sgd.
        betas, eps: of adamw.
        weight_decay: of the parameters that decay.
        weight_decay_filter: which these are, see `decay_groups`.
        layer_decay: below 1, learning rates fall from the head to the stem, see `rate_factors`.
        scales: train the blocks of a RepOpt-VGG as linear additions with these scales, see `repoptimizer`.

    Returns:
        The optimizer. Its own parameters, moments and counts, have names of their own and hold all of its state.

    Raises:
        RecipeError: `layer_decay` is for the networks of this package, `scales` for those with RepOpt-VGG's blocks.
    """
    decayed, free = decay_groups(net, weight_decay_filter)
    # Always in explicit groups: without them MindSpore leaves out every gamma and beta on its own account.
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, weight_decay), (free, 0.0))
        if parameters
    ]
    rates = learning_rates.tolist()
    if layer_decay != 1:
        rates = RateTable(learning_rates)
        groups = _by_rate(groups, rates, rate_factors(net, layer_decay))
    groups.append({"order_params": net.trainable_params()})
    if opt == "adamw":
        optimizer = (RepAdamW if scales else AdamW)(groups, rates, betas, eps)
    elif use_nesterov and momentum:
        # Not nn.Momentum(use_nesterov=True), which on a CPU takes the plain step all the same (2.8 to 2.10).
        optimizer = (RepSGD if scales else nn.SGD)(groups, rates, momentum, nesterov=True)
    else:
        optimizer = (RepMomentum if scales else nn.Momentum)(groups, rates, momentum)
    return optimizer.prepare(net, scales) if scales else optimizer


def _by_rate(groups, table, factors) -> list[dict]:
    """The same groups parted by learning rate."""
    schedules = {factor: ScaledRate(table, factor) for factor in set(factors.values())}
    parted = []
    for group in groups:
        of_factor = defaultdict(list)
        for parameter in group["params"]:
            of_factor[factors[parameter.name]].append(parameter)
        parted += [{**group, "params": some, "lr": schedules[factor]} for factor, some in of_factor.items()]
    return parted
