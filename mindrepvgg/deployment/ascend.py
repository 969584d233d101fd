"""The commands that turn an exported file into what Ascend's inference devices run.

They are written from documentation and have not been run by us. Sources: CANN 8.0, "ATC", the pages of --framework
(ONNX: 5, AIR: 1), --input_shape, --dynamic_batch_size, --dynamic_image_size, --dynamic_dims and --precision_mode_v2;
MindSpore Lite, "Offline Conversion of Inference Models" and "Ascend Conversion Tool Description".
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.errors import UserError

# On Ascend a dynamic dimension is a choice of a few sizes, which the conversion of the file names.
_BATCHES = (1, 2, 4, 8, 16)
_LARGER = 32  # pixels: the second size of a dynamic image size

_AIPP_ALONE = "; it documents uint8 inputs for AIPP alone, so rather export without --preprocess"

_ATC_PRECISION = {"float32": "origin", "float16": "fp16"}
_LITE_PRECISION = {"float32": "enforce_origin", "float16": "enforce_fp16"}
_GE_PRECISION = {"float32": "must_keep_origin_dtype", "float16": "force_fp16"}


def ascend_commands(written) -> tuple[tuple[str, str], ...]:
    """Write the commands for ATC and for MindSpore Lite's converter. ATC reads no MindIR, the converter no AIR.

    Args:
        written: the `Written` file.

    Returns:
        (what it makes, command) of each.
    """
    path, options, channels, image_size = written.path, written.options, written.channels, written.image_size
    commands = []
    if path.suffix in (".onnx", ".air"):
        title = f"an OM file for {written.soc_version}: ATC"
        if options.preprocess:
            title += _AIPP_ALONE
        arguments = atc_arguments(path, options, channels, image_size, written.soc_version)
        commands.append((title, shlex.join(["atc", *arguments])))
    if path.suffix in (".onnx", ".mindir"):
        title = "MindSpore Lite on Ascend: converter_lite"
        if _crashes(options):
            title += "; on a CPU 2.0.0 crashes with a float16 file of any batch, so rather export with --batch_size N"
        commands.append((title, _lite(path, options, channels, image_size)))
    return tuple(commands)


def amct_commands(path, options, channels, image_size, soc_version) -> tuple[tuple[str, str], ...]:
    """Write the commands for an INT8 file: AMCT makes a file for ATC of it, and ATC compiles that one.

    AMCT writes two files: `_deploy_model.onnx` and `_fake_quant_model.onnx` stand behind the name that it is given. The
    second one is for onnxruntime ("convert_qat_model", CANN 8.0). ATC is left its own precision, as in AMCT's examples.

    Args:
        path: the INT8 file, as `quantize --for ascend` writes it.
        options, channels, image_size, soc_version: see `atc_arguments`.

    Returns:
        (what it makes, command) of each.
    """
    arguments = atc_arguments(amct_output(path), options, channels, image_size, soc_version)
    kept = [argument for argument in arguments if not argument.startswith("--precision_mode")]
    title = f"an OM file for {soc_version}: ATC{_AIPP_ALONE if options.preprocess else ''}"
    return (
        ("a file for ATC: AMCT", shlex.join(["python3", "-c", amct_program(path)])),
        (title, shlex.join(["atc", *kept])),
    )


def amct_program(path: Path) -> str:
    """The line of Python by which AMCT makes a file for ATC of an INT8 file."""
    # In double quotes, which a shell's single ones may hold.
    names = ", ".join(map(json.dumps, (str(path), str(path.with_suffix("")))))
    return f"import amct_onnx; amct_onnx.convert_qat_model({names})"


def amct_output(path: Path) -> Path:
    """The file that AMCT makes of an INT8 file, for ATC."""
    return Path(f"{path.with_suffix('')}_deploy_model.onnx")


def lite_commands(written) -> tuple[tuple[str, str], ...]:
    """Write the command for MindSpore Lite's converter on a CPU, and that for Ascend.

    Args:
        written: the `Written` ONNX file.

    Returns:
        (what it makes, command) of each.
    """
    path, options = written.path, written.options
    arguments = [*_converter(path, options), f"--outputFile={path.with_suffix('')}"]
    if options.batch_size and options.image_size:
        arguments.append(f"--inputShape={INPUT}:{_joined(options.input_shape(written.channels))}")
    command = shlex.join(["converter_lite", *arguments])
    for_ascend = _lite(path, options, written.channels, written.image_size)
    return ("a .ms file for a CPU: converter_lite", command), ("MindSpore Lite on Ascend: converter_lite", for_ascend)


def check_lite(options):
    """Raise UserError for a file that MindSpore Lite cannot run."""
    if _crashes(options):
        raise UserError(
            "MindSpore Lite 2.0.0 crashes with a float16 file of any batch or image size: give --batch_size N and no "
            "dynamic image_size"
        )


def _crashes(options):
    """Whether MindSpore Lite 2.0.0 was seen to die of such a file, on a CPU, when it computes."""
    return options.precision == "float16" and not (options.batch_size and options.image_size)


def _converter(path, options):
    """The converter's arguments for a file.

    Without the last one it makes of ONNX a file that takes NHWC, silently. A file with --preprocess takes NHWC anyway.
    """
    arguments = [f"--fmk={path.suffix[1:].upper()}", f"--modelFile={path}"]
    return [*arguments, "--inputDataFormat=NCHW"] if path.suffix == ".onnx" and not options.preprocess else arguments


def _profiles(options, image_size):
    """Return the sizes to convert a file for, as tuples of its dynamic dimensions; none for a static file."""
    sizes = [image_size, tuple(side + _LARGER for side in image_size)]
    batches = [] if options.batch_size else [(count,) for count in _BATCHES]
    if options.image_size:
        return batches
    return [batch + size for batch in batches for size in sizes] if batches else sizes


def _joined(values, separator=","):
    return separator.join(map(str, values))


def atc_arguments(path, options, channels, image_size, soc_version) -> list[str]:
    """Write ATC's arguments.

    Args:
        path: the ONNX or AIR file.
        options: the `GraphOptions` it was exported with.
        channels: of the images.
        image_size: (height, width) that a dynamic size starts from.
        soc_version: the chip, as ATC names it.
    """
    arguments = [f"--model={path}", f"--framework={1 if path.suffix == '.air' else 5}"]
    arguments += [f"--output={path.with_suffix('')}", f"--soc_version={soc_version}"]
    if path.suffix == ".onnx":
        layout = "NHWC" if options.preprocess else "NCHW"
        profiles = _joined((_joined(profile) for profile in _profiles(options, image_size)), ";")
        if not options.batch_size and not options.image_size:
            dynamic, layout = [f"--dynamic_dims={profiles}"], "ND"
        elif not options.batch_size:
            dynamic = [f"--dynamic_batch_size={profiles.replace(';', ',')}"]
        else:
            dynamic = [f"--dynamic_image_size={profiles}"] if not options.image_size else []
        shape = _joined(options.input_shape(channels, -1, -1, -1))
        arguments += [f"--input_format={layout}", f"--input_shape={INPUT}:{shape}", *dynamic]
    arguments.append(f"--precision_mode_v2={_ATC_PRECISION[options.precision]}")
    return arguments


def _lite(path, options, channels, image_size):
    """Return two commands: one writes the converter's configuration, the other converts."""
    shape = _joined(options.input_shape(channels, -1, -1, -1))
    profiles = _profiles(options, image_size)
    static = []
    if not options.batch_size and not options.image_size:
        steps = _joined((_joined(profile) for profile in profiles), ";")
        lines = ["[acl_build_options]", 'input_format="ND"', f'input_shape="{INPUT}:{shape}"']
        lines += [f'ge.dynamicDims="{steps}"', f"ge.exec.precision_mode={_GE_PRECISION[options.precision]}"]
    else:
        lines = ["[ascend_context]", f"precision_mode={_LITE_PRECISION[options.precision]}"]
        if profiles:
            lines += [f"input_format={'NHWC' if options.preprocess else 'NCHW'}", f"input_shape={INPUT}:[{shape}]"]
            lines.append(f"dynamic_dims={_joined(f'[{_joined(profile)}]' for profile in profiles)}")
        else:
            static = [f"--inputShape={INPUT}:{shape}"]
    configuration = path.with_suffix(".lite.ini")
    arguments = [*_converter(path, options), f"--outputFile={path.with_suffix('')}_lite"]
    arguments += ["--saveType=MINDIR", "--optimize=ascend_oriented", *static, f"--configFile={configuration}"]
    written = shlex.join(["printf", r"%s\n", *lines])
    return f"{written} > {shlex.quote(str(configuration))}\n{shlex.join(['converter_lite', *arguments])}"
