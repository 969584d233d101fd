"""Which parameters decay, and the optimizer over them."""

from __future__ import annotations

from mindspore import nn

_BIASES = ("bias", "beta")
_NORM = ("gamma", "beta")


def decay_groups(net, rule: str) -> tuple[list, list]:
    """Split a network's trainable parameters into those with weight decay and those without.

    rule: 'paper': every bias and the BN of the 3x3 and 1x1 branches (and of auxiliary heads) go without, the identity
    BN's gamma decays; 'norm_and_bias': every bias and every BN go without; 'all': all decay.
    Source of 'paper': the authors' README on ImageNet training, and their `set_weight_decay`.
    """
    decayed, free = [], []
    for parameter in net.trainable_params():
        (decayed if _decays(parameter.name, rule) else free).append(parameter)
    return decayed, free


def _decays(name, rule):
    if rule == "all":
        return True
    parts = name.split(".")
    if rule == "paper" and parts[-2:] == ["rbr_identity", "gamma"]:
        return True
    return parts[-1] not in (*_BIASES, *_NORM)


def build_optimizer(net, learning_rates, momentum=0.9, use_nesterov=False, weight_decay=0.0, weight_decay_filter="all"):
    """SGD with momentum: v = momentum * v + (g + decay * w); w = w - lr * v.

    Nesterov's form with g' = g + decay * w: w = w - lr * (g' + momentum * v).

    learning_rates: (steps,) float, the rate of every step of the run. weight_decay_filter: see `decay_groups`.
    """
    decayed, free = decay_groups(net, weight_decay_filter)
    # Always in explicit groups: without them MindSpore leaves out every gamma and beta on its own account.
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, weight_decay), (free, 0.0))
        if parameters
    ]
    groups.append({"order_params": net.trainable_params()})
    if use_nesterov and momentum:
        # Not nn.Momentum(use_nesterov=True), which on a CPU takes the plain step all the same (2.8 to 2.10).
        return nn.SGD(groups, learning_rates.tolist(), momentum, nesterov=True)
    return nn.Momentum(groups, learning_rates.tolist(), momentum)
