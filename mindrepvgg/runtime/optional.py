"""Optional packages: one way to import them, and one line with the pip command where one is missing."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from mindrepvgg.errors import UserError
from mindrepvgg.text import printable


def require_optional(package: str, extra: str | None, purpose: str, hint: str = "") -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        package: the package's import name.
        extra: the extra of this project that installs the package; None: it comes with this project.
        purpose: what needs the package; it starts the message.
        hint: what works without the package; it ends the message.

    Raises:
        UserError: the package is not installed; the message gives the pip command.
    """
    if importlib.util.find_spec(package) is None:
        end = f"; {hint}" if hint else ""
        # By itself, pip takes the newest onnx with the newest NumPy, which MindSpore's readers of data do not bear.
        of = f" (extra: {extra})" if extra else ""
        raise UserError(f"{purpose} needs the package {package}: pip install {package} 'numpy<2'{of}{end}")


def import_optional(module: str, extra: str | None, purpose: str, hint: str = "") -> ModuleType:
    """Import an optional package, or a module inside of one.

    Args:
        module: the module's dotted name.
        extra, purpose, hint: see `require_optional`.

    Returns:
        The module.

    Raises:
        UserError: the package is not installed, or it is and cannot be imported; the message then says why.
    """
    package = module.partition(".")[0]
    require_optional(package, extra, purpose, hint)
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package built for another platform, or for another version, may raise anything
        # The whole message on one line: NumPy's begins with blank ones.
        reason = printable(" ".join(str(error).split()), 200) or type(error).__name__
        raise UserError(f"{purpose} needs {module}, which is installed and cannot be imported: {reason}") from error


def package_files(package: str, pattern: str) -> list[Path]:
    """The files of an installed package that match a pattern, sorted; the package is not imported.

    Args:
        package: the package's import name.
        pattern: relative to the package's folder, as `Path.glob` takes it.

    Returns:
        The paths; none where the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else ()
    return sorted(path for folder in folders or () for path in Path(folder).glob(pattern))
