"""What stands beside the package: the exact versions, the changelog, the citation, and what the tools are told."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from support import ROOT, script

import mindrepvgg

if sys.version_info >= (3, 11):
    import tomllib
else:  # brought by pytest
    import tomli as tomllib

pytestmark = pytest.mark.compat

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCK = script("constraints/lock")


def requirements():
    """Every requirement that the project declares: its own, its extras' and the development tools'."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    extras = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    declared = [Requirement(line) for line in [*lines, *extras] if line]
    return [requirement for requirement in declared if requirement.name != "mindrepvgg"]


def misses(requirements, pins):
    """The requirements that the pins do not meet."""
    found = {requirement: pins.get(requirement.name.lower().replace("_", "-")) for requirement in requirements}
    return [str(requirement) for requirement, pin in found.items() if pin is None or pin not in requirement.specifier]


@pytest.mark.parametrize("python", LOCK.PYTHONS)
def test_the_lock_holds_an_exact_version_of_all_that_is_declared(python):
    text = (ROOT / f"constraints/py{python}.txt").read_text()
    assert LOCK.problems(text) == []
    assert misses(requirements(), LOCK.pins(text)) == []
    assert text.startswith(LOCK.HEADER.format(python))


@pytest.mark.parametrize("python", LOCK.PYTHONS)
def test_what_the_makefile_pins_is_what_is_locked(python):
    """An extra has timm as well; the other packages that the Makefile installs are in no lock."""
    pins = LOCK.pins((ROOT / f"constraints/py{python}.txt").read_text())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"([a-z0-9-]+)==([0-9][0-9.]*)", makefile))
    assert {name: pinned[name] for name in pins.keys() & pinned.keys()} == {"timm": pins["timm"]}


def test_a_lock_for_every_supported_python():
    assert PROJECT["requires-python"] == ">=3.10,<3.13"
    locks = sorted(path.name for path in (ROOT / "constraints").glob("*.txt"))
    assert locks == [f"py{python}.txt" for python in LOCK.PYTHONS]
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert named == set(LOCK.PYTHONS)


@pytest.mark.parametrize(
    "line",
    ["torch==2.13.0+cpu", "numpy>=1.25", "--index-url https://example.org/simple", "a @ file:///tmp/a.whl", "a==1 ; x"],
)
def test_a_line_that_is_no_exact_version_would_be_noticed(line):
    assert LOCK.problems(f"# comment\nnumpy==1.26.4\n{line}\n") == [line]


def test_a_missing_or_old_pin_would_be_noticed():
    wanted = [Requirement("numpy>=1.25,<2"), Requirement("PyYAML>=6")]
    assert misses(wanted, {"numpy": "1.26.4", "pyyaml": "6.0.4"}) == []
    assert misses(wanted, {"numpy": "2.0.0"}) == ["numpy<2,>=1.25", "PyYAML>=6"]


def test_the_citation_and_the_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mindrepvgg.__version__
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2101.03697"
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first[1] == mindrepvgg.__version__


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("/none", "error: PYTHON=/none does not run; give a Python 3.10, 3.11 or 3.12"),
        ("{folder}/python", "error: PYTHON={folder}/python is Python 3.9, and MindSpore has wheels for Python 3.10,"),
    ],
)
def test_make_says_in_one_line_which_python_it_needs(python, says, tmp_path):
    """A Python that is too old is acted by a script: it prints its version, and answers that it is not supported."""
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9;; *) exit 1;; esac\n')
    old.chmod(0o755)
    command = ["make", "demo", f"VENV={tmp_path}/venv", f"PYTHON={python.format(folder=tmp_path)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith(says.format(folder=tmp_path))
    assert len(rest) == 1  # make's own
    assert not Path(tmp_path, "venv", "bin").exists()


def test_the_wheel_holds_every_package_and_every_data_file():
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert setuptools["package-dir"] == {"mindrepvgg.configs": "configs"}
    inside = {package: package.replace("mindrepvgg.configs", "configs") for package in setuptools["packages"]}
    places = {package: ROOT / name.replace(".", "/") for package, name in inside.items()}
    found = {path.parent for path in (ROOT / "mindrepvgg").rglob("__init__.py")}
    assert set(places.values()) == {*found, *(path.parent for path in (ROOT / "configs").rglob("*.yaml"))}
    globs = setuptools["package-data"].items()
    data = {path for package, patterns in globs for pattern in patterns for path in places[package].glob(pattern)}
    files = [path for folder in ("mindrepvgg", "configs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert data == {path for path in files if path.suffix not in (".py", ".pyc")}


def test_no_module_is_longer_than_400_lines():
    modules = sorted((ROOT / "mindrepvgg").rglob("*.py"))
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}
