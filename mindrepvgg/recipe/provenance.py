"""Where a recipe's value came from, and how messages say it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from mindrepvgg.text import printable, quoted

# The sources besides yaml files, which are named by their paths.
DEFAULT, COMMAND_LINE, CODE, MINDCV = "default", "command line", "code", "MindCV's default"
CHECKPOINT = "the checkpoint"


def place(source: str) -> str:
    """Where a value came from, in words that follow it."""
    if source.startswith(MINDCV):
        return f", {source}"
    return {DEFAULT: ", the default", COMMAND_LINE: " on the command line", CODE: ""}.get(source, f" in {source}")


def describe(name: str, value, source: str) -> str:
    """The key with its value and origin: `lr (=-1 in configs/x.yaml)`."""
    with contextlib.suppress(RecursionError):
        value = plain(value)
    return f"{printable(name)} (={quoted(value)}{place(source)})"


def plain(value):
    """The value with tuples as lists and mappings as dicts, all the way down: what json and yaml can write."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
