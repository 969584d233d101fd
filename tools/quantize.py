"""Write a checkpoint as an INT8 ONNX file: python tools/quantize.py CKPT OUT.onnx; docs/deploy.md explains it."""

import json
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not


from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError

_OVERRIDES = (
    *("dataset", "data_dir", "val_share", "batch_size", "num_parallel_workers", "image_resize", "crop_pct"),
    *("interpolation", "mean", "std", "resize_backend", "on_bad_image", "bad_image_limit"),
)
_OPTIONS = (
    *("method", "percentile", "per_channel", "calibration", "calibration_images", "target_drop", "allow_drop"),
    *("equalize", "bias_correction", "preprocess", "limit"),
)


def main(argv=None):
    """Quantise after training, judge float and INT8 on the validation split, write, and print what was found."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint of this or any RepVGG project, in either form")
    parser.add_argument("out", metavar="OUT", help="the file to write, .onnx")
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
    parser.add_argument("--preprocess", action="store_true", help="input is uint8 NHWC (RGB); normalise in the graph")
    parser.add_argument("--limit", type=int, metavar="N", help="judge on N images only, spread over all classes")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in CKPT")
    parser.add_argument("--form", default="deploy", choices=("deploy", "train"), help="only deploy is quantised")
    parser.add_argument("--report", metavar="FILE.json", help="write all that was measured, target kept or not")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    arguments = parser.parse_args(argv)
    if arguments.form == "train":
        raise UserError("only the deploy form is quantised, which computes the same in inference")
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    given["weight_bits"] = None if arguments.weight_bits == "auto" else int(arguments.weight_bits)
    if (keep := arguments.keep_float) is not None:
        given["keep_float"] = int(keep) if keep.isdecimal() else tuple(keep.split(","))
    overrides = {name: getattr(arguments, name) for name in _OVERRIDES if getattr(arguments, name)}

    from mindrepvgg.deployment.int8 import quantize
    from mindrepvgg.runtime import device

    device.setup("CPU", mode=1)  # PyNative: a graph that runs a few times is not worth compiling
    options, rest = (
        quantize.QuantizeOptions(**given),
        {name: getattr(arguments, name) for name in ("weights", "report")},
    )
    places = arguments.ckpt, arguments.out
    done = quantize.quantize_checkpoint(*places, options, overrides=overrides, show_progress=not arguments.json, **rest)
    print(json.dumps(done.to_dict()) if arguments.json else done.format())
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
