"""Compiled graphs kept on disk, so that a program that starts again need not compile again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import mindspore as ms

from mindrepvgg.version import __version__

_SWITCH, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


@contextlib.contextmanager
def kept_graphs(folder, facts):
    """Keep what the body compiles in a folder inside `folder`, or take it from there; gives that folder.

    MindSpore looks for graphs by the order in which they are compiled: the body must be the first of the program to
    compile anything, always the same. It compares source files, not the numbers compiled into a graph: each set of
    facts (JSON-able, all that the graphs depend on) and each version has a folder of its own, in which MindSpore keeps
    the ranks apart. Where the user has switched the cache on or off, that is in force.
    A graph from the disk computes the same, but not always to the last bit.
    """
    package = Path(__file__).parents[1]
    source = {str(path.relative_to(package)): path.read_text() for path in sorted(package.rglob("*.py"))}
    content = json.dumps([facts, __version__, ms.__version__, source], sort_keys=True)
    path = Path(folder) / hashlib.sha256(content.encode()).hexdigest()[:16]
    if _SWITCH in os.environ:
        yield path
        return
    before = os.environ.get(_PATH)
    os.environ.update({_SWITCH: "1", _PATH: str(path.resolve())})
    try:
        yield path
    finally:
        del os.environ[_SWITCH], os.environ[_PATH]
        if before is not None:
            os.environ[_PATH] = before
