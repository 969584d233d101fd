"""Mixed precision of a network: which cells compute in half precision, set and taken back in place.

Parameters stay float32 and keep their names: what is trained in mixed precision is saved, fused and converted like
any other network. Cells cast their inputs, and the parameters they use, while they compute.
"""

from __future__ import annotations

import contextlib

import mindspore as ms
from mindspore import nn

from mindrepvgg.errors import UserError
from mindrepvgg.reparam.layers import NORMS
from mindrepvgg.reparam.parts import Average, ChannelScale

DTYPES = {"float16": ms.float16, "bfloat16": ms.bfloat16}

# Everything between two BNs. A convolution takes what the activation before it gives, and gives what the BN after it
# takes.
_HALF_CELLS = (nn.Conv2d, Average, nn.Dense, nn.ReLU, nn.SiLU, nn.Sigmoid)


def set_precision(net, level="O0", dtype="float16"):
    """Let a network compute in mixed precision from its next call on.

    A graph that was compiled before keeps its precision, and BN that was in O2 keeps float32. Logits come out in half
    precision: a loss casts them. Go back to 'O0' before fusing, as the proof needs float32.

    Args:
        net: the network; its parameters stay float32.
        level: 'O0': float32. 'O2': convolutions, linear layers and activations in half precision, BN and the sum of the
            branches in float32. 'O3': BN takes and gives half precision too; its weights and statistics stay float32.
        dtype: 'float16' or 'bfloat16'.

    Returns:
        `net`.

    Raises:
        UserError: no device can compute that.
    """
    if level not in ("O0", "O2", "O3"):
        raise UserError(f"amp_level (={level}) must be O0, O2 or O3")
    if dtype not in DTYPES:
        raise UserError(f"amp_dtype (={dtype}) must be one of {', '.join(DTYPES)}")
    if level == "O3" and dtype == "bfloat16":
        raise UserError("amp_level O3 needs amp_dtype float16: MindSpore's BN takes no bfloat16; use amp_level O2")
    half = ms.float32 if level == "O0" else DTYPES[dtype]
    for _, cell in net.cells_and_names():
        if isinstance(cell, _HALF_CELLS):
            cell.to_float(half)
        elif isinstance(cell, NORMS) and level == "O2":
            # Left alone, BN follows its input and keeps float32 weights beside it; to_float would cast those as well.
            cell.to_float(ms.float32)
        elif isinstance(cell, ChannelScale):
            # What it gives is summed, and the sum given to a BN.
            cell.to_float(half if level == "O3" else ms.float32)
    return net


def check_precision(level, dtype, device):
    """Raise UserError for a half precision that the device does not compute in."""
    if level != "O0" and dtype == "bfloat16" and device == "CPU":
        raise UserError(
            "amp_dtype bfloat16 cannot be used on CPU: MindSpore has no bfloat16 convolution there; use float16"
        )


def computes_in_half(net: nn.Cell) -> bool:
    """Whether any cell computes in half precision: by its flags, or as automatic mixed precision O1 or 'auto' says."""
    for _, cell in net.cells_and_names():
        flags, code = cell.get_flags(), getattr(cell.construct, "__code__", None)
        rewritten = code is not None and "amp_cast" in code.co_names
        if flags.get("fp16") or flags.get("bf16") or rewritten or getattr(cell, "amp_strategy", None):
            return True
    return False


@contextlib.contextmanager
def float32_precision(net, level, dtype):
    """Run the body with the network in float32, then return it to `level` and `dtype`."""
    set_precision(net, "O0")
    try:
        yield
    finally:
        set_precision(net, level, dtype)
