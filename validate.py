"""Validate a checkpoint, alone or shared out over devices.

python validate.py --ckpt_path FILE [--data_dir FOLDER] [--cross_check]
msrun --worker_num 8 --local_worker_num 8 --join True --log_dir msrun_log python validate.py --ckpt_path FILE
"""

import json
import sys

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError

_OVERRIDES = (
    *("dataset", "data_dir", "val_share", "batch_size", "num_parallel_workers"),
    *("image_resize", "crop_pct", "interpolation", "mean", "std", "resize_backend", "on_bad_image", "bad_image_limit"),
)
# What --cross_check, which compares logits, has no use for.
_WAYS = ("limit", "flip", "amp_level", "engine", "per_class", "confusion")


def main(argv=None):
    """Print top-1, top-5, loss and speed of a checkpoint on its validation split, or how far it is from PyTorch."""
    parser = entry.ArgumentParser(
        description="Validate a checkpoint, in train or deploy form: it knows the rest itself."
    )
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="checkpoint of this or any RepVGG project")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in FILE")
    parser.add_argument("--device_target", default="auto", choices=("auto", "CPU", "Ascend"))
    parser.add_argument("--mode", type=int, default=0, choices=(0, 1), help="0: graph mode; 1: PyNative mode")
    parser.add_argument("--distribute", default="auto", choices=("auto", "false"), help="auto: if msrun started this")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    way = parser.add_argument_group("ways to validate")
    way.add_argument("--limit", type=int, metavar="N", help="a quick look: only N images, spread over all classes")
    way.add_argument("--flip", action="store_true", help="average the logits of each image and its mirror image")
    way.add_argument("--amp_level", default="O0", choices=("O0", "O2", "O3"), help="O2, O3: float16, as in the recipe")
    way.add_argument("--engine", default="mindspore", choices=("mindspore", "onnxruntime"), help="what computes")
    way.add_argument("--per_class", metavar="FILE.csv", help="write each class's accuracies and its worst confusion")
    way.add_argument("--confusion", metavar="FILE.csv|FILE.png", help="write or draw the confusion matrix")
    check = parser.add_argument_group("cross-check", "compare with PyTorch on the same images; status 1 if they differ")
    check.add_argument("--cross_check", nargs="?", const="torch", choices=("torch", "timm"), help="the other side")
    check.add_argument("--reference", metavar="FILE", help="what PyTorch reads: the original of FILE (default: FILE)")
    check.add_argument(
        "--rtol", type=float, default=1e-4, help="largest difference over the largest logit (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    _check(arguments, parser)

    from mindrepvgg.runtime import device, ranks
    from mindrepvgg.weights.load import load_weights

    on_cpu = arguments.cross_check or arguments.engine == "onnxruntime"
    target = device.setup("CPU" if on_cpu else arguments.device_target, arguments.mode)
    group = ranks.start(False if arguments.distribute == "false" else "auto", target)
    net = load_weights(arguments.ckpt_path, arguments.weights)
    overrides = {name: getattr(arguments, name) for name in _OVERRIDES if getattr(arguments, name)}
    report = _cross_check if arguments.cross_check else _validate
    return report(net, overrides, target, group, arguments)


def _check(arguments, parser):
    """Refuse, before any work is done, what cannot be done."""
    for name in _WAYS:
        if arguments.cross_check and getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"--cross_check compares logits with PyTorch's and takes no --{name}; give one of the two")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit (={arguments.limit}) must be at least 1")
    if arguments.engine == "onnxruntime" and (arguments.amp_level != "O0" or arguments.device_target == "Ascend"):
        raise UserError("--engine onnxruntime computes in float32 on the CPU; leave out --amp_level and Ascend with it")
    if arguments.per_class or arguments.confusion:
        from mindrepvgg.evaluation.classes import TABLE, TABLE_OR_PICTURE, check_suffix

        for path, suffixes in ((arguments.per_class, TABLE), (arguments.confusion, TABLE_OR_PICTURE)):
            if path:
                check_suffix(path, suffixes)


def _validate(net, overrides, target, group, arguments):
    from mindrepvgg.evaluation.validation import Way, validate

    way = Way(**{name: getattr(arguments, name) for name in Way._fields})
    by_class = bool(arguments.per_class or arguments.confusion)
    engine = None
    if way.engine == "onnxruntime":
        from mindrepvgg.deployment.engine import engine_of as engine  # for those who ask for it
    found = validate(net, overrides, target, group, way, by_class, not arguments.json, engine)
    group.leave()
    if group.is_first:
        print(json.dumps(found.to_dict()) if arguments.json else found.format())
        if arguments.per_class:
            found.classes.write_classes(arguments.per_class)
        if arguments.confusion:
            found.classes.write_confusion(arguments.confusion)
    return 0


def _cross_check(net, overrides, _device, group, arguments):
    from mindrepvgg.evaluation.crosscheck import check_file

    if group.size > 1:
        raise UserError("--cross_check is done in one process; start it without msrun")
    options = (arguments.reference, arguments.cross_check, arguments.weights == "ema", arguments.rtol)
    checked, images = check_file(arguments.ckpt_path, net, overrides, *options)
    print(
        json.dumps({**checked.to_dict(), "images": images}) if arguments.json else f"on {images}:\n{checked.format()}"
    )
    return 0 if checked.passed else 1


if __name__ == "__main__":
    sys.exit(entry.run(main))
