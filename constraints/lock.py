"""Write constraints/py3.*.txt, the exact versions that `make` installs, and check them. Run by `make lock`.

The resolver is uv's. It reads the dependencies, the extras and the development tools from pyproject.toml. It sees no
configuration of this machine: no file of pip or uv, no variable, no second index. It installs nothing, so a version
that only a CUDA build of PyTorch asks for costs nothing.

A version that a file already holds stays while it fits. `--upgrade` takes the newest of everything.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.10", "3.11", "3.12")
HEADER = "# Exact versions for Python {}, all extras and the development tools. Written by `make lock`.\n"

# What the resolver may know of the machine: how to reach the network, and where its cache is.
_KEPT_VARIABLES = ["PATH", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "NO_PROXY"]

# Ascend hosts often are ARM. MindSpore comes from its vendor there, OpenVINO is for x86, and everything else comes from
# the package index.
_ARM = ("--python-platform", "aarch64-manylinux_2_28", "--only-binary", ":all:", "--no-deps")
_NOT_FROM_INDEX = ("mindspore", "openvino")

# One package at one version of the index. A version with a local part, such as 2.13.0+cpu, is on no index.
_PIN = re.compile(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.!]*")


def pins(text: str) -> dict[str, str]:
    """The versions by package name in the text of a constraints file."""
    return dict(line.split("==") for line in _lines(text) if _PIN.fullmatch(line))


def problems(text: str) -> list[str]:
    """The lines of a constraints file that are not one package at one version of the index."""
    return [line for line in _lines(text) if not _PIN.fullmatch(line)]


def _lines(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _resolve(source, output, python, *options):
    environment = {name: value for name, value in os.environ.items() if name.upper() in _KEPT_VARIABLES}
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-config", "--system-certs"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--python-version", python]
    subprocess.run([*command, *options, "--output-file", output, source], check=True, env=environment)


def lock(python: str, *options: str):
    """Resolve for one Python, check the result, and write its file.

    Raises:
        SystemExit: a line is not an exact version of the index.
        subprocess.CalledProcessError: nothing fits together, or a package has no wheel for ARM; uv has said what.
    """
    target = HERE / f"py{python}.txt"
    with tempfile.TemporaryDirectory() as folder:
        found, without = Path(folder, "found.txt"), Path(folder, "without.txt")
        if target.exists():
            found.write_text(target.read_text())
        _resolve(HERE.parent / "pyproject.toml", found, python, "--all-extras", *options)
        text = found.read_text()
        if problems(text):
            sys.exit(f"error: {target.name} would hold what is not an exact version of the index: {problems(text)}")
        without.write_text(
            "".join(f"{name}=={pin}\n" for name, pin in pins(text).items() if name not in _NOT_FROM_INDEX)
        )
        _resolve(without, Path(folder, "arm.txt"), python, *_ARM)
    target.write_text(HEADER.format(python) + text)
    print(
        f"{target.name}: {len(pins(text))} packages; all but {', '.join(_NOT_FROM_INDEX)} have a wheel for aarch64 too"
    )


def main():
    """Lock for every supported Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of those that fit")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    for python in PYTHONS:
        lock(python, *upgrade)


if __name__ == "__main__":
    main()
