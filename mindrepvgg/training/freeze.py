"""Training parts of a network only: the first stages frozen, or every BN."""

from __future__ import annotations

from mindrepvgg.errors import RecipeError, UserError
from mindrepvgg.models.features import RepVGGFeatures
from mindrepvgg.models.repvgg import RepVGG
from mindrepvgg.reparam.layers import NORMS


def freeze(net: RepVGG, stages: int = 0, bn: bool = False) -> RepVGG:
    """Exclude parts of a network from training; call it before the optimizer is made.

    Args:
        net: the network.
        stages: how many stages to freeze, from the input on: 1 is stage0 alone, 5 all but the head. Their BN normalises
            with its moving statistics, as in inference, and these stay. An auxiliary head of RepVGGplus goes with the
            stage it hangs on.
        bn: freeze every BN of the network, its weights and its statistics.

    Returns:
        `net`.

    Raises:
        RecipeError: nothing is left to train.
        UserError: `net` is or holds a features network that was made with `frozen_stages` or `norm_eval`.
    """
    for _, cell in net.cells_and_names():
        layout = cell.variant.features if isinstance(cell, RepVGGFeatures) else None
        if layout and (layout.frozen_stages >= 0 or layout.norm_eval):
            raise UserError(
                f"the features network freezes itself, with frozen_stages (={layout.frozen_stages}) and norm_eval "
                f"(={layout.norm_eval}); make it without them, or do not call freeze"
            )
    frozen = tuple(f"stage{number}" for number in range(stages))
    for name, cell in net.cells_and_names():
        is_norm = isinstance(cell, NORMS)
        if name.startswith(frozen) or (bn and is_norm):
            for parameter in cell.get_parameters(expand=False):
                parameter.requires_grad = False
            if is_norm:
                # MindSpore's own switch: without it, set_train(True) has the BN use the batch's statistics again.
                cell.use_batch_statistics = False
    if not net.trainable_params():
        raise RecipeError(f"freeze_stages (={stages}) and freeze_bn (={bn}) leave nothing to train")
    return net
