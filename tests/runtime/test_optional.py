"""Optional packages: there, missing, and installed but broken."""

import json
import sys

import pytest

from mindrepvgg.errors import UserError
from mindrepvgg.runtime.optional import import_optional, package_files, require_optional


def test_a_package_that_is_there_is_imported():
    assert import_optional("json", "onnx", "this") is json
    assert import_optional("json.decoder", "onnx", "this").JSONDecoder is json.JSONDecoder
    require_optional("json", "onnx", "this")


@pytest.mark.parametrize("name", ["no_such_package", "halted"])
@pytest.mark.parametrize("look", [import_optional, require_optional])
def test_a_missing_package_gives_the_pip_command(monkeypatch, name, look):
    monkeypatch.setitem(sys.modules, "halted", None)
    with pytest.raises(UserError) as caught:
        look(name, "onnx", "writing ONNX")
    assert str(caught.value) == f"writing ONNX needs the package {name}: pip install {name} 'numpy<2' (extra: onnx)"
    with pytest.raises(UserError, match=r"\(extra: torch\); \.npz does not$"):
        look(name, "torch", "writing .pth", ".npz does not")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RuntimeError('built for\\nanother version')", "built for another version"),
        (r"raise ImportError('\n\nadvice:\n' + 'x' * 1000)", f"advice: {'x' * 123}...{'x' * 66}"),
        ("raise OSError", "OSError"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
    ],
)
def test_a_broken_package_says_what_its_import_said(tmp_path, monkeypatch, line, reason):
    (tmp_path / "broken_package.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        import_optional("broken_package", "torch", "this")
    assert str(caught.value) == f"this needs broken_package, which is installed and cannot be imported: {reason}"


def test_files_of_a_package_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "package_with_data"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    for name in ("b.csv", "a.csv", "c.txt"):
        (package / "data" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert package_files("package_with_data", "data/*.csv") == [package / "data" / name for name in ("a.csv", "b.csv")]
    assert package_files("no_such_package", "*") == []
