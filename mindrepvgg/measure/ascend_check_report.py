"""The report of a self-check: the device, the software around it, and every result."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import mindspore as ms
import numpy as np

from mindrepvgg.files import json_types
from mindrepvgg.runtime.environment import launched_processes
from mindrepvgg.text import markdown_table
from mindrepvgg.version import __version__

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"

_VARIABLES = (
    *("ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES", "HCCL_INTRA_ROCE_ENABLE", "HCCL_INTRA_PCIE_ENABLE"),
    *("MS_ASCEND_CHECK_OVERFLOW_MODE", "MS_COMPILER_CACHE_ENABLE", "ONEDNN_MAX_CPU_ISA", "RANK_TABLE_FILE"),
)


@dataclass(frozen=True)
class Result:
    """The outcome of a check.

    Attributes:
        name: of the check.
        status: PASS, FAIL or SKIP.
        detail: a line on it.
        seconds: how long it took.
        figures: what was measured, by name.
    """

    name: str
    status: str
    detail: str
    seconds: float = 0.0
    figures: dict | None = None

    def format(self) -> str:
        """Return the line for people."""
        return f"{self.status}  {self.name}: {self.detail}"


class CheckFailed(Exception):
    """A check failed: the message is its line in the report, `figures` is what was measured."""

    def __init__(self, message, figures=None):
        super().__init__(message)
        self.figures = figures


class CheckSkipped(Exception):
    """A check could not be made here; the message says why."""


def run_check(name: str, check: Callable) -> Result:
    """Call a check, which returns (line, figures) or raises. Any error is a FAIL, so that other checks still run."""
    begin = time.perf_counter()
    figures = None
    try:
        detail, figures = check()
        status = PASS
    except CheckSkipped as skipped:
        status, detail = SKIP, str(skipped)
    except CheckFailed as failure:
        status, detail, figures = FAIL, str(failure), failure.figures
    except Exception as error:  # a device may fail in any way; what it says belongs into the report
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        status, detail = FAIL, f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"
    return Result(name, status, detail, time.perf_counter() - begin, figures)


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it runs on."""
    return {
        "mindrepvgg": __version__,
        "mindspore": ms.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def environment(device: str, jit_level: str, ascend_root="/usr/local/Ascend") -> dict[str, str]:
    """Describe the machine for a report: versions, the device and its software, environment variables.

    Args:
        device: 'CPU' or 'Ascend'.
        jit_level: the compile level, in words.
        ascend_root: where Ascend's software is installed.

    Returns:
        Facts by name.
    """
    facts = {
        **versions(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "device": device,
        "device files": str(len(list(Path("/dev").glob("davinci[0-9]*")))),
        "jit_level": jit_level,
        "processes": str(launched_processes() or 1),
        "command": " ".join(sys.argv),
    }
    for place, version in _software(ascend_root).items():
        facts[place] = version
    for name in _VARIABLES:
        if name in os.environ:
            facts[name] = os.environ[name]
    return facts


def _software(root):
    """Return file -> the version in it, for CANN, driver and firmware."""
    home = os.environ.get("ASCEND_HOME_PATH")
    candidates = [Path(home, "compiler", "version.info")] if home else []
    for pattern in (
        "driver/version.info",
        "firmware/version.info",
        "*/latest/compiler/version.info",
        "cann*/compiler/version.info",
    ):
        candidates += sorted(Path(root).glob(pattern))
    found = {}
    for path in candidates:
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found[str(path)] = next((line for line in lines if line.lower().startswith("version=")), "no Version=")
    return found


def npu_smi() -> str:
    """Return what `npu-smi info` prints, or why it cannot be called."""
    command = shutil.which("npu-smi")
    if command is None:
        return "npu-smi is not on PATH"
    try:
        done = subprocess.run([command, "info"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npu-smi info: {error}"
    return (done.stdout + done.stderr).strip()


def report(facts: dict, results: list[Result], smi: str, under_way: str = "") -> str:
    """Return the report as markdown; `under_way` names a check that is running while it is written."""
    counts = ", ".join(f"{sum(r.status == status for r in results)} {status}" for status in (PASS, FAIL, SKIP))
    lines = ["# Self-check of mindrepvgg", "", counts, ""]
    if under_way:
        lines += [f"Unfinished: {under_way} was running when this was written.", ""]
    rows = ((result.status, result.name, result.detail, f"{result.seconds:.1f}") for result in results)
    lines += [markdown_table(("status", "check", "result", "seconds"), rows), ""]
    lines += [markdown_table(("environment", ""), facts.items()), "", "```", smi, "```", ""]
    return "\n".join(lines)


def report_json(facts: dict, results: list[Result], smi: str, under_way: str = "") -> dict:
    """Return the report with every figure, for programs; NaN and infinity as text, because JSON has no such number."""
    found = {"environment": facts, "results": [asdict(r) for r in results], "npu_smi": smi, "under_way": under_way}
    return json_types(found)
