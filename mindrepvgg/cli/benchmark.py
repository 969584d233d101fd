"""Measure the latency and throughput of networks by form, engine, precision and batch size.

    mindrepvgg benchmark --models repvgg_a0,repvgg_b1 --engines mindspore,onnxruntime,torch --out results.md
    mindrepvgg benchmark a1.onnx a1.int8.onnx --engines onnxruntime,openvino --precisions float32,bfloat16
    mindrepvgg benchmark --ckpt_path best.ckpt --forms deploy --batch_sizes 1,8,32 --csv results.csv

The paper's table 4 on any device: the speed of each network beside ResNet-18's, and the plot of accuracy over speed.

    mindrepvgg benchmark --forms deploy --batch_sizes 128 --baselines resnet18,resnet34,resnet50,resnet101
        --models repvgg_a0,repvgg_a1,repvgg_b0,repvgg_a2,repvgg_b1g4,repvgg_b1g2,repvgg_b1 --plot speed.png

mindrepvgg/measure/contest.py says what the figures are of. The exit status is 1 when a contestant broke down.
"""

from collections.abc import Sequence
from pathlib import Path

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; files are written anew after each batch size, so that none is lost."""
    parser = ArgumentParser("benchmark", description=__doc__)
    parser.add_argument("--models", metavar="NAME,...", default="", help="networks of the family (repvgg_a0)")
    parser.add_argument("files", nargs="*", metavar="CKPT", help="checkpoints of any project, exported files")
    parser.add_argument("--ckpt_path", nargs="+", default=[], metavar="FILE", help="checkpoints too")
    parser.add_argument("--forms", metavar="FORM,...", default="train,deploy", help="train, deploy (both)")
    parser.add_argument("--batch_sizes", metavar="N,...", default="1,16", help="images a call (%(default)s)")
    parser.add_argument(
        "--precisions", metavar="NAME,...", default="float32", help="float32, float16, bfloat16 (float32)"
    )
    text = "mindspore, onnxruntime, openvino, torch, torch.compile (%(default)s); of a file, those that run it"
    parser.add_argument("--engines", metavar="NAME,...", default="mindspore", help=text)
    parser.add_argument("--baselines", metavar="NAME,...", default="", help="networks of MindCV, as resnet18")
    parser.add_argument("--image_size", metavar="N", default=224, help="pixels of a side (%(default)s)")
    parser.add_argument("--rounds", metavar="N", default=20, help="counted calls of each contestant (%(default)s)")
    parser.add_argument("--warmup", metavar="N", default=3, help="calls before them (%(default)s)")
    parser.add_argument("--num_threads", metavar="N", help="cores to hold each contestant to (default: all)")
    options.add_device(parser, text="of mindspore (%(default)s)")
    parser.add_argument("--alone", action="store_true", help="one contestant at a time, where memory is short")
    parser.add_argument("--top1", metavar="NAME=PERCENT,...", default={}, help="accuracies, over the published ones")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as a Markdown table too")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all figures, unrounded")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw published accuracy against speed")
    arguments = vars(parser.parse_args(argv))
    out, table, plot = (arguments.pop(name) for name in ("out", "csv", "plot"))

    from mindrepvgg.measure import contest, report
    from mindrepvgg.measure.settings import Settings
    from mindrepvgg.runtime import device

    settings = Settings(ckpt_paths=arguments.pop("files") + arguments.pop("ckpt_path"), **arguments)
    if plot:
        report.check_plot(plot, settings)
    device.setup("CPU")  # this process makes the weights; the device is its contestants'
    for found in contest.measure(settings, show_progress=True):
        if out:
            found.write(out)
        if table:
            found.write_csv(table)
    print(found.format())
    if plot:
        found.draw(plot)
    return 1 if found.failed else 0
