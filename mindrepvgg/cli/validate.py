"""Validate a checkpoint, in train or deploy form, or an exported file. The file knows the rest itself.

    mindrepvgg validate best.ckpt
    mindrepvgg validate RepVGG-A0-train.pth --data_dir /data/imagenet --cross_check
    mindrepvgg validate best.ckpt --report report.html
    mindrepvgg validate best.onnx --against best.ckpt
    msrun --worker_num 8 --local_worker_num 8 --join True --log_dir msrun_log python -m mindrepvgg validate best.ckpt

The exit status is 1 when --cross_check finds a difference, or --against one above --rtol.
"""

import json
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError

_OVERRIDES = (
    *("dataset", "data_dir", "val_share", "batch_size", "num_parallel_workers"),
    *("image_resize", "crop_pct", "interpolation", "mean", "std", "resize_backend", "on_bad_image", "bad_image_limit"),
    "grouped",
)
# What is written beside what is printed.
_FILES = ("per_class", "confusion", "mistakes", "report")
# --cross_check compares logits and has no use for these.
_WAYS = ("limit", "flip", "amp_level", *_FILES, *options.ENGINE)
# --against counts both sides alike, in float32 but for --precision.
_NOT_AGAINST = ("flip", "amp_level", *_FILES)


def main(argv: Sequence[str] | None = None) -> int:
    """Print top-1, top-5, loss and speed on the validation split, or how far a file is from another or PyTorch."""
    parser = ArgumentParser("validate", description=__doc__)
    parser.add_checkpoint("CKPT", options.JUDGED)
    options.add_overrides(parser, _OVERRIDES)
    options.add_weights(parser)
    options.add_device(parser)
    options.add_mode(parser)
    parser.add_argument("--distribute", default="auto", choices=("auto", "false"), help="auto: if msrun started this")
    options.add_json(parser)
    way = parser.add_argument_group("ways to validate")
    way.add_argument("--limit", type=int, metavar="N", help="a quick look: only N images, spread over all classes")
    way.add_argument("--flip", action="store_true", help="average the logits of each image and its mirror image")
    way.add_argument("--amp_level", default="O0", choices=("O0", "O2", "O3"), help="O2, O3: float16, as in the recipe")
    options.add_engine(way)
    way.add_argument("--per_class", metavar="FILE.csv", help="write each class's accuracies and its worst confusion")
    way.add_argument("--confusion", metavar="FILE.csv|FILE.png", help="write or draw the confusion matrix")
    way.add_argument("--mistakes", metavar="FILE.png", help="draw the wrong images of which the network was most sure")
    text = "write one page of curves, confusions, classes, mistakes and the comparison of both forms"
    way.add_argument("--report", metavar="FILE.html", help=text)
    both = parser.add_argument_group("compare", "with another file, on the same images; status 1 if they differ")
    both.add_argument("--against", metavar="FILE", help="checkpoint or exported file: both accuracies, how far apart")
    check = parser.add_argument_group("cross-check", "compare with PyTorch on the same images; status 1 if they differ")
    check.add_argument("--cross_check", nargs="?", const="torch", choices=("torch", "timm"), help="the other side")
    check.add_argument("--reference", metavar="FILE", help="what PyTorch reads: the original of CKPT (default: CKPT)")
    text = "largest difference over the largest output (1e-4; --against: float16 1e-2, bfloat16 1e-1, INT8 any)"
    options.add_rtol(check, None, text)
    arguments = parser.parse_args(argv)
    _check(arguments, parser)
    overrides = options.given(arguments, _OVERRIDES)
    if arguments.against:
        return _compare(arguments, overrides)
    return (_cross_check if arguments.cross_check else _validate)(arguments, overrides)


def _check(arguments, parser):
    """Refuse, before any work is done, what cannot be done."""
    for name in _WAYS:
        if arguments.cross_check and getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"--cross_check compares logits with PyTorch's and takes no --{name}; give one of the two")
    if arguments.against and arguments.cross_check:
        raise UserError("--against and --cross_check are two comparisons; give one of the two")
    for name in _NOT_AGAINST:
        if arguments.against and getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"--against compares two files and takes no --{name}; give one of the two")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit (={arguments.limit}) must be at least 1")
    for name in _FILES:
        if getattr(arguments, name):
            from mindrepvgg.evaluation.class_report import SUFFIXES, check_suffix

            check_suffix(getattr(arguments, name), SUFFIXES[name])


def _validate(arguments, overrides):
    from mindrepvgg import api
    from mindrepvgg.runtime import ranks

    found = api.validate(
        arguments.ckpt_path,
        by_class=bool(arguments.per_class or arguments.confusion),
        mistakes=bool(arguments.mistakes),
        report=arguments.report,
        distribute=arguments.distribute == "auto" and "auto",
        show_progress=not arguments.json,
        **options.chosen(arguments, ("weights", "limit", "flip", "amp_level", "device_target", "mode")),
        **options.chosen(arguments, options.ENGINE),
        **overrides,
    )
    if ranks.joined().is_first:
        print(json.dumps(found.to_dict()) if arguments.json else found.format())
        if found.classes and arguments.per_class:
            found.classes.write_classes(arguments.per_class)
        if found.classes and arguments.confusion:
            found.classes.write_confusion(arguments.confusion, found.title)
        if found.mistakes and arguments.mistakes:
            found.mistakes.draw(arguments.mistakes, found.title)
        files = [file for name in _FILES if (file := getattr(arguments, name))]
        if files and not arguments.json:
            print(f"written: {', '.join(files)}")
    return 0


def _compare(arguments, overrides):
    from mindrepvgg.deployment.comparison import compare
    from mindrepvgg.runtime import ranks

    if ranks.start("auto" if arguments.distribute == "auto" else False).size > 1:
        raise UserError("--against is done in one process; start it without msrun")
    found = compare(
        arguments.ckpt_path,
        arguments.against,
        show_progress=not arguments.json,
        **options.chosen(arguments, ("weights", "limit", "device_target", "mode", "rtol", *options.ENGINE)),
        **overrides,
    )
    print(json.dumps(found.to_dict()) if arguments.json else found.format())
    return 0 if found.passed else 1


def _cross_check(arguments, overrides):
    from mindrepvgg.evaluation.crosscheck import cross_check_file
    from mindrepvgg.runtime import device, ranks
    from mindrepvgg.weights.load import load_weights, local_file

    device.setup("CPU", arguments.mode)
    if ranks.start("auto" if arguments.distribute == "auto" else False).size > 1:
        raise UserError("--cross_check is done in one process; start it without msrun")
    path, weights = local_file(arguments.ckpt_path, arguments.weights)
    net = load_weights(path, weights)
    against = (
        arguments.reference,
        arguments.cross_check,
        weights == "ema",
        1e-4 if arguments.rtol is None else arguments.rtol,
    )
    checked, images = cross_check_file(path, net, overrides, *against)
    print(
        json.dumps({**checked.to_dict(), "images": images}) if arguments.json else f"on {images}:\n{checked.format()}"
    )
    return 0 if checked.passed else 1
