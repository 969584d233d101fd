"""Other projects' packages as independent truth, installed without what they import and do not use here."""

import contextlib
import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest

# What timm's data part names of torchvision, whose build on the package index does not load beside a CPU's PyTorch.
# MindYOLO compares versions with a part of setuptools that newer ones do not have.
_STAND_INS = (
    *("torchvision", "torchvision.datasets", "torchvision.models", "torchvision.models.feature_extraction"),
    *("torchvision.ops", "torchvision.ops.misc", "torchvision.transforms", "torchvision.transforms.functional"),
    "pkg_resources",
)


@contextlib.contextmanager
def stand_ins():
    """Modules that take any name, in the place of those that are not installed, while others are imported."""
    missing = [name for name in _STAND_INS if importlib.util.find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: MagicMock(name=name, __path__=[]) for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def other_project(module: str) -> ModuleType:
    """A module of another project; the test is skipped where the project is not installed."""
    project = module.partition(".")[0]
    if importlib.util.find_spec(project) is None:
        pytest.skip(f"{project} is not installed")
    with stand_ins():
        return importlib.import_module(module)
