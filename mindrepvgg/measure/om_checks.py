"""Checks of the files that `export --for ascend` writes: ATC compiles them, and the chip runs what was compiled.

onnxruntime says what is right, on the host's CPU. The compiled file runs in a process of its own, by the package
ais_bench, as in the script that users get.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrepvgg.deployment.ascend import amct_output, amct_program
from mindrepvgg.deployment.ascend_files import aipp_configuration, compile_arguments
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.export import TOLERANCES
from mindrepvgg.deployment.folding import folded_input
from mindrepvgg.deployment.graph import DEFAULT_OPSET, GraphOptions, build_onnx, require_onnx
from mindrepvgg.deployment.int8.ascend_form import OPSET, to_ascend
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.deployment.written import Written
from mindrepvgg.errors import UserError
from mindrepvgg.measure.ascend_check_report import CheckFailed, CheckSkipped, npu_smi
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.synthetic import parameter_values, uniform
from mindrepvgg.models.variants import DEPLOY, find
from mindrepvgg.reparam.compare import difference

_MODEL, _BATCH, _SIZE = "repvgg_nano", 4, 64
_PREPARED = Preprocessing(
    image_size=(_SIZE, _SIZE), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), in_channels=3
)
_SECONDS = 1800  # an ATC that hangs must not take the other checks with it


class Kind(NamedTuple):
    """What is exported.

    Attributes:
        precision: of the ONNX file.
        aipp: whether the chip normalises.
        folded: whether the first convolution does.
        int8: whether the file is in INT8, for AMCT.
    """

    precision: str = "float32"
    aipp: bool = False
    folded: bool = False
    int8: bool = False


KINDS = {
    "float32": Kind(),
    "float16": Kind("float16"),
    "mean and std folded": Kind(folded=True),
    "AIPP": Kind("float16", aipp=True),  # AIPP gives float16
    "INT8": Kind(int8=True),
}

# Of the largest logit. What is left in float is float16 on the chip, by which an activation may round to its neighbour.
_INT8_TOLERANCE = 5e-2


def check_om(kind: Kind):
    """Export a small network, compile it with ATC, run it, and compare it with onnxruntime.

    Args:
        kind: one of KINDS.

    Returns:
        A line and figures, see `run_check`.
    """
    if shutil.which("atc") is None:
        raise CheckSkipped("atc is not on PATH: source CANN's set_env.sh")
    try:
        require_onnx()
    except UserError as error:
        raise CheckSkipped(str(error)) from None
    if kind.int8 and importlib.util.find_spec("amct_onnx") is None:
        raise CheckSkipped("the package amct_onnx is not installed: AMCT for ONNX, of CANN")
    soc_version = _chip()
    pixels = ((uniform("pictures", (_BATCH, _SIZE, _SIZE, 3)) + 1) * 128).astype(np.uint8)
    as_floats = folded_input(pixels)
    gain, bias = _PREPARED.gain_and_bias()
    images = as_floats if kind.folded else as_floats * gain + bias
    with tempfile.TemporaryDirectory(prefix="mindrepvgg-om.") as folder:
        written = _export(Path(folder, "check.onnx"), kind, soc_version)
        if kind.int8:
            _quantize(written, images)
        expected = OnnxEngine(written.path)(images)
        aipp = None
        if kind.aipp:
            aipp = Path(folder, "check.aipp.cfg")
            aipp.write_text(aipp_configuration(written), encoding="utf-8")
        arguments = compile_arguments(written, aipp)
        if kind.int8:
            path = Path(written.path.name)
            _call([sys.executable, "-c", amct_program(path)], folder)
            Path(folder, amct_output(path)).replace(written.path)
            arguments = [argument for argument in arguments if not argument.startswith("--precision_mode")]
        _call(["atc", *arguments, f"--soc_version={soc_version}"], folder)
        if importlib.util.find_spec("ais_bench") is None:
            raise CheckSkipped(f"compiled for {soc_version} and not run: the package ais_bench is not installed")
        found = _run(pixels if kind.aipp else images, folder)
    if found.shape != expected.shape:
        raise CheckFailed(f"the outputs are {found.shape}, expected {expected.shape}")
    relative = difference(expected, found)[1]
    line = f"{soc_version}: the logits differ from onnxruntime's by {relative:.1e} of the largest"
    if not relative <= (_INT8_TOLERANCE if kind.int8 else TOLERANCES[kind.precision]):
        raise CheckFailed(f"{line}: too much", relative)
    return line, relative


def _chip():
    """The first chip, as ATC names it: 'Ascend', and the name that `npu-smi info` shows."""
    text = npu_smi()
    named = re.search(r"^\|\s*\d+\s+([0-9A-Z][\w-]*)\s*\|", text, re.MULTILINE)
    if named is None:
        raise CheckSkipped(f"the chip's name is not known: {text.partition(chr(10))[0] or 'npu-smi shows none'}")
    return f"Ascend{named[1]}"


def _export(path, kind, soc_version):
    """Write the ONNX file."""
    variant = find(_MODEL)
    arrays = parameter_values(parameter_shapes(variant, DEPLOY))
    options = GraphOptions(
        _BATCH,
        _PREPARED.image_size,
        precision=kind.precision,
        folded=_PREPARED if kind.folded else None,
        opset=OPSET if kind.int8 else DEFAULT_OPSET,
    )
    path.write_bytes(build_onnx(variant, arrays, options).SerializeToString())
    return Written(path, options, {}, variant, 3, _PREPARED.image_size, _PREPARED, soc_version)


def _quantize(written, images):
    """Make the file INT8, with ranges from the images that it is checked on."""
    layers = layer_nodes(written.variant, written.options.output)
    model = Quantizer(written.path, layers, [images], IntegerOptions(linear_per_channel=False)).model(layers)
    written.path.write_bytes(to_ascend(model).SerializeToString())


def _call(command, folder):
    """Run a command in a folder; raise CheckFailed with its last line where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{command[0]} takes more than {_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        # ATC tells the reason after a code, as E10001.
        told = next((line for line in lines if re.match(r"E\w\d{4}", line)), lines[-1] if lines else "no message")
        raise CheckFailed(f"{command[0]} fails with status {done.returncode}: {told.strip()}")


def _run(images, folder):
    """What the compiled file computes."""
    np.save(Path(folder, "images.npy"), images)
    outputs = Path(folder, "outputs")
    outputs.mkdir()
    arguments = ["--model", "check.om", "--input", "images.npy", "--output", "outputs", "--outfmt", "NPY"]
    _call([sys.executable, "-m", "ais_bench", *arguments], folder)
    files = sorted(outputs.rglob("*.npy"))
    if len(files) != 1:
        raise CheckFailed(f"ais_bench wrote {len(files)} outputs, expected 1")
    return np.load(files[0])
