"""A model repository for Triton around an ONNX file. No server has run it here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.errors import UserError

_MOST = 32  # images of a batch
_DELAY = 3000  # microseconds that a request may wait for others
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def check_triton(options):
    """Raise UserError for a file that Triton cannot batch."""
    if options.batch_size:
        raise UserError("Triton makes the batches itself, of any size: leave out --batch_size")


def model_place(destination: Path, source: Path) -> Path:
    """Where the ONNX file lies in a repository: its model is called as the checkpoint."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", source.stem)
    if destination.suffix == ".onnx" or (destination.exists() and not destination.is_dir()):
        raise UserError(f"{destination} must be a folder, the model repository: --for triton writes several files")
    return destination / name / "1" / "model.onnx"


def triton_files(written) -> dict[Path, str]:
    """Write the model's config.pbtxt, and labels.txt for a network that classifies.

    Args:
        written: the `Written` file, in its place.

    Returns:
        Text by path.
    """
    folder = written.path.parent.parent
    labels = None if written.variant.features else _labels(written.metadata)
    _, *dims = written.options.input_shape(written.channels)
    lines = [
        f"name: {json.dumps(folder.name)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {_MOST}",
        *_tensor("input", INPUT, _TYPES[written.options.input_type], dims),
    ]
    for name, (_, *shape) in written.outputs.items():
        lines += _tensor("output", name, _TYPES["float32"], shape, labels and "labels.txt")
    lines += ["dynamic_batching {", f"  max_queue_delay_microseconds: {_DELAY}", "}"]
    files = {folder / "config.pbtxt": "\n".join(lines) + "\n"}
    return {**files, folder / "labels.txt": labels} if labels else files


def triton_commands(written) -> tuple[tuple[str, str], ...]:
    """Write the command that starts the server.

    Args:
        written: the `Written` file, in its place.

    Returns:
        (what it does, command).
    """
    repository = written.path.parent.parent.parent
    return (("a server: tritonserver", shlex.join(["tritonserver", f"--model-repository={repository}"])),)


def _tensor(kind, name, type_name, shape, labels=None):
    """One input or output, without the axis of the batch; -1 for a size that is not fixed."""
    dims = ", ".join(str(size if isinstance(size, int) else -1) for size in shape)
    told = [f"    label_filename: {json.dumps(labels)}"] if labels else []
    lines = [f"    name: {json.dumps(name)}", f"    data_type: {type_name}", f"    dims: [ {dims} ]", *told]
    return [f"{kind} [", "  {", *lines, "  }", "]"]


def _labels(metadata):
    """A class a line, in the order of the logits."""
    names = metadata.get("class_names") or [str(index) for index in range(metadata["num_classes"])]
    return "".join(f"{' '.join(name.split())}\n" for name in names)
