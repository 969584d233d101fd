"""What training for INT8 is worth: a small network trained and fine-tuned in several ways, in float and as INT8.

    python benchmarks/quantization_training.py [--recipe configs/quickstart.yaml] [--epochs 10] [--seeds 3]

INT8 is `to_fake_quantized`, whose numbers are those of integers: activations by their extremes over 1024 training
images, one grid a tensor; kernels with a scale for each output channel, or one for all. An engine may do better with
a better calibration. Every seed trains its own network, from which its fine-tunings start.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, installed or not


from mindrepvgg.cli import entry
from mindrepvgg.recipe.sources import load_recipe

_TUNED = {"fine-tuned with branches": "none", "fine-tuned with BN": "bn", "fine-tuned with QAT": "qat"}


def main(argv=None):
    """Train, measure and print a markdown table."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default=str(_ROOT / "configs" / "quickstart.yaml"), metavar="YAML")
    parser.add_argument("--epochs", type=int, default=10, help="of training (%(default)s)")
    parser.add_argument("--tuning_epochs", type=int, default=3, help="of fine-tuning, at a tenth of lr (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.recipe, {"epoch_size": arguments.epochs, "warmup_epochs": 1})
    print(measure(recipe, arguments.tuning_epochs, range(arguments.seeds)))
    return 0


def measure(recipe, tuning_epochs, seeds) -> str:
    """A markdown table: mean top-1 over the seeds with the standard deviation, and how far INT8's logits lie off."""
    from mindrepvgg.runtime.environment import processor

    start, rows = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name, figures in run_seed(recipe.replace(seed=seed), tuning_epochs, Path(folder, str(seed))):
                rows.setdefault(name, []).append(figures)
                print(f"seed {seed}: {name}: {figures}", file=sys.stderr)
    lines = [
        f"{recipe.model} on {recipe.dataset}, {recipe.epoch_size} epochs and {tuning_epochs} of fine-tuning, "
        f"{len(seeds)} seeds, top-1 in % (standard deviation); {processor()}, {os.cpu_count()} cores, "
        f"{time.perf_counter() - start:.0f} s:",
        "",
        "| training | float | INT8, a scale each channel | logits off by | INT8, a scale each kernel | logits off by |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        top1, *int8 = ([*column] for column in zip(*found, strict=True))
        cells = [_spread(top1)]
        for accuracies, distances in zip(int8[::2], int8[1::2], strict=True):
            cells += [_spread(accuracies), f"{100 * statistics.mean(distances):.1f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(accuracies):
    return f"{statistics.mean(accuracies):.2f} ({statistics.pstdev(accuracies):.2f})"


def run_seed(recipe, tuning_epochs, folder):
    """Train and fine-tune one seed's networks; yields (way, its figures), see `judge`."""
    from mindrepvgg import save_checkpoint

    plain = train(recipe, folder / "plain")
    calibration, validation = batches_of(recipe)
    yield "plain", judge(plain, calibration, validation)
    other = train(recipe.replace(custom_l2=True), folder / "l2")
    yield "custom L2", judge(other, calibration, validation)
    start = folder / "plain.ckpt"
    save_checkpoint(plain, start)
    tuning = {"epoch_size": tuning_epochs, "lr": recipe.lr / 10, "warmup_epochs": 0, "pretrained": str(start)}
    for name, form in _TUNED.items():
        net = train(recipe.replace(**tuning, quantization=form), folder / form)
        yield name, judge(net, calibration, validation)


def train(recipe, folder):
    """The network after the recipe's last epoch."""
    from mindrepvgg.training.trainer import Trainer

    with contextlib.redirect_stdout(sys.stderr):
        trainer = Trainer(recipe.replace(ckpt_save_dir=str(folder), val_while_train=False, keep_checkpoint_max=0))
        trainer.run()
    return trainer.net.set_train(False)


def batches_of(recipe):
    """(calibration images, validation images with labels), as lists of batches."""
    from mindrepvgg.data.datasets import open_source
    from mindrepvgg.data.loaders import CalibrationBatches, eval_loader, loader_of
    from mindrepvgg.data.source import spread

    recipe = recipe.replace(batch_size=250)
    source = open_source(recipe.dataset, recipe.data_dir, "train", recipe.num_classes, recipe.val_share)
    calibration = list(CalibrationBatches(loader_of(recipe, spread(source, 1024))))
    return calibration, [(images[valid], labels[valid]) for images, labels, valid in eval_loader(recipe)]


def judge(net, calibration, validation) -> tuple[float, ...]:
    """(top-1 in float; for a scale each channel, then for one each kernel: top-1 as INT8, RMS of the difference).

    The difference is that of the logits, over the RMS of the float network's. A network of 'qat' form has its own grids
    in the first, and is calibrated anew for the second.
    """
    from mindrepvgg.models import qat

    form = qat.form_of(net)
    floats = net if form is None else qat.fold_bn(net)
    fused = qat.to_trainable_deploy(floats)
    expected, top1 = run(fused, validation)
    figures = [top1]
    for per_channel in (True, False):
        int8 = net
        if form != qat.QAT or not per_channel:
            int8 = qat.to_fake_quantized(fused, calibration, per_channel)
        logits, top1 = run(int8, validation)
        figures += [top1, float(((logits - expected) ** 2).mean() ** 0.5 / (expected**2).mean() ** 0.5)]
    return tuple(figures)


def run(net, validation):
    """(logits of all images, top-1 in percent)."""
    import mindspore as ms
    import numpy as np

    from mindrepvgg.runtime.device import execution_mode, inference_mode

    with inference_mode(net), execution_mode(ms.PYNATIVE_MODE):  # four batches are not worth a graph
        logits = np.concatenate([net(ms.Tensor(images)).asnumpy() for images, _ in validation])
    labels = np.concatenate([labels for _, labels in validation])
    return logits, 100 * float((logits.argmax(1) == labels).mean())


if __name__ == "__main__":
    sys.exit(entry.run(main))
