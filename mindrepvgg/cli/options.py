"""The options that several verbs share, each written once."""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Iterable

from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.text import quoted

CHECKPOINT = "checkpoint of this or any RepVGG project"
JUDGED = f"{CHECKPOINT}, or exported file: .onnx, .xml (OpenVINO), .mindir"

ENGINE = ("engine", "precision", "num_threads")  # the options of `add_engine`


def add_device(parser: ArgumentParser, default: str = "auto", text: str = "where it runs (%(default)s)"):
    """Add --device_target."""
    parser.add_argument("--device_target", default=default, choices=("auto", "CPU", "Ascend"), help=text)


def add_mode(parser: ArgumentParser):
    """Add --mode."""
    parser.add_argument("--mode", type=int, default=0, choices=(0, 1), help="0: graph mode; 1: PyNative mode")


def add_engine(parser: ArgumentParser | _ArgumentGroup):
    """Add --engine, and its --precision and --num_threads."""
    text = "what computes (mindspore; of an exported file, the engine it is for)"
    parser.add_argument("--engine", choices=("mindspore", "onnxruntime", "openvino"), help=text)
    text = "of openvino's arithmetic (%(default)s); tells how far bfloat16 is from float32"
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help=text)
    parser.add_argument("--num_threads", type=int, metavar="N", help="of onnxruntime and openvino (their own choice)")


def add_weights(parser: ArgumentParser):
    """Add --weights."""
    text = "ema: the averaged copy in the checkpoint"
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help=text)


def add_rtol(parser: ArgumentParser | _ArgumentGroup, default: float | None, text: str):
    """Add --rtol."""
    parser.add_argument("--rtol", type=_tolerance, default=default, help=text)


def _tolerance(text: str) -> float:
    """A number that says what may differ."""
    from mindrepvgg.reparam.compare import is_tolerance  # loads NumPy

    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_tolerance(value):
        raise ArgumentTypeError(f"{quoted(text)} must be a number of at least 0")
    return value


def add_json(parser: ArgumentParser, text: str = "print one JSON object, for programs"):
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=text)


def add_overrides(parser: ArgumentParser, names: Iterable[str]):
    """Add an option for each of these recipe keys; a checkpoint knows a value for each of them."""
    for name in names:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")


def given(arguments: Namespace, names: Iterable[str]) -> dict:
    """The arguments of these names that were given, by name."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name)}


def chosen(arguments: Namespace, names: Iterable[str]) -> dict:
    """The arguments of these names, given or not, by name."""
    return {name: getattr(arguments, name) for name in names}


def add_threads(parser: ArgumentParser):
    """Add --num_parallel_workers."""
    cores = os.cpu_count() or 1
    parser.add_argument("--num_parallel_workers", type=int, default=cores, metavar="N", help="threads (%(default)s)")
