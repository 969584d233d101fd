"""Where a recipe's value came from, and how messages say it."""

from __future__ import annotations

import contextlib

from mindrepvgg.text import plain, printable, quoted

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
