"""Write a checkpoint as an INT8 ONNX file (docs/quantisation.md).

    mindrepvgg quantize best.ckpt best.int8.onnx --search 12 --report int8.json
    mindrepvgg quantize best.ckpt best.int8.onnx --for ascend
    mindrepvgg quantize best.ckpt layers.png --diagnose

Float and INT8 are compared on the validation split. The exit status is 1, and no file is written, when INT8 loses more
than --target_drop.
"""

import json
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError

_OVERRIDES = (
    *("dataset", "data_dir", "val_share", "batch_size", "num_parallel_workers", "image_resize", "crop_pct"),
    *("interpolation", "mean", "std", "resize_backend", "on_bad_image", "bad_image_limit"),
)
_OPTIONS = (
    *("method", "percentile", "per_channel", "calibration", "calibration_images", "target_drop", "allow_drop"),
    *("equalize", "bias_correction", "zero_dead", "search", "preprocess", "limit", "weights", "report"),
    *("target", "soc_version"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Quantise after training, judge float and INT8 on the validation split, write, and print what was found."""
    parser = ArgumentParser("quantize", description=__doc__)
    parser.add_checkpoint("CKPT", f"{options.CHECKPOINT}, in either form")
    parser.add_argument(
        "out", metavar="OUT", nargs="?", help="the file to write, .onnx; with --diagnose a picture, .png"
    )
    parser.add_argument(
        "--diagnose", action="store_true", help="write no file; say what INT8 does to each layer, and why"
    )
    targets = ("onnxruntime", "openvino", "ascend")
    text = "what takes the file (%(default)s); ascend: another form, checked, with the commands for AMCT and ATC"
    parser.add_argument("--for", "--target", dest="target", default=targets[0], choices=targets, help=text)
    parser.add_argument("--soc_version", default="Ascend310P3", help="chip in the command for ATC (%(default)s)")
    parser.add_argument("--calibration", metavar="DIR|DATASET", help="default: the training split of what is judged on")
    parser.add_argument("--calibration_images", type=int, default=256, metavar="N", help="of all classes (%(default)s)")
    parser.add_argument("--method", default="minmax", choices=("minmax", "entropy", "percentile"), help="of the ranges")
    parser.add_argument("--percentile", type=float, default=99.99, help="of --method percentile (%(default)s)")
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument("--per_channel", action="store_true", default=True, help="a scale a channel (default)")
    scales.add_argument("--per_tensor", dest="per_channel", action="store_false", help="a scale a layer")
    parser.add_argument("--weight_bits", default="auto", choices=("auto", "8", "7"), help="7: for CPUs that saturate")
    parser.add_argument("--keep_float", metavar="N|LAYER,...", help="default: as few of the worst as keep the target")
    parser.add_argument("--target_drop", type=float, default=0.5, help="points of top-1 INT8 may lose (%(default)s)")
    parser.add_argument("--allow_drop", action="store_true", help="write the best found where none keeps the target")
    parser.add_argument("--equalize", action="store_true", help="scale channels against each other first")
    parser.add_argument("--bias_correction", action="store_true", help="correct the biases for the rounding of weights")
    parser.add_argument("--zero_dead", action="store_true", help="zero the weights that read channels without a signal")
    parser.add_argument(
        "--split",
        metavar="auto|LAYER,...",
        help="the centre tap as a convolution of its own; auto: where it is worth it",
    )
    parser.add_argument("--search", type=int, metavar="N", help="try the repairs in turn, judging at most N files")
    parser.add_argument("--preprocess", action="store_true", help="input is uint8 NHWC (RGB); normalise in the graph")
    parser.add_argument("--limit", type=int, metavar="N", help="judge on N images only, spread over all classes")
    options.add_overrides(parser, _OVERRIDES)
    options.add_weights(parser)
    parser.add_argument("--form", default="deploy", choices=("deploy", "train"), help="only deploy is quantised")
    parser.add_argument("--report", metavar="FILE.json", help="write all that was measured, target kept or not")
    options.add_json(parser)
    arguments = parser.parse_args(argv)
    if arguments.form == "train":
        raise UserError("only the deploy form is quantised, which computes the same in inference")
    settings = {**options.chosen(arguments, _OPTIONS), **options.given(arguments, _OVERRIDES)}
    settings["weight_bits"] = None if arguments.weight_bits == "auto" else int(arguments.weight_bits)
    if (keep := arguments.keep_float) is not None:
        settings["keep_float"] = int(keep) if keep.isdecimal() else tuple(keep.split(","))
    if arguments.split is not None:
        settings["split"] = "auto" if arguments.split == "auto" else tuple(arguments.split.split(","))

    import mindrepvgg

    if arguments.diagnose:
        found = mindrepvgg.diagnose(arguments.ckpt_path, arguments.out, show_progress=not arguments.json, **settings)
        print(json.dumps(found.to_dict()) if arguments.json else found.format())
        files = [file for file in (arguments.out, arguments.report) if file]
        if files and not arguments.json:
            print(f"written: {', '.join(files)}")
        return 0
    if arguments.out is None:
        raise UserError("OUT is missing: the file to write, .onnx; only --diagnose needs none")
    done = mindrepvgg.quantize(arguments.ckpt_path, arguments.out, show_progress=not arguments.json, **settings)
    print(json.dumps(done.to_dict()) if arguments.json else done.format())
    return 0
