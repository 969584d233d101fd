"""The package as a program: `python -m mindrepvgg`, and `python mindrepvgg`, which is what msrun makes of a command."""

import os
import subprocess
import sys

import pytest
from support import ROOT

import mindrepvgg

# Runs in the program before anything else, and tells at its end where the package came from.
SPY = """
import atexit, os, sys
def tell():
    package = sys.modules["mindrepvgg"].__path__[0]
    print(package, [path for path in sys.path if os.path.realpath(path) == package])
atexit.register(tell)
"""


@pytest.mark.compat
@pytest.mark.parametrize(
    ("program", "folder"),
    [(["-m", "mindrepvgg"], ROOT), (["mindrepvgg"], ROOT), ([str(ROOT / "mindrepvgg")], None)],
    ids=["a module", "the checkout's folder", "the folder from elsewhere"],
)
def test_every_way_to_start_it_finds_the_package(tmp_path, program, folder):
    (tmp_path / "sitecustomize.py").write_text(SPY)
    done = subprocess.run(
        [sys.executable, *program, "--version"],
        cwd=folder or tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    package = os.path.realpath(ROOT / "mindrepvgg")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"mindrepvgg {mindrepvgg.__version__}\n{package} []\n", "its own folder is not searched"
