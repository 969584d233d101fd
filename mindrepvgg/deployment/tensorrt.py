"""The command that makes a TensorRT engine of an ONNX file. Not run on a GPU: it is from documentation."""

from __future__ import annotations

import shlex

from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.errors import UserError

_FIRST = "stage1."  # what TensorRT 8.6.1 gave zeros for in float16
_BATCHES = (1, 16, 32)  # least, best, most


def check_tensorrt(options):
    """Raise UserError for options that TensorRT shall choose by itself."""
    if options.precision != "float32":
        raise UserError("TensorRT takes float16 layer by layer from a float32 file: leave out --precision float16")
    if options.image_size is None:
        raise UserError("the command for trtexec needs an image size: give --image_size H,W, not dynamic")


def tensorrt_commands(written) -> tuple[tuple[str, str], ...]:
    """Write the trtexec commands, in float32 and in float16 with the first stage in float32.

    Args:
        written: the `Written` file.

    Returns:
        (what it makes, command) of each.
    """
    path, options = written.path, written.options
    arguments = [f"--onnx={path}"]
    if not options.batch_size:
        for name, count in zip(("min", "opt", "max"), _BATCHES, strict=True):
            shape = "x".join(map(str, options.input_shape(written.channels, count)))
            arguments.append(f"--{name}Shapes={INPUT}:{shape}")
    layers = [
        f"{spec.name}.{leaf}:fp32"
        for spec in written.variant.block_specs()
        if spec.name.startswith(_FIRST)
        for leaf in ("conv", "relu")
    ]
    half = [f"--saveEngine={path.with_suffix('.fp16.plan')}", "--fp16", "--precisionConstraints=obey"]
    half += [f"--{name}={','.join(layers)}" for name in ("layerPrecisions", "layerOutputTypes")]
    return (
        (
            "an engine in float32: trtexec",
            shlex.join(["trtexec", *arguments, f"--saveEngine={path.with_suffix('.plan')}"]),
        ),
        (
            "an engine in float16, the first stage in float32 (TensorRT 8.6.1 made zeros of B1's in float16); compare "
            "its outputs with the file's before you use it",
            shlex.join(["trtexec", *arguments, *half]),
        ),
    )
