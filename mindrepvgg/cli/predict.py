"""Predict the classes of pictures.

    mindrepvgg predict best.ckpt photos/ cat.jpg --topk 3 --out drawn
    curl ... | mindrepvgg predict RepVGG-A0-train.pth - --class_names imagenet.txt --json

A picture that cannot be read is reported in its place, and the others are predicted. The exit status is then 1. With
--on_bad_image skip, the picture is only named on standard error, and the status is 0 if any picture can be read.
"""

import json
import sys
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import DataError

_OVERRIDES = (
    *("num_parallel_workers", "image_resize", "crop_pct", "interpolation", "mean", "std", "resize_backend"),
    "grouped",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the most probable classes of each picture."""
    parser = ArgumentParser("predict", description=__doc__)
    parser.add_checkpoint("CKPT", options.JUDGED)
    parser.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER|-", help="-: one picture from standard input")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes a picture (%(default)s)")
    parser.add_argument("--class_names", metavar="FILE", help="one a line or a JSON list; default: the checkpoint's")
    parser.add_argument("--out", metavar="FOLDER", help="write each picture here with its classes on it")
    options.add_json(parser, "print one JSON list, for programs")
    parser.add_argument("--batch_size", default="32", metavar="N", help="pictures at a time (%(default)s)")
    options.add_overrides(parser, _OVERRIDES)
    options.add_weights(parser)
    options.add_engine(parser)
    options.add_device(parser, text="of mindspore (%(default)s)")
    parser.add_argument("--on_bad_image", default="error", choices=("error", "skip"), help="error: exit status 1")
    arguments = parser.parse_args(argv)

    from tqdm import tqdm

    from mindrepvgg import api

    found = api.predict(
        arguments.ckpt_path,
        arguments.inputs,
        show_progress=True,
        **options.chosen(arguments, ("topk", "class_names", "out", "weights", "device_target", *options.ENGINE)),
        **options.given(arguments, ("batch_size", *_OVERRIDES)),
    )
    results, failed, count, skip = [], 0, 0, arguments.on_bad_image == "skip"
    for result in found:
        count, failed = count + 1, failed + (result.error is not None)
        if result.error and skip:
            tqdm.write(f"skipped: {result.error}", file=sys.stderr)
        elif arguments.json:
            results.append(result.to_dict())
        else:
            tqdm.write(result.format())
    if arguments.json:
        print(json.dumps(results, indent=2))
    if skip and failed == count:
        raise DataError(f"none of the {failed} pictures could be read")
    return 1 if failed and not skip else 0
