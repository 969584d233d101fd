"""The deploy form's tensors as text, for the TensorRT programs that build RepVGG layer by layer.

The first line is the number of tensors. A line each follows: name, number of values, and every value as the eight hex
digits of its big-endian float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindrepvgg.errors import CheckpointError, EquivalenceError, UserError
from mindrepvgg.files import open_regular
from mindrepvgg.models.variants import Variant
from mindrepvgg.text import counted, quoted

_DIGITS = 8
_LONGEST_LINE = 1 << 31  # bytes


def check_wts(variant: Variant, options):
    """Raise UserError for a network, or options, that such a file cannot hold.

    Args:
        variant: the network's layout.
        options: the `GraphOptions` that were asked for.
    """
    if variant.features or any(spec.se or spec.kernel_size != 3 for spec in variant.block_specs()):
        raise UserError(
            f"a .wts is for networks of plain 3x3 blocks that classify, not {variant.name}; export to .onnx"
        )
    if options.precision != "float32" or options.preprocess or options.folded or options.softmax:
        raise UserError(
            "a .wts holds float32 weights and nothing else: leave out --precision, --preprocess, "
            "--fold_normalisation and --softmax, or export to .onnx"
        )


def write_wts(path, arrays: Mapping[str, np.ndarray]) -> int:
    """Write the tensors, read the file again and compare.

    Args:
        path: the file.
        arrays: name -> array of the deploy form; the names are kept.

    Returns:
        How many tensors there are.

    Raises:
        EquivalenceError: the file holds something else.
    """
    with Path(path).open("w", encoding="ascii", newline="\n") as file:
        file.write(f"{len(arrays)}\n")
        for name, array in arrays.items():
            digits = np.ascontiguousarray(array, ">f4").tobytes().hex(" ", _DIGITS // 2)
            file.write(f"{name} {array.size} {digits}\n")
    found = read_wts(path)
    expected = {name: np.ravel(array).astype(np.float32) for name, array in arrays.items()}
    wrong = [name for name in expected if name not in found or found[name].tobytes() != expected[name].tobytes()]
    if wrong or len(found) != len(expected):
        raise EquivalenceError(
            f"{path} does not hold the network: {', '.join(wrong) or 'it has further tensors'}", wrong
        )
    return len(found)


def read_wts(path) -> dict[str, np.ndarray]:
    """Read such a file.

    Args:
        path: the file.

    Returns:
        name -> float32 array (count,); the file does not tell shapes.

    Raises:
        CheckpointError: there is no such file, or a tensor is missing, cut, or there twice.
    """
    found: dict[str, np.ndarray] = {}
    with open_regular(path, "a .wts file", CheckpointError) as file:
        count = _number(file.readline(_LONGEST_LINE).strip(), path, 1)
        for number, line in enumerate(file, 2):
            name, size, *values = line.split(None, 2) + [b""] * 2
            digits = values[0].split()
            if len(digits) != _number(size, path, number) or any(len(one) != _DIGITS for one in digits):
                raise CheckpointError(
                    f"{path}: line {number} does not hold the {size.decode('ascii', 'replace')} values "
                    f"of eight hex digits that it announces; get a fresh copy"
                )
            try:
                key, array = name.decode("ascii"), np.frombuffer(bytes.fromhex(b"".join(digits).decode("ascii")), ">f4")
            except ValueError:
                raise CheckpointError(f"{path}: line {number} is not hexadecimal; get a fresh copy") from None
            if key in found:
                raise CheckpointError(f"{path} has {quoted(key)} twice; get a fresh copy")
            found[key] = array.astype(np.float32)
    if len(found) != count:
        raise CheckpointError(f"{path} announces {counted(count, 'tensor')} and has {len(found)}; get a fresh copy")
    return found


def _number(text, path, line):
    if not text.isdigit():
        raise CheckpointError(f"{path}: line {line} has no count where one is expected; it is no .wts file")
    return int(text)
