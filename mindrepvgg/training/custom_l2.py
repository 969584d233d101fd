"""The custom L2: a decay of each block's equivalent kernel instead of its branches' kernels."""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.errors import RecipeError
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.probe import described


class CustomL2(nn.Cell):
    """weight_decay / 2 * the sum of what the blocks' method `custom_l2` gives. () -> scalar float32.

    The kernels in it must not decay besides: see `is_block_kernel`.

    Args:
        net: with blocks in train form.
        weight_decay: of the recipe.

    Raises:
        RecipeError: a block has no custom L2, no branches, or a frozen kernel.
    """

    def __init__(self, net, weight_decay):
        super().__init__(auto_prefix=False)
        blocks = rep_blocks(net)
        if any(block.deploy for block in blocks.values()):
            raise RecipeError("the custom L2 needs blocks with 3x3 and 1x1 branches: a fused network has none")
        for path, block in blocks.items():
            if not hasattr(block, "custom_l2"):
                raise RecipeError(f"no custom L2 is known for {described(path, block)}; set custom_l2 False")
            if not all(p.requires_grad for p in block.get_parameters() if is_block_kernel(p.name)):
                raise RecipeError(
                    "the custom L2 is a decay of all blocks, some of which are frozen; set freeze_stages 0"
                )
        self.half = weight_decay / 2
        self.blocks = nn.CellList(list(blocks.values()), auto_prefix=False)  # their parameters keep their names

    def construct(self):
        """The penalty, a scalar."""
        total = 0.0
        for block in self.blocks:
            for term in block.custom_l2():
                total = total + term
        return self.half * total


def is_block_kernel(name) -> bool:
    """Whether a parameter of this name is a kernel that `CustomL2` counts, which then must not decay besides."""
    return name.endswith(("rbr_dense.conv.weight", "rbr_1x1.conv.weight", "rbr_1x1.weight"))
