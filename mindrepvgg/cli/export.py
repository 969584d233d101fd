"""Export a checkpoint's deploy form as an ONNX, MindIR, AIR or .wts file (docs/deploy.md).

    mindrepvgg export best.ckpt best.onnx
    mindrepvgg export RepVGG-A1-train.pth a1.onnx --preprocess --softmax
    mindrepvgg export best.ckpt best.onnx --for ascend

The file is run and compared with the network before it is kept.
"""

import json
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError

_OVERRIDES = ("mean", "std", "crop_pct", "interpolation", "grouped")
_OPTIONS = (
    *("batch_size", "image_size", "precision", "preprocess", "fold_normalisation", "softmax", "opset"),
    *("float32_layers", "weights", "rtol", "soc_version", "target", "device_target"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, run it, compare it with the network, and print what was found."""
    parser = ArgumentParser("export", description=__doc__)
    parser.add_checkpoint("CKPT", f"{options.CHECKPOINT}, in either form")
    parser.add_argument("out", metavar="OUT", help="the file to write: .onnx, .mindir, .wts, or on Ascend .air")
    text = "options, files beside OUT and commands for it; for triton OUT is a folder"
    targets = ("ascend", "lite", "tensorrt", "triton")
    parser.add_argument("--for", "--target", dest="target", choices=targets, help=text)
    parser.add_argument("--batch_size", metavar="N", help="a number, or dynamic (dynamic; 16 --for ascend)")
    parser.add_argument("--image_size", metavar="H,W", help="pixels, or dynamic (default: as the checkpoint says)")
    precisions = ("float32", "float16")
    parser.add_argument("--precision", default="float32", choices=precisions, help="inside; input and output: float32")
    text = "blocks that stay in float32, by patterns of names, as 'stage0,stage1.*'; with --precision float16"
    parser.add_argument("--float32_layers", type=lambda given: given.split(","), metavar="NAME,...", help=text)
    parser.add_argument("--preprocess", action="store_true", help="input is uint8 NHWC (RGB); normalise in the graph")
    text = "input is float32 NCHW of 0 to 255; mean and std in the first convolution"
    parser.add_argument("--fold_normalisation", action="store_true", help=text)
    parser.add_argument("--softmax", action="store_true", help="probabilities instead of logits")
    parser.add_argument("--opset", type=int, help="of ONNX (default: the newest that Ascend's ATC documents)")
    options.add_overrides(parser, _OVERRIDES)
    options.add_weights(parser)
    parser.add_argument("--form", default="deploy", choices=("deploy", "train"), help="only deploy is exported")
    options.add_rtol(parser, None, "largest difference over the largest output (by precision)")
    parser.add_argument("--soc_version", default="Ascend310P3", help="chip in the command for ATC (%(default)s)")
    options.add_device(parser, "CPU")
    options.add_json(parser)
    arguments = parser.parse_args(argv)
    if arguments.form == "train":
        raise UserError("only the deploy form is exported, which computes the same; convert --form train keeps it")

    from mindrepvgg import api

    settings = {**options.chosen(arguments, _OPTIONS), **options.given(arguments, _OVERRIDES)}
    done = api.export(arguments.ckpt_path, arguments.out, **settings)
    print(json.dumps(done.to_dict()) if arguments.json else done.format())
    return 0
