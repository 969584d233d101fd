"""What the value of a key may be: numbers within bounds, choices, text..., from yaml or from a command line's text."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mindrepvgg.models.preprocessing import LARGEST_SIDE
from mindrepvgg.recipe import strict_yaml
from mindrepvgg.text import plain


class Kind(NamedTuple):
    """What a key accepts.

    read: gives the value of yaml or of a command line's text; raises ValueError or TypeError when it is unfit.
    expected: ends the sentence "batch_size (=0) must be ..."; metavar: stands for the value in --help.
    """

    read: Callable[[Any], Any]
    expected: str
    metavar: str


def kind_of(annotation: str, *choices, allow_empty: bool = False, **bounds: float) -> Kind:
    """The kind of a key.

    Args:
        annotation: the key's type as the schema writes it; with `| None` at its end null is accepted too.
        choices: the only values there are; their letters may be written in any case.
        allow_empty: whether text may be empty.
        bounds: `least`, `above`, `most`, `below`, of each number.
    """
    if annotation.endswith(" | None"):
        kind = kind_of(annotation.removesuffix(" | None"), *choices, allow_empty=allow_empty, **bounds)

        def read_or_null(value):
            return None if str(value).lower() in ("none", "null") else kind.read(value)

        return Kind(read_or_null, f"{kind.expected}, or null", kind.metavar)
    if choices:
        return _choice(*choices)
    if annotation == "str":
        words = f"one line of text{'' if allow_empty else ', not empty'}"
        quote = "in yaml, quote what looks like a number or a date"
        return Kind(lambda value: _read_text(value, allow_empty), f"{words} ({quote})", "TEXT")
    if annotation == "int":
        bounds = {"most": _LARGEST_INT, **bounds}
    read, expected, metavar = _KINDS[annotation]
    return Kind(lambda value: read(value, **bounds), expected.format(_words(bounds)), metavar)


def _choice(*choices) -> Kind:
    by_text = {str(choice).lower(): choice for choice in choices}

    def read(value):
        if str(value).lower() not in by_text:
            raise ValueError
        return by_text[str(value).lower()]

    names = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
    return Kind(read, " or ".join(filter(None, [", ".join(names[:-1]), names[-1]])), "|".join(names))


_BOUNDS = {"least": operator.ge, "above": operator.gt, "most": operator.le, "below": operator.lt}


def _words(bounds: Mapping[str, float]) -> str:
    """The interval in words: ` of at least 0 and below 1`."""
    shown = {name: bounds[name] for name in _BOUNDS if name in bounds}  # the lower bound first
    words = " and ".join(f"{'at ' * (name in ('least', 'most'))}{name} {bound}" for name, bound in shown.items())
    return f" of {words}" if words.startswith("at") else f" {words}".rstrip()


def _within(number, bounds: Mapping[str, float]):
    if not all(_BOUNDS[name](number, bound) for name, bound in bounds.items()):
        raise ValueError
    return number


def _read_number(value, **bounds) -> float:
    """A finite float, from text too: yaml 1.1 takes `1e-4`, having no point, for text."""
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return _within(float(value), bounds)


def _read_whole(value, **bounds: float) -> int:
    """An int, from text too; never a float, whose fraction would be lost."""
    if isinstance(value, bool):
        raise TypeError
    return _within(int(value) if isinstance(value, str) else operator.index(value), bounds)


def _items(value) -> list:
    """The items of a list, a tuple, or text such as `0.08,1.0` and `[0.08, 1.0]`."""
    if isinstance(value, str):
        return value.strip().removeprefix("[").removesuffix("]").split(",")
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def _read_numbers(value, **bounds) -> tuple[float, ...]:
    return tuple(_read_number(item, **bounds) for item in _items(value))


def _read_interval(value, **bounds) -> tuple[float, float]:
    low, high = _read_numbers(value, **bounds)
    return _within(low, {"most": high}), high


def _read_size(value) -> int | tuple[int, int]:
    items = [value] if isinstance(value, int) else _items(value)
    sides = [_read_whole(item, least=1, most=LARGEST_SIDE) for item in items]
    if len(sides) > 2:
        raise ValueError
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _read_text(value, allow_empty: bool) -> str:
    """Text or a path, without line breaks, so that it fits into a line of `format_recipe`, and possible in a path."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or "".join(value.splitlines()) != value or not (value or allow_empty):
        raise ValueError
    if b"\0" in os.fsencode(value):  # which raises ValueError for surrogates that stand for no byte
        raise ValueError
    return value


def _read_patterns(value) -> tuple[str, ...]:
    """Patterns; text with commas is several. A pattern may hold brackets, so that both brackets make a list."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = value[1:-1]
    items = value.split(",") if isinstance(value, str) else _items(value)
    return tuple(_read_text(item.strip() if isinstance(item, str) else item, allow_empty=False) for item in items)


def _read_mapping(value) -> dict[str, Any]:
    value = strict_yaml.load(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError
    return plain(value)


_LARGEST_INT = 2**31 - 1  # what MindSpore's counters hold
_SIZES = "a mapping such as {{num_blocks: [2, 4, 14, 1], widths: [48, 48, 96, 192, 1280]}}"
# By a key's type: the reader, what it expects with a place for the bounds, and the value's name in --help.
_KINDS = {
    "bool": (_choice(True, False).read, "true or false", "true|false"),
    "int": (_read_whole, "a whole number{}", "N"),
    "float": (_read_number, "a number{}", "X"),
    "tuple[float, ...]": (_read_numbers, "a list of numbers{}", "X,X,..."),
    "tuple[str, ...]": (_read_patterns, "a pattern of names, or a list of them", "PATTERN,..."),
    "tuple[float, float]": (_read_interval, "two numbers [low, high]{}, low <= high", "LOW,HIGH"),
    "int | tuple[int, int]": (_read_size, f"a whole number from 1 to {LARGEST_SIDE}, or two [height, width]", "N|H,W"),
    "Mapping[str, Any]": (_read_mapping, _SIZES, "MAPPING"),
}
