"""What `--for ascend` writes beside an ONNX file: AIPP's configuration, and a script that compiles and measures.

Written from CANN 8.0, "ATC", the pages of --insert_op_conf and of AIPP's normalisation: the chip computes
(pixel - mean_chn - min_chn) * var_reci_chn. Nothing of it has been run on an NPU.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from mindrepvgg.deployment.ascend import atc_arguments
from mindrepvgg.errors import UserError

_AIPP_FORMATS = {1: "YUV400_U8", 3: "RGB888_U8"}  # by channels


def check_ascend(options):
    """Raise UserError for options that the script cannot have."""
    if not (options.batch_size and options.image_size):
        raise UserError("--for ascend compiles one batch and image size: give numbers, not dynamic")
    if options.preprocess:
        raise UserError(
            "ATC documents uint8 inputs for AIPP alone: leave out --preprocess (AIPP normalises), or give "
            "--fold_normalisation"
        )


def deploy_commands(written) -> tuple[tuple[str, str], ...]:
    """Write the command that runs the script.

    Args:
        written: the `Written` file.

    Returns:
        (what it does, command).
    """
    title = f"compile for {written.soc_version} and measure: ATC, ais_bench"
    return ((title, shlex.join(["sh", str(_script(written.path)), written.soc_version])),)


def ascend_files(written) -> dict[Path, str]:
    """Write the script, and AIPP's configuration unless mean and std are folded.

    Args:
        written: the `Written` file.

    Returns:
        Text by path.

    Raises:
        UserError: AIPP cannot normalise for this network.
    """
    path = written.path
    if written.options.folded:
        return {
            _script(path): _deploy(written, None, f"{written.options.takes}; mean and std are in the first convolution")
        }
    aipp = path.with_suffix(".aipp.cfg")
    script = _deploy(written, aipp, "uint8 NHWC, which AIPP normalises")
    return {aipp: aipp_configuration(written), _script(path): script}


def compile_arguments(written, aipp: Path | None = None) -> list[str]:
    """Write ATC's arguments for the folder that the file is in, without the chip.

    Args:
        written: the `Written` file.
        aipp: AIPP's configuration beside it.
    """
    path = Path(written.path.name)
    arguments = atc_arguments(path, written.options, written.channels, written.image_size, written.soc_version)
    kept = [argument for argument in arguments if not argument.startswith("--soc_version=")]
    return [*kept, f"--insert_op_conf={aipp.name}"] if aipp else kept


def _script(path):
    return path.with_suffix(".deploy.sh")


def _deploy(written, aipp, takes):
    """The script. It works in its own folder, so it may be copied to another machine with the files beside it."""
    path = written.path
    count = written.options.batch_size
    return f"""#!/bin/sh
# Compiles {path.name} with ATC, and measures images a second with ais_bench.
# NOT RUN ON AN NPU by those who wrote it: its options are from the documentation of CANN 8.0.
# It needs CANN's toolkit, its set_env.sh sourced, and the Python package ais_bench.
# The compiled file takes batches of {count}, {takes}.
# usage: sh {_script(path).name} [SOC_VERSION]: Ascend, and the chip's name as npu-smi info shows it
set -eu
cd "$(dirname "$0")"
soc_version=${{1:-{shlex.quote(written.soc_version)}}}
{shlex.join(["atc", *compile_arguments(written, aipp)])} --soc_version="$soc_version"
{shlex.join(["python3", "-m", "ais_bench", "--model", f"{path.stem}.om", "--batchsize", str(count)])}
"""


def aipp_configuration(written) -> str:
    """Write AIPP's configuration; raise UserError where it cannot normalise for this network.

    Args:
        written: the `Written` file.
    """
    known, channels = written.normalisation, written.channels
    if known is None:
        raise UserError("the checkpoint does not tell mean and std, which AIPP needs: give --mean and --std")
    if channels not in _AIPP_FORMATS:
        raise UserError(f"AIPP takes 1 or 3 channels, not {channels}: give --fold_normalisation")
    height, width = written.image_size
    order = ["# Colours in the order R, G, B; for B, G, R set rbuv_swap_switch to true."] if channels > 1 else []
    lines = [
        "# uint8 pictures, already resized and cut to size. mean and std are here as of pixels from 0 to 255.",
        *order,
        "aipp_op {",
        "    aipp_mode: static",
        f"    input_format: {_AIPP_FORMATS[channels]}",
        f"    src_image_size_w: {width}",
        f"    src_image_size_h: {height}",
        "    crop: false",
        "    csc_switch: false",
        "    rbuv_swap_switch: false",
    ]
    for index, (mean, std) in enumerate(zip(known.mean, known.std, strict=True)):
        lines += [
            f"    mean_chn_{index}: 0",  # a whole number; min_chn holds the fraction too
            f"    min_chn_{index}: {255 * mean:.6f}",
            f"    var_reci_chn_{index}: {1 / (255 * std):.9f}",
        ]
    return "\n".join([*lines, "}"]) + "\n"
