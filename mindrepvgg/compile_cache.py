"""Compiled graphs kept on disk, so that a program that starts again need not compile again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import mindspore as ms

from .version import __version__

_SWITCH, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


def enable(folder, facts) -> Path:
    """Keep the graphs of this process in a folder inside `folder`, and take those that are there; returns it.

    MindSpore compares the source files of a graph with those of before, not the numbers that were compiled into it. So
    each set of facts, and each version, has a folder of its own. facts: JSON-able, all that the graphs depend on. What
    the user has set in the environment stays. Every rank gets a folder of its own inside, from MindSpore.
    """
    source = {path.name: path.read_text() for path in sorted(Path(__file__).parent.rglob("*.py"))}
    content = json.dumps([facts, __version__, ms.__version__, source], sort_keys=True)
    path = Path(folder) / hashlib.sha256(content.encode()).hexdigest()[:16]
    if _SWITCH not in os.environ:
        os.environ[_SWITCH] = "1"
        os.environ[_PATH] = str(path.resolve())
    return path
