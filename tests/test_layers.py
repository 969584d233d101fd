"""Which modules load no MindSpore: a wrong recipe is answered, and `--help` printed, without waiting for it.

That imports go one way is import-linter's to check; the layers are in pyproject.toml.
"""

import subprocess
import sys
from pkgutil import walk_packages

import pytest

from mindrepvgg import cli, recipe, weights

pytestmark = pytest.mark.compat

HEAVY = {"mindspore", "mindcv", "cv2", "torch"}
FLAT = [
    "mindrepvgg",
    "mindrepvgg.api",
    "mindrepvgg.errors",
    "mindrepvgg.files",
    "mindrepvgg.text",
    "mindrepvgg.version",
]
LIGHT = {
    "runtime": ["environment", "optional"],
    "reparam": ["leaves"],
    "models": ["preprocessing", "shapes", "summary", "variants"],
    "weights": ["bfloat16", "description", "dialects", "pickles", "recognise", "rename", "torchfile", "unwrap"],
    "training": ["schedule"],
}


def modules_of(package):
    """The dotted names of all modules of a package."""
    return [found.name for found in walk_packages(package.__path__, f"{package.__name__}.")]


def loaded_by(modules):
    """The top-level names in memory after a fresh interpreter has imported the modules."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_these_modules_load_nothing_heavy():
    light = [f"mindrepvgg.{package}.{module}" for package, modules in LIGHT.items() for module in modules]
    loaded = loaded_by([*FLAT, *light, *modules_of(recipe), *modules_of(cli)])
    assert {"mindrepvgg", "numpy"} <= loaded
    assert not loaded & HEAVY


def test_a_heavy_module_would_be_noticed():
    assert "mindspore" in loaded_by(["mindrepvgg.models.variants", "mindrepvgg.reparam.blocks"])
    assert set(modules_of(weights)) >= {f"mindrepvgg.weights.{module}" for module in LIGHT["weights"]}
