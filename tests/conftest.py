"""Fixtures, and what must happen before a test module imports MindSpore."""

import gc
import importlib.util
import os
import re
import socket
import sys
from pathlib import Path

import pytest

# MindSpore's threads hand every operator of PyNative mode from one to the next: small tests cost half as much when each
# operator is done at once. test_kill.py has a run without this.
os.environ.setdefault("MS_DEV_HOST_BLOCKING_RUN", "1")

# No test asks a stranger's server, nor do the processes that tests start: names lead to a port nobody listens on.
os.environ["MINDREPVGG_MIRROR"] = "http://127.0.0.1:9"
os.environ["MINDREPVGG_CACHE"] = "/dev/null/cache"

import mindrepvgg  # noqa: F401 - sets the environment MindSpore needs

_WITHOUT_TORCH = importlib.util.find_spec("torch") is None
_IMPORTS_TORCH = re.compile(r"^(import|from) torch\b", re.MULTILINE)
_SUPPORT = Path(__file__).parent.glob("support/*.py")
_OF_TORCH = [path.stem for path in _SUPPORT if _IMPORTS_TORCH.search(path.read_text(encoding="utf-8"))]
_IMPORTS_THEM = re.compile(rf"^from support.*\b({'|'.join(_OF_TORCH)})\b", re.MULTILINE)


def pytest_addoption(parser):
    """Add the option that makes MindSpore look like the one that is announced."""
    parser.addoption(
        "--announced-signatures",
        action="store_true",
        help="run on stand-ins for mindspore.nn.Conv2d, BatchNorm2d and SyncBatchNorm with the announced signatures",
    )


def _only_to_this_machine(connect):
    """A socket's method that connects to the loopback and to files alone."""

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reaches for the network: {address}")
        return connect(self, address)

    return guarded


def pytest_configure(config):
    """Keep tests from the network; swap classes before any test module, or the package, imports them."""
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, _only_to_this_machine(getattr(socket.socket, name)))
    if config.getoption("--announced-signatures"):
        from support import announced

        announced.install()


def pytest_ignore_collect(collection_path):
    """Leave out the modules that compare with PyTorch where it is not installed (`make test-quick`)."""
    if _WITHOUT_TORCH and collection_path.suffix == ".py":
        text = collection_path.read_text(encoding="utf-8")
        return True if _IMPORTS_TORCH.search(text) or _IMPORTS_THEM.search(text) else None
    return None


def pytest_report_header():
    """Say what is left out."""
    return "PyTorch is not installed: test modules that compare with it are left out" if _WITHOUT_TORCH else None


def pytest_collection_finish():
    """Let the garbage collector pass over what the imports made: half a million objects that stay to the end.

    MindSpore collects before it compiles a graph, a quarter of a second each time, of which the suite has hundreds.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let networks that are left at the end go in silence.

    MindSpore's `Cell.__del__` needs names of its module that are gone by then, and prints an error for each network.
    """
    if "mindspore" in sys.modules:
        cell = sys.modules["mindspore"].nn.Cell
        if "__del__" in vars(cell):  # a second test run in one process finds it gone
            del cell.__del__


@pytest.fixture(autouse=True)
def _as_at_the_start():
    """The same initial weights and PyNative mode, as MindSpore starts, whichever tests run before.

    What `value_and_grad` returns while the mode is graph mode compiles a graph later on, whatever the mode is then.
    """
    if "mindspore" in sys.modules:
        ms = sys.modules["mindspore"]
        ms.set_seed(0)
        if ms.get_context("mode") != ms.PYNATIVE_MODE:
            ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture
def graph_mode():
    """Graph mode for one test."""
    from support import context_mode

    with context_mode("graph"):
        yield


@pytest.fixture
def pynative_mode():
    """PyNative mode for one test."""
    from support import context_mode

    with context_mode("pynative"):
        yield


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Both modes, one after the other."""
    from support import context_mode

    with context_mode(request.param):
        yield request.param


@pytest.fixture
def rewriting(tmp_path, monkeypatch):
    """For MindSpore's mixed precision O1: it writes a folder of code, and imports modules again under other names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if "." not in name:
            del sys.modules[name]


@pytest.fixture
def call(capfd):
    """A function (verb, *arguments) that runs `mindrepvgg VERB ...` in this process: (exit status, stdout, stderr).

    MindSpore's own log lines, which start with the level in brackets, are left out of stderr. A command sets the
    process's mode; it is graph mode before, and what it was after.
    """
    from support import context_mode

    from mindrepvgg.cli import verbs

    def run(verb, *arguments):
        capfd.readouterr()
        with context_mode("graph"):
            status = verbs.main([verb, *map(str, arguments)])
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines(keepends=True) if not line.startswith(("[WARNING]", "[ERROR]"))]
        return status, out, "".join(lines)

    return run


@pytest.fixture
def figures(monkeypatch):
    """The figures of matplotlib that the test saves, in order."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))[1])
    return saved
