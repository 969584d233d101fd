"""The process environment: what must stand in it before MindSpore is imported, and what a launcher left there."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

_ISA_CAP = "ONEDNN_MAX_CPU_ISA"


def cap_cpu_isa() -> bool:
    """Keep oneDNN below AVX-512 where MindSpore would fall into its reference convolution; True when it was capped.

    From MindSpore 2.9 on, a plain convolution on a CPU with AVX-512 runs 60 to 100 times slower than with AVX2. What
    the user has set stays; with MindSpore already imported it is too late, which is said in a warning.
    """
    if _ISA_CAP in os.environ or not _is_affected():
        return False
    if "mindspore" in sys.modules:
        warnings.warn(
            f"MindSpore was imported before mindrepvgg: convolutions on this CPU will be very slow. "
            f"Import mindrepvgg first, or set {_ISA_CAP}=AVX2 in the environment.",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    os.environ[_ISA_CAP] = "AVX2"
    return True


@contextlib.contextmanager
def without_isa_cap():
    """Take the cap on oneDNN away in the body, where another program's copy of oneDNN reads it for the first time.

    MindSpore read it when it was imported.
    """
    cap = os.environ.pop(_ISA_CAP, None)
    try:
        yield
    finally:
        if cap is not None:
            os.environ[_ISA_CAP] = cap


def launched_processes() -> int | None:
    """The number of processes of the data-parallel run this one was launched for; None when it was started alone.

    msrun, mpirun and starts with a rank table are noticed by what they leave in the environment. msrun starts the same
    program once more as the scheduler, which joins like the others and serves them until they end.
    """
    if os.environ.get("MS_ROLE") in ("MS_WORKER", "MS_SCHED"):
        return int(os.environ["MS_WORKER_NUM"])
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return int(os.environ["OMPI_COMM_WORLD_SIZE"])
    # A table alone is no launch: ModelArts' notebooks have one.
    if os.environ.get("RANK_TABLE_FILE") and os.environ.get("RANK_SIZE"):
        return int(os.environ["RANK_SIZE"])
    return None


def _is_affected() -> bool:
    # The flags first: they cost nothing to read, the version a twentieth of a second.
    return "avx512f" in _cpu_flags() and (mindspore_version() or (0, 0)) >= (2, 9)


def mindspore_version() -> tuple[int, int] | None:
    """The installed MindSpore's major and minor version, read without importing it; None when there is none."""
    from importlib import metadata

    try:
        version = metadata.version("mindspore")
    except metadata.PackageNotFoundError:
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def processor() -> str:
    """The processor's name as Linux tells it, for figures that were measured on it."""
    return _cpu_info("model name") or "unknown processor"


def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpu_info("flags").split())


def _cpu_info(key: str) -> str:
    """The value of a key of the first core; empty where the system tells none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
