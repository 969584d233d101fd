"""The version, and what messages about files of newer versions end with."""

import pytest

from mindrepvgg.version import __version__, update_hint

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("wrote", ["0.1.0", __version__, "", "none", None, {}, [], "x" * 99])
def test_a_version_that_is_not_newer(wrote):
    assert update_hint(wrote) == ""


@pytest.mark.parametrize("wrote", ["1.0.0", "0.2.1", "0.10", 3, "1.10.0rc1", "9" * 9999, "99.0\n"])
def test_a_newer_version(wrote):
    hint = update_hint(wrote)
    assert hint.startswith(f"; mindrepvgg {str(wrote)[:2]}")
    assert hint.endswith(f" wrote it, this is {__version__}: update mindrepvgg")
    assert len(hint) < 100
    assert hint.isprintable()
