"""Where a recipe's value came from, and how messages say it."""

from __future__ import annotations

from collections.abc import Mapping

# The sources besides yaml files, which are named by their paths.
DEFAULT, COMMAND_LINE, CODE, MINDCV = "default", "command line", "code", "MindCV's default"


def place(source: str) -> str:
    """Where a value came from, in words that follow it."""
    if source.startswith(MINDCV):
        return f", {source}"
    return {DEFAULT: ", the default", COMMAND_LINE: " on the command line", CODE: ""}.get(source, f" in {source}")


def describe(name: str, value, source: str) -> str:
    """The key with its value and origin: `lr (=-1 in configs/x.yaml)`."""
    return f"{name} (={plain(value)!r}{place(source)})"


def plain(value):
    """The value with tuples as lists and mappings as dicts, all the way down: what json and yaml can write."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
