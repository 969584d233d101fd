"""The scales that RepOptimizer's authors published, which are no part of this project."""

import os
from pathlib import Path

import pytest


def authors_scales(name):
    """The authors' file for a network, 'b1' to 'l2'; skips the test where it is not."""
    data = os.environ.get("MINDREPVGG_TEST_DATA")
    path = Path(data or "").parent / "repopt" / f"RepOpt-VGG-{name.upper()}-scales.pth"
    if not data or not path.is_file():
        pytest.skip("MINDREPVGG_TEST_DATA names no folder beside which repopt/ has the authors' scales")
    return path
