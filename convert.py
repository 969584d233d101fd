"""Convert a checkpoint, by default into our deploy form: python convert.py SRC DST"""

import sys
from pathlib import Path

from mindrepvgg.cli import entry
from mindrepvgg.errors import EquivalenceError, UserError


def main(argv=None):
    """Convert, print the equivalence report; exit status 1, and no file, when the two forms differ."""
    parser = entry.ArgumentParser(
        description="Read a RepVGG checkpoint of any project and write it in another form, project and container. "
        "Branches are fused in float64, and both forms are compared before anything is written."
    )
    parser.add_argument("src", metavar="SRC", help=".pth, .pt, .safetensors or .ckpt of any project")
    parser.add_argument(
        "dst", metavar="DST", nargs="?", help="file to write: .ckpt, .safetensors, or .pth with PyTorch"
    )
    parser.add_argument("--inspect", action="store_true", help="only print what is in SRC")
    parser.add_argument("--form", default="deploy", choices=("deploy", "train"), help="train keeps the branches")
    parser.add_argument(
        "--dialect", default="mindrepvgg", help="whose parameter names DST gets (%(default)s, timm ...)"
    )
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in SRC")
    parser.add_argument("--num_classes", type=int, help="refuse a checkpoint of another class count")
    parser.add_argument(
        "--rtol", type=float, default=1e-4, help="largest difference over the largest output (%(default)s)"
    )
    parser.add_argument("--allow_nonfinite", action="store_true", help="accept NaN and infinite weights")
    parser.add_argument("--report", action="store_true", help="save the report as DST's name with .report.json")
    parser.add_argument(
        "--device_target", default="CPU", choices=("auto", "CPU", "Ascend"), help="where both forms run"
    )
    arguments = parser.parse_args(argv)
    if arguments.inspect == (arguments.dst is not None):
        raise UserError("give either DST, the file to write, or --inspect")

    from mindrepvgg.runtime import device
    from mindrepvgg.weights import convert, load

    if arguments.inspect:
        found = load.import_weights(arguments.src, arguments.weights, arguments.allow_nonfinite)
        print("\n".join(f"{key}: {value}" for key, value in convert.describe(found).items()))
        return 0
    # PyNative: two graphs that run once each are not worth compiling.
    device.setup(arguments.device_target, mode=1)
    options = ("dialect", "form", "weights", "num_classes", "rtol", "allow_nonfinite")
    try:
        done = convert.convert_checkpoint(
            arguments.src, arguments.dst, **{name: getattr(arguments, name) for name in options}
        )
    except EquivalenceError as error:
        print(error.report.format())
        raise
    if done.report:
        print(done.report.format())
    print(f"written: {arguments.dst} ({done.form} form, {done.dialect}'s names)")
    if arguments.report:
        path = Path(arguments.dst).with_suffix(".report.json")
        convert.write_report(done, path)
        print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
