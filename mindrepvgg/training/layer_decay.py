"""Learning rates that fall from the head to the stem, for fine-tuning: early layers have more to lose."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from mindrepvgg.errors import RecipeError


def rate_factors(net: nn.Cell, layer_decay: float) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by.

    Every block is a layer: the last block has the factor layer_decay, the one before it layer_decay ** 2, and the stem,
    in a network of n blocks, layer_decay ** n. Heads have 1. Source: timm's `param_groups_layer_decay`, which counts
    RepVGG so.

    Args:
        net: a network of this package.
        layer_decay: the factor from a layer to the one before it.

    Returns:
        The name of every trainable parameter, and its factor.

    Raises:
        RecipeError: the network does not tell its blocks.
    """
    names = [parameter.name for parameter in net.trainable_params()]
    if layer_decay == 1:
        return dict.fromkeys(names, 1.0)
    if not getattr(getattr(net, "variant", None), "is_family", False):
        raise RecipeError(
            f"layer_decay (={layer_decay}) counts the blocks of this package's networks, and the network is another "
            "one; leave it out"
        )
    blocks = [f"{spec.name}." for spec in net.variant.block_specs()]
    depths = {name: len(blocks) - number for number, name in enumerate(blocks)}
    return {
        name: layer_decay ** next((depth for block, depth in depths.items() if name.startswith(block)), 0)
        for name in names
    }


class RateTable(LearningRateSchedule):
    """The rate of every step of a run: (1,) int32 -> (1,) float32.

    Args:
        rates: (steps,) float; kept as the parameter that MindSpore's optimizers call so too, which a run is resumed by.
    """

    def __init__(self, rates):
        super().__init__()
        self.learning_rate = Parameter(Tensor(rates, ms.float32), "learning_rate")

    def construct(self, global_step):
        """The rate of a step."""
        return ops.gather(self.learning_rate, global_step, 0)


class ScaledRate(LearningRateSchedule):
    """A table's rates times a factor: (1,) int32 -> (1,) float32.

    Args:
        table: a `RateTable`, which several of these share.
        factor: what its rates are multiplied by.
    """

    def __init__(self, table, factor: float):
        super().__init__()
        self.insert_child_to_cell("table", table)  # an attribute would rename the table's parameter
        self.factor = factor

    def construct(self, global_step):
        """The rate of a step, times the factor."""
        return self.table(global_step) * self.factor
