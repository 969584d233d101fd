"""Structural re-parameterisation: branches, the blocks that have them, and their folding into one convolution.

Names are imported when they are first used: some modules of this package must load without MindSpore.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from mindrepvgg.reparam.adapters import register
    from mindrepvgg.reparam.asymmetric import ACBlock
    from mindrepvgg.reparam.blocks import PlainBlock, QARepVGGBlock, RepVGGBlock
    from mindrepvgg.reparam.deploy import to_deploy
    from mindrepvgg.reparam.diverse_branch import DiverseBranchBlock
    from mindrepvgg.reparam.equivalence import verify_equivalence
    from mindrepvgg.reparam.insertion import Insertion, insert
    from mindrepvgg.reparam.large_kernel import DilatedBlock, LargeKernelBlock
    from mindrepvgg.reparam.linear_addition import LinearAdditionBlock, RepOptBlock
    from mindrepvgg.reparam.mobileone import MobileOneBlock
    from mindrepvgg.reparam.tracing import Trace, trace
    from mindrepvgg.reparam.yolo import RepConv, RepConvN, RepVGGDW

# Each name's module.
_HOMES = {
    "ACBlock": "asymmetric",
    "DilatedBlock": "large_kernel",
    "DiverseBranchBlock": "diverse_branch",
    "Insertion": "insertion",
    "LargeKernelBlock": "large_kernel",
    "LinearAdditionBlock": "linear_addition",
    "MobileOneBlock": "mobileone",
    "PlainBlock": "blocks",
    "QARepVGGBlock": "blocks",
    "RepConv": "yolo",
    "RepConvN": "yolo",
    "RepOptBlock": "linear_addition",
    "RepVGGBlock": "blocks",
    "RepVGGDW": "yolo",
    "Trace": "tracing",
    "insert": "insertion",
    "register": "adapters",
    "to_deploy": "deploy",
    "trace": "tracing",
    "verify_equivalence": "equivalence",
}

__all__ = [
    "ACBlock",
    "DilatedBlock",
    "DiverseBranchBlock",
    "Insertion",
    "LargeKernelBlock",
    "LinearAdditionBlock",
    "MobileOneBlock",
    "PlainBlock",
    "QARepVGGBlock",
    "RepConv",
    "RepConvN",
    "RepOptBlock",
    "RepVGGBlock",
    "RepVGGDW",
    "Trace",
    "insert",
    "register",
    "to_deploy",
    "trace",
    "verify_equivalence",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
