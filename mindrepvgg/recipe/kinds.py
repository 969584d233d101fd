"""What a recipe key accepts: numbers within bounds, choices, text..., as a yaml value or as a command line's text."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import yaml


class Kind(NamedTuple):
    """What a key accepts.

    read: gives the plain value of a yaml value or a command line's text; ValueError or TypeError when it is unfit.
    expected: ends the sentence "batch_size (=0) must be ..."; metavar: stands for the value in --help.
    """

    read: Callable[[Any], Any]
    expected: str
    metavar: str


_BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def _words(bounds: Mapping[str, float]) -> str:
    """The interval in words: `of at least 0 and below 1`."""
    words = " and ".join(f"{_BOUNDS[name][0]} {bound}" for name, bound in bounds.items())
    return f"of {words}" if words.startswith("at") else words


def _within(number, bounds: Mapping[str, float]):
    """The number itself; ValueError when it lies outside the bounds."""
    if not all(_BOUNDS[name][1](number, bound) for name, bound in bounds.items()):
        raise ValueError
    return number


def _read_number(value) -> float:
    """A finite float, from text too: yaml 1.1 takes `1e-4`, having no point, for text."""
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _read_whole(value) -> int:
    """An int, from text too; never a float, whose fraction would be lost."""
    if isinstance(value, bool):
        raise TypeError
    return int(value) if isinstance(value, str) else operator.index(value)


def _read_items(value) -> list:
    """The items of a list, a tuple, or text such as `0.08,1.0` and `[0.08, 1.0]`."""
    if isinstance(value, str):
        return value.strip().removeprefix("[").removesuffix("]").split(",")
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def number(**bounds) -> Kind:
    """A finite number, kept as a float; bounds: `least`, `above`, `most`, `below`, here and in what follows."""
    expected = f"a number {_words(bounds)}".strip()  # there may be no bounds
    return Kind(lambda value: _within(_read_number(value), bounds), expected, "X")


def whole(**bounds) -> Kind:
    """A whole number, kept as an int."""
    return Kind(lambda value: _within(_read_whole(value), bounds), f"a whole number {_words(bounds)}", "N")


def numbers(**bounds) -> Kind:
    """One number or more, kept as a tuple."""

    def read(value):
        return tuple(_within(_read_number(item), bounds) for item in _read_items(value))

    return Kind(read, f"a list of numbers {_words(bounds)}", "X,X,...")


def interval(**bounds) -> Kind:
    """Two numbers in order, kept as a tuple."""

    def read(value):
        low, high = (_within(_read_number(item), bounds) for item in _read_items(value))
        return _within(low, {"most": high}), high

    return Kind(read, f"two numbers [low, high] {_words(bounds)}, low <= high", "LOW,HIGH")


def image_size() -> Kind:
    """A side, or (height, width) kept as a tuple."""
    least = {"least": 1}

    def read(value):
        items = _read_items(value) if not isinstance(value, int) else [value]
        sides = tuple(_within(_read_whole(item), least) for item in items)
        if len(sides) > 2:
            raise ValueError
        return sides if len(sides) == 2 else sides[0]

    return Kind(read, "a whole number of at least 1, or two of them [height, width]", "N|H,W")


def choice(*choices) -> Kind:
    """One of the choices, whatever the case of its letters."""
    by_text = {str(choice).lower(): choice for choice in choices}

    def read(value):
        if str(value).lower() not in by_text:
            raise ValueError
        return by_text[str(value).lower()]

    names = [str(choice) for choice in choices]
    return Kind(read, " or ".join(filter(None, [", ".join(names[:-1]), names[-1]])), "|".join(names))


def flag() -> Kind:
    """True or false."""
    return Kind(choice(True, False).read, "true or false", "true|false")


def text(allow_empty: bool = False) -> Kind:
    """Text without line breaks, so that it fits into a line of `format_recipe`."""

    def read(value):
        if not isinstance(value, str):
            raise TypeError
        if "".join(value.splitlines()) != value or not (value or allow_empty):
            raise ValueError
        return value

    words = "one line of text" if allow_empty else "one line of text, not empty"
    return Kind(read, f"{words} (in yaml, quote what looks like a number or a date)", "TEXT")


def mapping() -> Kind:
    """Values by name, kept as a dict."""

    def read(value):
        if isinstance(value, str):
            value = yaml.load(value, UniqueKeyLoader)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return plain(value)

    return Kind(read, "a mapping such as {num_blocks: [2, 4, 14, 1], widths: [48, 48, 96, 192, 1280]}", "MAPPING")


def optional(kind: Kind) -> Kind:
    """The kind, or null."""

    def read(value):
        return None if value is None or str(value).lower() in ("null", "none") else kind.read(value)

    return Kind(read, f"{kind.expected}, or null", kind.metavar)


def plain(value):
    """The value with tuples as lists and mappings as dicts, all the way down: what json and yaml can write."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which yaml would keep the last."""

    def construct_mapping(self, node, deep=False):
        """As the SafeLoader's; ConstructorError for a key given twice."""
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"key {name!r} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
