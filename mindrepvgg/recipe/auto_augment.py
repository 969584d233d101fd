"""The texts that name a policy of augmentation, as MindCV and timm write them: `randaug-m9-mstd0.5-inc1`.

autoaug: AutoAugment's policy for ImageNet; autoaugr: with posterizing that grows with its magnitude; 3a: one of
solarizing, graying and blurring. mstd: standard deviation of a normal noise on every magnitude; default 0.5, as in
MindCV; mstd0 is the published policy.
randaug: n (2) operations of magnitude m (10), which mstd (0.5; above 100: uniform from 0 to m) makes noisy and mmax
(10) cuts off; inc1: all operations grow with the magnitude; w0: likely operations first, none twice.
trivialaugwide: one operation of one of the m (31) weakest of 31 strengths.
augmix: w (3) chains of d (default: 1 to 3) operations of magnitudes from 0 to m (3). Dirichlet(a) blends the chains
with each other, Beta(a, a) blends the result with the picture, and a is 1. The paper's loss, which needs three views of
a picture, is left out.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from mindrepvgg.text import quoted

_SHOWN = 60  # characters of a part; the message of a recipe begins with the whole value


class Policy(NamedTuple):
    """A policy by its name, with the value of each of its parts."""

    name: str
    parts: dict[str, float | None]


class _Part(NamedTuple):
    """A part of a policy's text: its value when absent, the type of its number, and the number's bounds."""

    default: float | None
    read: type
    least: float
    most: float = math.inf


MOST_MAGNITUDE = 10

_MSTD = _Part(0.5, float, 0)
_PARTS = {
    "autoaug": {"mstd": _MSTD},
    "autoaugr": {"mstd": _MSTD},
    "3a": {"mstd": _MSTD},
    "randaug": {
        "m": _Part(10, int, 0),
        "n": _Part(2, int, 1, 13),  # as many as w0 can tell apart
        "w": _Part(None, int, 0, 0),
        "mstd": _MSTD,
        "mmax": _Part(MOST_MAGNITUDE, int, 1),
        "inc": _Part(0, int, 0, 1),
    },
    "trivialaugwide": {"m": _Part(31, int, 1, 31)},
    "augmix": {"m": _Part(3, int, 0), "w": _Part(3, int, 1), "d": _Part(None, int, 1), "a": _Part(1.0, float, 0.01)},
}


def parse_policy(text: str) -> Policy:
    """The policy a text describes.

    Args:
        text: a name, then parts, in any order: see the module.

    Raises:
        ValueError: the text names no policy, or a part that the policy does not take; the message lists all of them.
    """
    try:
        return _parse(text)
    except ValueError as error:
        known = ", ".join(f"{name} ({', '.join(parts)})" for name, parts in _PARTS.items())
        raise ValueError(f"{error}; the policies and their parts are: {known}") from None


def _parse(text: str) -> Policy:
    name, *given = text.split("-")
    if name not in _PARTS:
        raise ValueError(f"unknown policy {quoted(name, _SHOWN)}")
    values = {}
    for text_part in given:
        match = re.fullmatch(r"([a-z]+)([0-9.]+)", text_part)
        if match is None or match[1] not in _PARTS[name]:
            raise ValueError(f"{name} has no part {quoted(text_part, _SHOWN)}")
        if match[1] in values:
            raise ValueError(f"part {quoted(text_part, _SHOWN)} gives {match[1]} a second time")
        values[match[1]] = _number(text_part, match[2], _PARTS[name][match[1]])
    return Policy(name, {key: values.get(key, part.default) for key, part in _PARTS[name].items()})


def _number(text_part: str, digits: str, part: _Part) -> float:
    try:
        value = part.read(digits)
    except ValueError:
        kind = "a whole number" if part.read is int else "a number"
        raise ValueError(f"part {quoted(text_part, _SHOWN)} needs {kind}") from None
    if not part.least <= value <= part.most:
        most = "" if part.most == math.inf else f" and at most {part.most}"
        raise ValueError(f"part {quoted(text_part, _SHOWN)} must be at least {part.least}{most}")
    return value
