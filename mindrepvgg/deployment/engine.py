"""Exported files of every kind, and networks in memory, as functions of arrays: which engine runs which."""

from __future__ import annotations

from pathlib import Path

from mindrepvgg.deployment.engine_base import ENGINES, MINDSPORE, ONNXRUNTIME, OPENVINO, Engine
from mindrepvgg.deployment.graph import GraphOptions, build_onnx, require_onnx
from mindrepvgg.deployment.mindir_engine import MindIREngine
from mindrepvgg.deployment.onnx_engine import OnnxEngine
from mindrepvgg.deployment.openvino_engine import OpenVinoEngine
from mindrepvgg.errors import UserError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.variants import DEPLOY
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.runtime.optional import require_optional
from mindrepvgg.text import quoted
from mindrepvgg.version import __version__

# The engines that run an exported file, by its suffix; the first one unless another is asked for.
RUNS = {".onnx": (ONNXRUNTIME, OPENVINO), ".xml": (OPENVINO,), ".mindir": (MINDSPORE,)}


def is_exported(path) -> bool:
    """Whether a file is one for inference, told by its suffix: ONNX, OpenVINO's IR or MindIR."""
    return Path(path).suffix in RUNS


def open_engine(path, engine: str | None = None, num_threads: int | None = None, precision: str = "float32") -> Engine:
    """Open an exported file of any kind.

    Args:
        path: `.onnx`; `.xml` with its `.bin` beside it; or `.mindir` with its `.mindir.json`.
        engine: one of ENGINES; None: the first that runs such a file, see `RUNS`.
        num_threads: threads of one call; None: the engine's choice.
        precision: "float32", or under openvino "bfloat16".

    Raises:
        UserError: the engine does not run such a file, or has no such option; or its package is missing.
        CheckpointError: the file cannot be used, see the engine's class.
    """
    suffix = Path(path).suffix
    if suffix not in RUNS:
        raise UserError(f"{path} is no exported file: its name must end in one of {', '.join(RUNS)}")
    chosen = engine or RUNS[suffix][0]
    if chosen not in RUNS[suffix]:
        raise UserError(f"--engine {chosen} does not run {path}: {suffix} is for {' or '.join(RUNS[suffix])}")
    check_options(chosen, num_threads, precision)
    if chosen == OPENVINO:
        return OpenVinoEngine(path, num_threads, precision)
    return OnnxEngine(path, num_threads) if chosen == ONNXRUNTIME else MindIREngine(path)


def check_options(engine: str, num_threads: int | None = None, precision: str = "float32"):
    """Raise UserError for options that an engine does not have."""
    if engine not in ENGINES:
        raise UserError(f"engine (={quoted(engine)}) must be one of {', '.join(ENGINES)}")
    if precision != "float32" and engine != OPENVINO:
        raise UserError(f"--precision {precision} is for --engine openvino; the engine here is {engine}")
    if num_threads is not None and engine == MINDSPORE:
        raise UserError("--num_threads is for the engines onnxruntime and openvino; the engine here is mindspore")
    if num_threads is not None and num_threads < 1:
        raise UserError(f"num_threads (={num_threads}) must be at least 1")


def network_facts(net) -> dict:
    """Return what a network says of itself, for the metadata of an exported file: plain types by name."""
    facts = {
        "mindrepvgg": __version__,
        "model": net.variant.name,
        **({"model_args": net.variant.model_args} if net.variant.model_args else {}),
        "form": DEPLOY,
        **({"features": net.variant.features.to_dict()} if net.variant.features else {"num_classes": net.num_classes}),
        "in_channels": net.in_channels,
    }
    return {**facts, **{key: net.metadata[key] for key in ("class_names", "dataset") if key in net.metadata}}


def engine_of(
    net,
    num_threads: int | None = None,
    engine: str = ONNXRUNTIME,
    precision: str = "float32",
) -> OnnxEngine | OpenVinoEngine:
    """Make an engine of a MindSpore network, in memory, for any batch and image size.

    Args:
        net: in either form; a train-form network is fused in a copy.
        num_threads: see the engine's class.
        engine: "onnxruntime" or "openvino".
        precision: see `open_engine`.

    Raises:
        UserError: onnx or the engine's package is missing.
    """
    if engine == OPENVINO:
        require_optional("openvino", "openvino", "the engine openvino")
    else:
        require_onnx()
    layout = net.variant.deploy_layout(engine, "take the engine mindspore")
    deployed = net if net.deploy else to_deploy(net)
    facts = {**network_facts(net), "model": layout.name}
    model = build_onnx(layout, network_arrays(deployed), GraphOptions(), facts)
    content = model.SerializeToString()
    if engine == OPENVINO:
        return OpenVinoEngine(content, num_threads, precision)
    return OnnxEngine(content, num_threads)
