"""The command `mindrepvgg`: its verbs, each a module of this package, and the help that lists them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.text import nearest, quoted
from mindrepvgg.version import __version__

GROUPS = {
    "networks": {
        "train": "train a network as a recipe says",
        "validate": "measure the accuracy of a checkpoint or an exported file; compare two",
        "predict": "print the most probable classes of pictures",
        "summary": "list a network's layers, parameters and multiplications",
    },
    "weights and deployment": {
        "weights": "list the released weights, and download them by name",
        "convert": "fuse the branches; read and write the checkpoints of other projects",
        "export": "write an ONNX, MindIR or AIR file",
        "quantize": "write an INT8 ONNX file",
        "check-int8": "hold an INT8 ONNX file against what Ascend's AMCT accepts",
    },
    "data": {
        "draw-shapes": "draw a set of pictures to try things on",
        "check-data": "find unreadable pictures and duplicates",
        "pack": "pack a folder of pictures into MindRecord files",
    },
    "measurements": {
        "benchmark": "measure the speed of networks, forms and engines",
        "ascend-check": "compare a device with what a CPU computed",
    },
}
VERBS = tuple(verb for group in GROUPS.values() for verb in group)

_LIFE_CYCLE = """\
  mindrepvgg train -c quickstart --ckpt_save_dir runs/digits
  mindrepvgg validate runs/digits/repvgg_nano_best.ckpt
  mindrepvgg convert runs/digits/repvgg_nano_best.ckpt digits.ckpt
  mindrepvgg predict digits.ckpt photo.png
  mindrepvgg export digits.ckpt digits.onnx"""


def load(verb: str) -> ModuleType:
    """The module of a verb. Its function `main` takes the arguments behind the verb and returns the exit status.

    Raises:
        UserError: there is no such verb.
    """
    if verb.startswith("-"):
        raise UserError(
            f"the verb comes before its options, and {quoted(verb)} is an option; mindrepvgg --help lists the verbs"
        )
    name = verb.replace("_", "-")
    if name not in VERBS:
        near = nearest(name, VERBS)
        hint = f"did you mean {near}?" if near else "mindrepvgg --help lists the verbs"
        raise UserError(f"unknown verb {quoted(verb)}; {hint}")
    return importlib.import_module(f"mindrepvgg.cli.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mindrepvgg VERB ...`.

    Args:
        argv: the verb and its arguments; None takes them from the command line.

    Returns:
        The exit status; see `entry.run`.
    """
    return entry.run(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"mindrepvgg {__version__}")
        return 0
    return load(argv[0]).main(argv[1:])


def _help() -> str:
    lines = [
        "usage: mindrepvgg VERB ...",
        "",
        "RepVGG on MindSpore: train with branches, fuse them into 3x3 convolutions, deploy.",
        "",
        "From training to deployment:",
        _LIFE_CYCLE,
    ]
    width = max(map(len, VERBS))
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {verb:<{width}}  {text}" for verb, text in verbs.items())]
    return "\n".join([*lines, "", "`mindrepvgg VERB --help` lists a verb's options."])
