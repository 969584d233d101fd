"""The process around the network: device, execution mode, compile level, seeds, and temporary changes of them."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
from mindspore import nn

from mindrepvgg.errors import UserError
from mindrepvgg.runtime import jit_levels
from mindrepvgg.runtime.environment import mindspore_version


def setup(device_target="auto", mode=ms.GRAPH_MODE, jit_level="auto", seed=None) -> str:
    """Choose device, mode and compile level for this process, before the first network is built; returns the device.

    device_target: 'CPU', 'Ascend', or 'auto': Ascend where this machine has one, else CPU.
    mode: 0 graph, 1 PyNative. jit_level: see `choose_jit_level`. seed: of initialisation and random operators.
    Raises UserError when the device cannot be used.
    """
    device = _set_device(device_target)
    ms.set_context(mode=mode)
    level = choose_jit_level(jit_level, device, mode).level
    if level is not None:
        ms.set_context(jit_config={"jit_level": level})
    if seed is not None:
        ms.set_seed(seed)
    return device


def _set_device(device_target):
    if device_target == "auto":
        # The driver's device files tell; asking MindSpore on a machine without CANN prints a page of warnings.
        device_target = "Ascend" if any(Path("/dev").glob("davinci[0-9]*")) else "CPU"
    try:
        ms.set_device(device_target)
    except (RuntimeError, ValueError) as error:
        # Once it has run something, or joined other processes, it refuses every call, even one for this very device.
        refuses_all = any(words in str(error) for words in ("initialized", "can not be modified"))
        if refuses_all and ms.get_context("device_target") == device_target:
            return device_target
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device_target (={device_target}) cannot be used on this machine: {reason}") from None
    return device_target


class JitLevel(NamedTuple):
    """A compile level to set, None for MindSpore's own, and why in a few words."""

    level: str | None
    reason: str


def choose_jit_level(requested: str, device: str, mode: int = ms.GRAPH_MODE) -> JitLevel:
    """The compile level of graph mode: 'O0' kernel by kernel, 'O1' with fused kernels, 'O2' the whole graph sunk.

    The one place where this is decided: 'auto' by the table of `jit_levels`. Where the installed MindSpore no longer
    has O2, O1 is its successor. Other devices know one level only, and PyNative mode compiles nothing.
    """
    if mode != ms.GRAPH_MODE:
        return JitLevel(None, "none: PyNative mode compiles no graph")
    if device != "Ascend":
        remark = "" if requested in ("auto", "O0") else f"; {requested} has no effect"
        return JitLevel(None, f"MindSpore's own on {device}, which knows one level only{remark}")
    version = mindspore_version() or (0, 0)
    row = jit_levels.row_of(_soc(), version)
    level, reason = (
        (row.auto, f"auto on {row.hardware}: {row.reason}") if requested == "auto" else (requested, "as asked")
    )
    if level != "O2":
        return JitLevel(level, f"{level}, {reason}")
    if not _takes_o2():
        return JitLevel("O1", f"O1 instead of O2, which MindSpore {ms.__version__} no longer has")
    return JitLevel(level, f"{level}, {reason}" + ("; deprecated since MindSpore 2.9" if version >= (2, 9) else ""))


def _soc() -> str | None:
    """What MindSpore calls the Ascend device; None where it does not tell."""
    try:
        from mindspore._c_expression import MSContext

        return MSContext.get_instance().get_ascend_soc_version() or None
    except (ImportError, AttributeError, RuntimeError):  # no public interface tells
        return None


def _takes_o2():
    """Whether this MindSpore knows O2; a description of the level only, nothing is set."""
    try:
        ms.JitConfig(jit_level="O2")
    except (ValueError, AttributeError):
        return False
    return True


def peak_memory() -> str:
    """The most memory this process has held so far, in words: the device's where there is one, else the process's."""
    if ms.get_context("device_target") == "CPU":
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (of the process)"
    return f"{ms.runtime.max_memory_allocated() / 2**20:.0f} MiB (on the device)"


@contextlib.contextmanager
def execution_mode(mode):
    """Run the body in `mode` (graph or PyNative), then return to the mode of before."""
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        yield
    finally:
        ms.set_context(mode=before)


@contextlib.contextmanager
def inference_mode(*nets: nn.Cell):
    """Run the body with the networks set to inference, then give every cell in them its own training flag back."""
    flags = [(cell, cell.training) for net in nets for _, cell in net.cells_and_names()]
    training = [net.training for net in nets]
    try:
        for net in nets:
            net.set_train(False)
        yield
    finally:
        for net, flag in zip(nets, training, strict=True):
            net.set_train(flag)
        # A part may have been kept in inference on purpose, a frozen BN say.
        for cell, flag in flags:
            cell.add_flags(training=flag)
