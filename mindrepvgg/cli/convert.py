"""Read a RepVGG checkpoint of any project and write it in another form, project and container.

    mindrepvgg convert best.ckpt deploy.ckpt
    mindrepvgg convert RepVGG-A0-train.pth a0.ckpt --form train
    mindrepvgg convert best.ckpt best.pth --dialect official

Branches are fused in float64, and both forms are compared before anything is written. The exit status is 1 when they
differ.
"""

from collections.abc import Sequence
from pathlib import Path

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.weights.released import released_of

_LOADING = """\
import timm
net = timm.create_model("{model}", num_classes={num_classes}, in_chans={in_channels}, checkpoint_path={path!r})
net.eval()"""


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, print the equivalence report; exit status 1, and no file, when the two forms differ."""
    parser = ArgumentParser("convert", description=__doc__)
    parser.add_checkpoint("SRC", ".pth, .pt, .safetensors or .ckpt of any project")
    parser.add_argument(
        "dst", metavar="DST", nargs="?", help="file to write: .ckpt, .safetensors, or .pth with PyTorch"
    )
    parser.add_argument("--inspect", action="store_true", help="only print what is in SRC")
    forms = ("deploy", "train")
    parser.add_argument("--form", choices=forms, help="train keeps the branches (default: deploy; for timm: train)")
    parser.add_argument(
        "--dialect", default="mindrepvgg", help="whose parameter names DST gets (%(default)s, timm ...)"
    )
    options.add_weights(parser)
    parser.add_argument("--num_classes", type=int, help="refuse a checkpoint of another class count")
    options.add_rtol(parser, 1e-4, "largest difference over the largest output (%(default)s)")
    parser.add_argument("--allow_nonfinite", action="store_true", help="accept NaN and infinite weights")
    parser.add_argument("--report", action="store_true", help="save the report as DST's name with .report.json")
    options.add_device(parser, "CPU", "where both forms run (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.inspect == (arguments.dst is not None):
        raise UserError("give either DST, the file to write, or --inspect")

    from mindrepvgg import api
    from mindrepvgg.weights import convert, load

    if arguments.inspect:
        found = load.import_weights(arguments.ckpt_path, arguments.weights, arguments.allow_nonfinite)
        print("\n".join(f"{key}: {value}" for key, value in convert.describe(found).items()))
        return 0
    names = ("form", "dialect", "weights", "num_classes", "rtol", "allow_nonfinite", "device_target")
    try:
        done = api.convert(arguments.ckpt_path, arguments.dst, **options.chosen(arguments, names))
    except EquivalenceError as error:
        print(error.report.format())
        raise
    if done.report:
        print(done.report.format())
        print("the inputs are noise: the proof is the column weights, each kernel beside its branches fused in float64")
    print(f"written: {arguments.dst} ({done.form} form, {done.dialect}'s names)")
    if done.dialect != "mindrepvgg":
        print(f"what it does not tell itself: {convert.description_beside(arguments.dst)}")
    elif "image_size" not in done.source:
        size = "{0}x{0}".format(KEYS["image_resize"].default)
        print(
            f"{arguments.ckpt_path} does not tell its picture size: {size} is taken wherever {arguments.dst} is used; "
            "--image_resize there changes it, of export --image_size"
        )
    if done.dialect == convert.TIMM and done.form == "train" and _is_in_timm(done.source["model"]):
        print(_LOADING.format(**{**done.source, "path": str(arguments.dst)}))
    if arguments.report:
        path = Path(arguments.dst).with_suffix(".report.json")
        convert.write_report(done, path)
        print(f"report: {path}")
    return 0


def _is_in_timm(model: str) -> bool:
    """Whether timm has a network of this name: it has released weights of each one."""
    return any(item.source == "timm" for item in released_of(model))
