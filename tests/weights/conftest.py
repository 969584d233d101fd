"""A server on this machine, and a cache of its own for each test."""

import pytest
from support.http_server import file_server

from mindrepvgg.weights import cache, released


@pytest.fixture
def server():
    """A server of files on the loopback."""
    with file_server() as served:
        yield served


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of weights in an empty cache; no mirror is set."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    for variable in (released.MIRROR, "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache" / "weights"
