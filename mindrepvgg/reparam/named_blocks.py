"""The blocks that have a name."""

from __future__ import annotations

import importlib

from mindrepvgg.errors import UserError
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.text import not_one_of

# The module and the class of each.
BLOCKS = {
    "plain": "blocks.PlainBlock",
    "repvgg": "blocks.RepVGGBlock",
    "qarepvgg": "blocks.QARepVGGBlock",
    "acb": "asymmetric.ACBlock",
    "dbb": "diverse_branch.DiverseBranchBlock",
    "mobileone": "mobileone.MobileOneBlock",
    "repopt_vgg": "linear_addition.RepOptBlock",
    "linear_addition": "linear_addition.LinearAdditionBlock",
    "large": "large_kernel.LargeKernelBlock",
    "dilated": "large_kernel.DilatedBlock",
    "repconv": "yolo.RepConv",
    "repvggdw": "yolo.RepVGGDW",
}


def block_class(name: str) -> type[FoldableBlock]:
    """The class of the block called `name`, one of BLOCKS. Raises UserError for another name."""
    if name not in BLOCKS:
        raise UserError(not_one_of("block", name, BLOCKS))
    module, _, attribute = BLOCKS[name].rpartition(".")
    return getattr(importlib.import_module(f"mindrepvgg.reparam.{module}"), attribute)
