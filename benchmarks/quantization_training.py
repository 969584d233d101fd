"""What training for INT8 is worth: a small network trained and fine-tuned in several ways, in float and as INT8.

INT8 is `to_fake_quantized`, whose numbers are those of integers: activations by their extremes over 1024 training
images, one grid for a tensor; kernels with a scale for each output channel, or one for all. An engine may do better
with a better calibration. Every seed trains its own network, from which its fine-tunings start.
"""

import os
import statistics
import sys

from trained import trained

from mindrepvgg.models import qat
from mindrepvgg.models.variants import QAT, TRAIN
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.text import markdown_table
from mindrepvgg.weights.checkpoint import load_checkpoint

_TUNED = {"fine-tuned with branches": "none", "fine-tuned with BN": "bn", "fine-tuned with QAT": "qat"}


def measure(recipe_path, epochs=6, tuning_epochs=2, seeds=3) -> str:
    """Return a markdown table: top-1 (mean and deviation over the seeds), and how far INT8's logits lie off."""
    from mindrepvgg.runtime.environment import processor

    recipe = load_recipe(str(recipe_path), {"epoch_size": epochs, "warmup_epochs": 1})
    figures = {}
    for seed in range(seeds):
        for name, found in _seed(recipe.replace(seed=seed), tuning_epochs):
            figures.setdefault(name, []).append(found)
            print(f"seed {seed}: {name}: {found}", file=sys.stderr)
    rows = []
    for name, found in figures.items():
        top1, *int8 = (list(column) for column in zip(*found, strict=True))
        cells = [_mean_and_deviation(top1)]
        for accuracies, distances in zip(int8[::2], int8[1::2], strict=True):
            cells += [_mean_and_deviation(accuracies), f"{100 * statistics.mean(distances):.1f} %"]
        rows.append((name, *cells))
    scales = ("INT8, a scale each channel", "INT8, a scale each kernel")
    headings = ("training", "float", *(cell for scale in scales for cell in (scale, "logits off by")))
    return (
        f"{recipe.model} on {recipe.dataset}, {epochs} epochs and {tuning_epochs} of fine-tuning, {seeds} seeds, top-1 "
        f"in % (standard deviation); {processor()}, {os.cpu_count()} cores:\n\n{markdown_table(headings, rows)}"
    )


def _mean_and_deviation(accuracies):
    return f"{statistics.mean(accuracies):.2f} ({statistics.pstdev(accuracies):.2f})"


def _seed(recipe, tuning_epochs):
    """Train and fine-tune one seed's networks; yields (how, figures of `_figures`)."""
    plain = trained(recipe)
    calibration, validation = batches_of(recipe, 1024)
    yield "plain", _figures(load_checkpoint(plain), calibration, validation)
    yield "custom L2", _figures(load_checkpoint(trained(recipe.replace(custom_l2=True))), calibration, validation)
    tuning = {"epoch_size": tuning_epochs, "lr": recipe.lr / 10, "warmup_epochs": 0, "pretrained": str(plain)}
    for name, form in _TUNED.items():
        net = load_checkpoint(trained(recipe.replace(**tuning, quantization=form)))
        yield name, _figures(net, calibration, validation)


def batches_of(recipe, count):
    """Return `count` calibration images, and validation images with labels, as lists of batches."""
    from mindrepvgg.data.datasets import open_source
    from mindrepvgg.data.loaders import CalibrationBatches, eval_loader, loader_of
    from mindrepvgg.data.source import spread

    recipe = recipe.replace(batch_size=250)
    source = open_source(recipe.dataset, recipe.data_dir, "train", recipe.num_classes, recipe.val_share)
    calibration = list(CalibrationBatches(loader_of(recipe, spread(source, count))))
    return calibration, [(images[valid], labels[valid]) for images, labels, valid in eval_loader(recipe)]


def _figures(net, calibration, validation) -> tuple[float, ...]:
    """Measure a network in float, as INT8 with a scale for each channel, and with one for each kernel.

    A network of 'qat' form has grids of its own for the channels, and is calibrated anew for the kernels.

    Returns:
        Top-1 in float; then for both kinds of scale top-1 as INT8, and the RMS of the logits' difference over the RMS
        of the float network's logits.
    """
    form = qat.form_of(net)
    floats = net if form == TRAIN else qat.fold_bn(net)
    fused = qat.to_trainable_deploy(floats)
    expected, top1 = run(fused, validation)
    figures = [top1]
    for per_channel in (True, False):
        int8 = net
        if form != QAT or not per_channel:
            int8 = qat.to_fake_quantized(fused, calibration, per_channel)
        logits, top1 = run(int8, validation)
        figures += [top1, float(((logits - expected) ** 2).mean() ** 0.5 / (expected**2).mean() ** 0.5)]
    return tuple(figures)


def run(net, validation):
    """Return the logits of all images, and top-1 in percent."""
    import mindspore as ms
    import numpy as np

    from mindrepvgg.runtime.device import execution_mode, inference_mode

    with inference_mode(net), execution_mode(ms.PYNATIVE_MODE):  # four batches are not worth a graph
        logits = np.concatenate([net(ms.Tensor(images)).asnumpy() for images, _ in validation])
    labels = np.concatenate([labels for _, labels in validation])
    return logits, 100 * float((logits.argmax(1) == labels).mean())
