"""What kinds of blocks are worth: one small network with each, trained alike on CIFAR-10, in both forms.

The networks differ in their blocks alone: recipe, order of the pictures and seeds are the same. Accuracy and the error
of folding are those of the trained networks, on all validation pictures. The steps of all networks take turns.
"""

import os
import statistics
import sys
from typing import NamedTuple

import cifar10
import mindspore as ms
import numpy as np
from trained import trained

from mindrepvgg import to_deploy
from mindrepvgg.data.loaders import eval_loader
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime import device
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.runtime.timing import take_turns, timed
from mindrepvgg.text import markdown_table
from mindrepvgg.training import assemble
from mindrepvgg.weights.checkpoint import load_checkpoint

KINDS = ("plain", "repvgg", "acb", "dbb", "mobileone", "qarepvgg")
_ROUNDS = 31


class Figures(NamedTuple):
    """Of a trained network: parameters and top-1 in percent of both forms, and how far apart their logits are."""

    parameters: tuple[int, int]
    top1: tuple[float, float]
    difference: float


def measure(recipe_path, epochs=2, lr=0.1, seeds=2) -> str:
    """Return a markdown table with a row for each kind of block.

    Args:
        recipe_path: the recipe.
        epochs, lr: other than its own, and without warm-up: all networks take an hour or two on two cores.
        seeds: networks of each kind.
    """
    device.setup("auto", seed=1)
    recipe = load_recipe(str(recipe_path), {**cifar10.as_recipe(), "epoch_size": epochs, "lr": lr, "warmup_epochs": 0})
    found: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for kind in KINDS:
            found[kind].append(_figures(trained(recipe.replace(block=kind, seed=seed)), recipe))
            print(f"seed {seed}: {kind}: {found[kind][-1]}", file=sys.stderr)
    times = _step_times(recipe)
    rows = [_row(kind, found[kind], times[kind], times["plain"]) for kind in KINDS]
    headings = (
        "block",
        "parameters in training",
        "fused",
        "top-1 %, mean",
        "each seed",
        "fusing changes top-1 by",
        "and logits by",
        "ms a step",
        "of plain",
    )
    return (
        f"{recipe_path.name}, {epochs} epochs with lr {lr} and no warm-up, {seeds} seeds, judged on all validation "
        f"pictures; train steps of {recipe.batch_size} pictures in graph mode, medians of {_ROUNDS} turns; "
        f"{processor()}, {os.cpu_count()} cores:\n\n{markdown_table(headings, rows)}"
    )


def _row(kind, figures, seconds, plain):
    top1 = [own.top1[0] for own in figures]
    return (
        kind,
        *(f"{number:,}" for number in figures[0].parameters),
        f"{statistics.mean(top1):.2f}",
        ", ".join(f"{value:.2f}" for value in top1),
        f"{max(abs(own.top1[0] - own.top1[1]) for own in figures):.2f}",
        f"{max(own.difference for own in figures):.1e}",
        f"{1000 * statistics.median(seconds):.0f}",
        f"{statistics.median(own / other for own, other in zip(seconds, plain, strict=True)):.2f}",
    )


def _figures(path, recipe) -> Figures:
    net = load_checkpoint(path)
    forms = net, to_deploy(net)
    logits: tuple[list, list] = [], []
    labels = []
    with device.inference_mode(*forms), device.execution_mode(ms.PYNATIVE_MODE):
        for images, own, valid in eval_loader(recipe.replace(batch_size=500)):
            labels.append(own[valid])
            for form, outputs in zip(forms, logits, strict=True):
                outputs.append(form(ms.Tensor(images[valid])).asnumpy())
    train, deploy = map(np.concatenate, logits)
    top1 = [100 * float((outputs.argmax(1) == np.concatenate(labels)).mean()) for outputs in (train, deploy)]
    parameters = [sum(parameter.size for parameter in form.trainable_params()) for form in forms]
    return Figures(tuple(parameters), tuple(top1), float(np.abs(train - deploy).max() / np.abs(train).max()))


def _step_times(recipe) -> dict[str, list[float]]:
    """Seconds of compiled train steps by kind; the kinds take turns."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (recipe.batch_size, *recipe.image_size, 3), np.uint8)
    batch = ms.Tensor(images), ms.Tensor(rng.integers(0, recipe.num_classes, len(images)), ms.int32)

    def contestant(kind):
        own, alone = recipe.replace(block=kind), Ranks()
        # A rate this small keeps a network on random pictures in range.
        step = assemble.build_step(own, assemble.build_network(own, alone), np.full(1000, 1e-4), alone)
        return timed(lambda: step(*batch)[0].asnumpy())

    return take_turns({kind: contestant(kind) for kind in KINDS}, _ROUNDS, warmup=2)
