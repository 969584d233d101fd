"""Predict the classes of pictures: python tools/predict.py --ckpt_path FILE IMAGE|FOLDER|- ...

    python tools/predict.py --ckpt_path best.ckpt photos/ cat.jpg --topk 3 --out drawn
    curl ... | python tools/predict.py --ckpt_path RepVGG-A0-train.pth - --class_names imagenet.txt --json

A picture that cannot be read is reported in its place, the others are predicted all the same. Exit status then: 1, and
with --on_bad_image skip, which leaves it out but for a line on standard error, 0 as long as one picture can be read.
"""

import json
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not


from mindrepvgg.cli import entry
from mindrepvgg.errors import DataError, UserError

_OVERRIDES = ("num_parallel_workers", "image_resize", "crop_pct", "interpolation", "mean", "std", "resize_backend")


def main(argv=None):
    """Print the most probable classes of each picture."""
    parser = entry.ArgumentParser(description="The most probable classes of pictures, by a checkpoint of any project.")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER|-", help="-: one picture from standard input")
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="checkpoint of this or any RepVGG project")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes a picture (%(default)s)")
    parser.add_argument("--class_names", metavar="FILE", help="one a line or a JSON list; default: the checkpoint's")
    parser.add_argument("--out", metavar="FOLDER", help="write each picture here with its classes on it")
    parser.add_argument("--json", action="store_true", help="print one JSON list, for programs")
    parser.add_argument("--batch_size", default="32", metavar="N", help="pictures at a time (%(default)s)")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in FILE")
    parser.add_argument("--engine", default="mindspore", choices=("mindspore", "onnxruntime"))
    parser.add_argument("--device_target", default="auto", choices=("auto", "CPU", "Ascend"), help="of mindspore")
    parser.add_argument("--on_bad_image", default="error", choices=("error", "skip"), help="error: exit status 1")
    arguments = parser.parse_args(argv)
    if arguments.topk < 1:
        raise UserError(f"topk (={arguments.topk}) must be at least 1")

    from tqdm import tqdm

    from mindrepvgg.data import inputs
    from mindrepvgg.evaluation import draw, predict
    from mindrepvgg.runtime import device
    from mindrepvgg.weights.load import load_weights

    files = inputs.InputFiles(arguments.inputs)
    drawer = draw.Drawer(arguments.out, files) if arguments.out else None
    device.setup("CPU" if arguments.engine == "onnxruntime" else arguments.device_target)
    net = load_weights(arguments.ckpt_path, arguments.weights)
    names = predict.class_names_of(net, arguments.class_names)
    given = {name: getattr(arguments, name) for name in ("batch_size", *_OVERRIDES) if getattr(arguments, name)}
    loader = predict.loader_for(net, files, given)
    results, failed, skip = [], 0, arguments.on_bad_image == "skip"
    if arguments.engine == "onnxruntime":
        from mindrepvgg.deployment.engine import engine_of  # needs a package that MindSpore's users may not have

        run = engine_of(net)
    else:
        run = predict.runner(net)
    for index, result in enumerate(predict.predict(run, loader, names, arguments.topk, show_progress=True)):
        failed += result.error is not None
        drawn = {"drawn": str(drawer.write(index, result))} if drawer and result.error is None else {}
        if result.error and skip:
            tqdm.write(f"skipped: {result.error}", file=sys.stderr)
        elif arguments.json:
            results.append({**result.to_dict(), **drawn})
        else:
            tqdm.write("\n".join([result.format(), *(f"  drawn: {path}" for path in drawn.values())]))
    if arguments.json:
        print(json.dumps(results, indent=2))
    if skip and failed == len(files):
        raise DataError(f"none of the {failed} pictures could be read")
    return 1 if failed and not skip else 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
