"""Which parameters decay, and the optimizer over them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindrepvgg.text import table
from mindrepvgg.training.custom_l2 import is_block_kernel
from mindrepvgg.training.layer_decay import RateTable, ScaledRate, rate_factors

_NORM = ("gamma", "beta")
_STATISTICS = ("moving_mean", "moving_variance")


def decay_groups(net, rule: str) -> tuple[list, list]:
    """Split a network's trainable parameters into those with weight decay and those without.

    rule: 'paper': every bias and the BN of the 3x3 and 1x1 branches (and of auxiliary heads) go without, the identity
    BN's gamma decays; 'norm_and_bias': every bias and every BN go without; 'norm': every BN goes without; 'all': all
    decay; 'custom_l2': as 'paper', without the blocks' kernels, for which the loss has `CustomL2`.
    Source of 'paper': the authors' README on ImageNet training, and their `set_weight_decay`.
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
) -> nn.Optimizer:
    """The optimizer over the network's trainable parameters, in their order.

    With g the gradient, lr the step's learning rate, and decay being weight_decay or 0:
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

    Returns:
        The optimizer. Its own parameters, moments and counts, have names of their own and hold all of its state.

    Raises:
        RecipeError: `layer_decay` is for the networks of this package.
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
        return AdamW(groups, rates, betas, eps)
    if use_nesterov and momentum:
        # Not nn.Momentum(use_nesterov=True), which on a CPU takes the plain step all the same (2.8 to 2.10).
        return nn.SGD(groups, rates, momentum, nesterov=True)
    return nn.Momentum(groups, rates, momentum)


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


class AdamW(nn.Optimizer):
    """AdamW with bias correction: w = w - lr * (m' / (sqrt(v') + eps) + decay * w).

    m = beta1 * m + (1 - beta1) * g and v = beta2 * v + (1 - beta2) * g ** 2 are running means of every gradient and of
    its square, from 0 on. After t updates m' = m / (1 - beta1 ** t) and v' = v / (1 - beta2 ** t). The divisors are
    kept as running means of 1, so that they are as exact as the moments; 1 - beta2 ** t in float32 is not.
    Source: arXiv:1711.05101, algorithm 2 with alpha = 1 and eta_t = lr, as in PyTorch.
    """

    # nn.AdamWeightDecay has no bias correction, nn.Adam's decay is part of the gradient, the rate of
    # experimental.optim.AdamW changes only from outside the graph. MindCV's is right, but on a CPU it takes some three
    # times as long to compile and to run as this one, which has the fused kernel of nn.AdamWeightDecay.

    def __init__(self, groups, learning_rates, betas, eps):
        super().__init__(learning_rates, groups)
        self.beta1, self.beta2 = (Tensor([beta], ms.float32) for beta in betas)
        self.eps = eps
        self.decays = tuple(self.group_weight_decay)
        self.moments1 = self.parameters.clone("moment1", init="zeros")
        self.moments2 = self.parameters.clone("moment2", init="zeros")
        self.weight1 = Parameter(Tensor([0], ms.float32), "moment1_weight", requires_grad=False)
        self.weight2 = Parameter(Tensor([0], ms.float32), "moment2_weight", requires_grad=False)
        self.fused = ops.AdamWeightDecay()

    @ms.jit(backend="ms_backend")
    def construct(self, gradients):
        """Update the parameters by their gradients."""
        lr = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        weight1 = self.beta1 * self.weight1 + (1 - self.beta1)
        weight2 = self.beta2 * self.weight2 + (1 - self.beta2)
        ops.assign(self.weight1, weight1)
        ops.assign(self.weight2, weight2)
        # The kernel's step with m and v as they are: the corrections go into its rate, eps and decay.
        root = ops.sqrt(weight2)
        eps, decay_factor = self.eps * root, weight1 / root
        if self.is_group_lr:
            rates = self.hyper_map(ops.partial(self._rate, root, weight1), lr)
            update = ops.partial(self._update, eps, decay_factor)
            return self.hyper_map(update, rates, self.parameters, self.moments1, self.moments2, gradients, self.decays)
        update = ops.partial(self._update, eps, decay_factor, self._rate(root, weight1, lr))
        return self.hyper_map(update, self.parameters, self.moments1, self.moments2, gradients, self.decays)

    def _rate(self, root, weight1, lr):
        # In this order: a run that an older version began goes on bit for bit.
        return lr * root / weight1

    def _update(self, eps, decay_factor, rate, w, m, v, gradient, decay):
        self.fused(w, m, v, rate, self.beta1, self.beta2, eps, decay * decay_factor, gradient)
        return True
