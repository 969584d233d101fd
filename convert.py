"""Fuse a trained checkpoint into its deploy form: python convert.py SRC DST"""

import sys

from mindrepvgg import cli
from mindrepvgg.errors import EquivalenceError


def main(argv=None):
    """Convert, print the equivalence report; exit status 1, and no file, when the two forms differ."""
    parser = cli.ArgumentParser(
        description="Fuse the branches of a train-form checkpoint into a deploy checkpoint, and prove that both forms "
        "compute the same before writing it."
    )
    parser.add_argument("src", metavar="SRC", help="train-form checkpoint, .ckpt or .safetensors")
    parser.add_argument("dst", metavar="DST", help="deploy checkpoint to write, .ckpt or .safetensors")
    parser.add_argument(
        "--rtol", type=float, default=1e-4, help="largest difference over the largest output (%(default)s)"
    )
    parser.add_argument(
        "--device_target", default="CPU", choices=("auto", "CPU", "Ascend"), help="where both forms run"
    )
    arguments = parser.parse_args(argv)

    from mindrepvgg import runtime
    from mindrepvgg.convert import convert_checkpoint

    runtime.setup(arguments.device_target)
    try:
        report = convert_checkpoint(arguments.src, arguments.dst, arguments.rtol)
    except EquivalenceError as error:
        print(error.report.format())
        raise
    print(report.format())
    print(f"written: {arguments.dst}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
