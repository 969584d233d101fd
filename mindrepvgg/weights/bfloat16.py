"""bfloat16 without a type for it: NumPy has none, so it is read as float32, of which it is the upper half."""

import numpy as np

STORED = np.dtype(np.uint16)  # its 16 bits in an array


def to_float32(bits):
    """The numbers whose bits are given, as float32: exact, NaNs and denormals included.

    Args:
        bits: uint16, any shape.
    """
    values = np.empty(bits.shape, np.float32)
    np.left_shift(bits, np.uint32(16), out=values.view(np.uint32), dtype=np.uint32)
    return values
