"""Export a checkpoint's deploy form: python tools/export.py CKPT OUT.{onnx,mindir,air}; docs/deploy.md explains it."""

import json
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not


from mindrepvgg.cli import entry
from mindrepvgg.deployment.graph import DEFAULT_OPSET, PRECISIONS, GraphOptions
from mindrepvgg.errors import UserError

_OVERRIDES = ("mean", "std", "crop_pct", "interpolation")
_DYNAMIC = "dynamic"


def main(argv=None):
    """Write the file, run it, compare it with the network, and print what was found."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint of this or any RepVGG project, in either form")
    parser.add_argument("out", metavar="OUT", help="the file to write: .onnx, .mindir, or on Ascend .air")
    parser.add_argument("--batch_size", default=_DYNAMIC, metavar="N", help="a number, or dynamic (%(default)s)")
    parser.add_argument("--image_size", metavar="H,W", help="pixels, or dynamic (default: as the checkpoint says)")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="inside; input and output: float32")
    parser.add_argument("--preprocess", action="store_true", help="input is uint8 NHWC (RGB); normalise in the graph")
    parser.add_argument("--softmax", action="store_true", help="probabilities instead of logits")
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET, help="of ONNX (%(default)s)")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in CKPT")
    parser.add_argument("--form", default="deploy", choices=("deploy", "train"), help="only deploy is exported")
    parser.add_argument("--rtol", type=float, help="largest difference over the largest output (by precision)")
    parser.add_argument("--soc_version", default="Ascend310P3", help="chip in the command for ATC (%(default)s)")
    parser.add_argument("--device_target", default="CPU", choices=("auto", "CPU", "Ascend"), help="where it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    arguments = parser.parse_args(argv)
    if arguments.form == "train":
        raise UserError("only the deploy form is exported, which computes the same; convert.py --form train keeps it")
    batch_size = None if arguments.batch_size == _DYNAMIC else _whole("batch_size", arguments.batch_size)
    overrides = {name: getattr(arguments, name) for name in _OVERRIDES if getattr(arguments, name)}
    if arguments.image_size not in (None, _DYNAMIC):
        overrides["image_resize"] = arguments.image_size
    options = GraphOptions(batch_size, None, arguments.precision, softmax=arguments.softmax, opset=arguments.opset)

    from mindrepvgg.deployment import export
    from mindrepvgg.runtime import device

    device.setup(arguments.device_target, mode=1)  # PyNative: a graph that runs a few times is not worth compiling
    done = export.export_checkpoint(
        arguments.ckpt,
        arguments.out,
        options,
        preprocess=arguments.preprocess,
        fixed_size=arguments.image_size != _DYNAMIC,
        overrides=overrides,
        **{name: getattr(arguments, name) for name in ("weights", "rtol", "soc_version")},
    )
    print(json.dumps(done.to_dict()) if arguments.json else done.format())
    return 0


def _whole(name, text):
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name} (={text!r}) must be a whole number of at least 1, or {_DYNAMIC}")
    return int(text)


if __name__ == "__main__":
    sys.exit(entry.run(main))
