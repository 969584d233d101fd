"""RepOptimizer: one convolution a block, trained as the linear addition of branches that its scales stand for.

The gradients of the blocks' kernels are multiplied, each element by its own constant, before decay and momentum, in the
one compiled step. The optimizers here are those of `optim` with that multiplication. They are classes of their own, so
that a step without it has nothing of it. Source: RepOptimizer, arXiv:2205.15242.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindrepvgg.errors import RecipeError
from mindrepvgg.models.scales import INITIAL, NONE, scale_names, scale_shapes
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.linear_addition import RepOptBlock, Scales, gradient_multiplier
from mindrepvgg.training.adamw import AdamW
from mindrepvgg.weights.scales import AUTHORS, check_scales, initial_scales, read_scales

# What the names of the multipliers begin with.
_PREFIX = "multiplier"


def recipe_scales(recipe, resuming=False) -> dict[str, np.ndarray] | None:
    """The scales that a recipe's network is to be trained with, by name; None: RepOptimizer does not train it.

    Args:
        recipe: the recipe.
        resuming: the scales will be those of a checkpoint, whose run's file may be gone: these only hold their place.

    Raises:
        RecipeError: the network needs scales, or the word `none`, and the recipe has neither.
        CheckpointError: the recipe's file cannot be read, or holds those of another network.
    """
    if not recipe.uses_repoptimizer:
        has_scales = recipe.variant.is_family and scale_shapes(recipe.variant)
        if has_scales and not (recipe.scales or recipe.pretrained or resuming):
            raise RecipeError(
                f"{recipe.variant.label} is trained by RepOptimizer, with scales that were searched for: give --scales "
                f"FILE (the authors' are in {AUTHORS}), --scales {INITIAL} for those that a search starts with, or "
                f"--scales {NONE} to train one convolution a block as it is"
            )
        return None
    variant = recipe.variant.family_layout("RepOptimizer")
    if resuming or recipe.scales == INITIAL:
        return initial_scales(variant)
    return read_scales(recipe.scales, variant)


def start_from_scales(net: nn.Cell, scales: Mapping[str, np.ndarray]):
    """Give the blocks' fresh kernels, in place, the values of the linear additions that the scales stand for.

    Args:
        net: fresh, with `RepOptBlock`s in train form.
        scales: by name, see `models.scales.scale_names`; a block's name is its path.
    """
    for path, block in _target_blocks(net).items():
        block.start_from(block_scales(path, scales))


def _target_blocks(net) -> dict[str, RepOptBlock]:
    blocks = {path: block for path, block in rep_blocks(net).items() if isinstance(block, RepOptBlock)}
    if not blocks or any(block.deploy for block in blocks.values()):
        raise RecipeError("RepOptimizer trains RepOpt-VGG's blocks in train form, and the network has none")
    return blocks


def block_scales(path: str, scales: Mapping[str, np.ndarray]) -> Scales:
    """The scales of one block, by its path, out of a network's by name."""
    conv, point, identity = scale_names(path)
    return Scales(scales[conv], scales[point], scales.get(identity))


_multiply = ops.MultitypeFuncGraph("multiply")


@_multiply.register("Tensor", "Tensor")
def _multiply_one(multiplier, gradient):
    return gradient * multiplier


class Multiplied:
    """What an optimizer needs besides, to multiply gradients; comes before the optimizer's class.

    Attributes:
        scales: what the multipliers are made of, by name.
        multipliers: of the blocks' kernels. They follow from the scales, so that checkpoints keep only these.
    """

    POWER = 2
    _ONE = np.float32(1)

    # The optimizer's.
    parameters: Any
    hyper_map: Any

    def prepare(self, net, scales: Mapping[str, np.ndarray]):
        """Make the multipliers; once, before the first call.

        Args:
            net: whose parameters the optimizer has.
            scales: see `start_from_scales`.

        Returns:
            The optimizer.
        """
        self._blocks = {
            block.conv.weight.name: (path, tuple(block.conv.weight.shape))
            for path, block in _target_blocks(net).items()
            if block.conv.weight.requires_grad
        }
        self.scales = dict(scales)
        values = self._values()
        # One for each parameter: a loop over some of them takes the compiler very long.
        self.multipliers = ParameterTuple(
            Parameter(Tensor(values.get(p.name, self._ONE)), f"{_PREFIX}.{p.name}", False) for p in self.parameters
        )
        return self

    def put_back(self, scales: Mapping[str, np.ndarray], source):
        """Take the scales of a checkpoint instead; before the first call.

        Raises:
            CheckpointError: they are not the network's.
        """
        check_scales(scales, {name: np.shape(values) for name, values in self.scales.items()}, source)
        self.scales = dict(scales)
        values = self._values()
        for weight, multiplier in zip(self.parameters, self.multipliers, strict=True):
            if weight.name in values:
                multiplier.set_data(Tensor(values[weight.name]))

    def _values(self):
        return {
            name: gradient_multiplier(block_scales(path, self.scales), shape, self.POWER).astype(np.float32)
            for name, (path, shape) in self._blocks.items()
        }

    def decay_weight(self, gradients):
        """What MindSpore's optimizers do first: here gradients are multiplied before weight decay is added to them."""
        # Not super(): with that, graph mode compiles the backward pass again and again.
        return nn.Optimizer.decay_weight(self, self.hyper_map(_multiply, self.multipliers, gradients))


class RepSGD(Multiplied, nn.SGD):
    """SGD with Nesterov's momentum: d = g M + decay w; v = momentum v + d; w = w - lr (d + momentum v)."""


class RepMomentum(Multiplied, nn.Momentum):
    """SGD with momentum: v = momentum v + (g M + decay w); w = w - lr v."""


class RepAdamW(Multiplied, AdamW):
    """AdamW whose moments are those of g M, with M m' in the place of m' in its step; see `AdamW`."""

    POWER = 1

    def apply(self, eps, decay_factor, rates, gradients):
        """See `AdamW.apply`."""
        gradients = self.hyper_map(_multiply, self.multipliers, gradients)
        of_each = self.parameters, self.moments1, self.moments2, gradients, self.decays, self.multipliers
        if self.is_group_lr:
            return self.hyper_map(ops.partial(self._scaled_update, eps, decay_factor), rates, *of_each)
        return self.hyper_map(ops.partial(self._scaled_update, eps, decay_factor, rates), *of_each)

    def _scaled_update(self, eps, decay_factor, rate, w, m, v, gradient, decay, multiplier):
        # The fused kernel has no place for M beside the moment.
        moment = m * self.beta1 + gradient * (1 - self.beta1)
        square = v * self.beta2 + gradient * gradient * (1 - self.beta2)
        step = moment * multiplier / (ops.sqrt(square) + eps) + decay * decay_factor * w
        ops.assign(w, w - rate * step)
        ops.assign(m, moment)
        ops.assign(v, square)
        return True
