"""INT8 of networks that it ruins, of cures and of repairs: the recipes `int8_*` on CIFAR-10 pictures, judged on 10,000.

Three seeds train each network, chosen before anything was looked at. INT8 files are judged as a user has them: by
onnxruntime and by OpenVINO. 7 and 6 bits are this project's own fake quantisation, because no engine has them.
`--cached` writes what is trained already, and says of the rest that it was not run.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cifar10
import numpy as np
from trained import NotTrainedError, trained

from mindrepvgg.deployment.engine import open_engine
from mindrepvgg.deployment.engine_base import ENGINES, ONNXRUNTIME, OPENVINO
from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.deployment.int8.noise import rounded_weights, signal_to_noise
from mindrepvgg.deployment.int8.prepare import QuantizeOptions, prepared
from mindrepvgg.deployment.int8.progress import Progress
from mindrepvgg.deployment.int8.repairs import Repairs
from mindrepvgg.deployment.int8.sessions import Parts, session_of
from mindrepvgg.models import qat
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime import device
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.timing import take_turns, timed
from mindrepvgg.text import markdown_table
from mindrepvgg.weights.load import load_weights

SEEDS = (1, 2, 3)
_CALIBRATION = 512
_NOT_RUN = "not run"
_SICK = 3  # points that INT8 loses
_ROUNDS, _BATCHES = 10, (1, 16)

# Of QAT: an epoch more, at a tenth of the rate.
_TUNING = {"epoch_size": 1, "warmup_epochs": 0, "custom_l2": False, "scales": ""}

# What is done to a network after training, in the tables' order.
REPAIRS = {
    "as it is": Repairs(),
    "dead channels zeroed": Repairs(zero_dead=True),
    "biases corrected": Repairs(bias_correction=True),
    "equalised": Repairs(equalize=True),
    "centre split": Repairs(),
    "zeroed and split": Repairs(zero_dead=True),
    "zeroed, biases corrected": Repairs(zero_dead=True, bias_correction=True),
}
_SPLIT = ("centre split", "zeroed and split")
_BY_WEIGHTS = ("as it is", "dead channels zeroed", "centre split")


class Network(NamedTuple):
    """A row of the tables.

    Attributes:
        recipe: its name in configs/.
        keys: what is changed of it.
        searched: the keys of a run before it, whose checkpoint has the scales that it is trained with.
    """

    recipe: str
    keys: dict
    searched: dict | None = None


S14 = {
    "RepVGG": Network("int8_repvgg_s14", {}),
    "RepVGG, custom L2": Network("int8_repvgg_s14", {"custom_l2": True}),
    "QARepVGG": Network("int8_qarepvgg_s14", {}),
    "RepOpt-VGG": Network("int8_repvgg_s14", {"model": "repopt_vgg"}, {"block": "linear_addition"}),
}
M8 = {
    "RepVGG": Network("int8_repvgg_m8", {}),
    "QARepVGG": Network("int8_qarepvgg_m8", {}),
}


class Figures(NamedTuple):
    """What was measured of one trained network.

    Attributes:
        top1: in float, in percent.
        int8: (per channel?, engine, repair) -> top-1.
        bits: (per channel?, bits) -> top-1 by fake quantisation.
        qat: per channel? -> top-1 as INT8 after an epoch of QAT; None where it was not run.
        dead: dead channels, counted in every layer that reads them.
        split: per channel? -> layers that `centre split` took.
        weights: (per channel?, repair) -> top-1 with the weights rounded and nothing else.
        change: of the float logits by zeroing dead channels, over the largest.
        noise: per channel? -> the logits' signal to noise as it is, in dB.
    """

    top1: float
    int8: dict
    bits: dict
    qat: dict
    dead: int
    split: dict
    weights: dict
    change: float
    noise: dict


def measure(configs, trains=True) -> str:
    """Return the tables in markdown; without `trains` only of networks that are in the cache."""
    device.setup("auto", seed=0)
    s14 = _networks(configs, S14, trains)
    m8 = _networks(configs, M8, trains)
    if not any(figures for found in (*s14.values(), *m8.values()) for figures in found):
        return f"Not run yet: none of the {len(SEEDS)} seeds of {', '.join(S14)} was trained here."
    parts = [
        f"{len(SEEDS)} seeds ({', '.join(map(str, SEEDS))}), one after the other in each cell; {_NOT_RUN}: not "
        f"trained, or not measured, here yet. Top-1 in %; calibrated on {_CALIBRATION} training pictures by their "
        f"extremes, judged on the 10,000 of validation; {processor()}, {os.cpu_count()} cores.",
        "Fourteen blocks of one width (`int8_*_s14`), every layer in INT8:",
        _headline(s14),
        "What repairs bring without training, onnxruntime, weights per tensor, then per channel:",
        _repairs(s14, False),
        _repairs(s14, True),
        "The weights rounded and nothing else, per tensor:",
        _by_weights(s14),
        "Eight blocks, without dead channels (`int8_*_m8`):",
        _headline(m8),
    ]
    if timed_files := _files(configs):
        parts += [
            "Files and speed of the first RepVGG, images a second, medians of turns in one run:",
            timed_files,
        ]
    parts += [_verdict(s14), _verdict_on_splitting(s14["RepVGG"])]
    return "\n\n".join(parts)


def _recipe(configs, network, seed, trains):
    """The recipe of one seed; raises NotTrainedError where it needs a run that was not done."""
    base = load_recipe(str(configs / f"{network.recipe}.yaml"), {**cifar10.as_recipe(), "seed": seed})
    if network.searched is None:
        return base.replace(**network.keys)
    search = trained(base.replace(**network.keys, **network.searched), trains=trains)
    return base.replace(**network.keys, scales=str(search))


def _networks(configs, networks, trains) -> dict[str, list[Figures | None]]:
    """Name -> the figures of each seed; None for one that was not trained."""
    found: dict[str, list] = {name: [] for name in networks}
    for seed in SEEDS:  # the first seed of each network comes before the second of one
        for name, network in networks.items():
            try:
                recipe = _recipe(configs, network, seed, trains)
                figures = _figures(recipe, trained(recipe, trains=trains), trains)
            except NotTrainedError as error:
                print(f"{name}, seed {seed}: {error}", file=sys.stderr)
                figures = None
            print(f"{name}, seed {seed}: {figures}", file=sys.stderr, flush=True)
            found[name].append(figures)
    return found


def _figures(recipe, checkpoint, trains) -> Figures:
    int8, split, weights, noise, top1, dead, change = {}, {}, {}, {}, 0.0, 0, 0.0
    for per_channel in (True, False):
        with _prepared(recipe, checkpoint, per_channel) as (ready, pictures):
            builder, floats = ready.builder, ready.exported.destination
            top1 = _top1(open_engine(floats, ONNXRUNTIME), pictures)
            dead = sum(map(len, builder.dead().values()))
            split[per_channel] = len(builder.worth_splitting(Repairs()))
            for name, repairs in REPAIRS.items():
                if name in _SPLIT:
                    repairs = replace(repairs, split=builder.worth_splitting(repairs))
                path = builder.write(repairs)
                engines = ENGINES if name in ("as it is", *_SPLIT) else (ONNXRUNTIME,)
                for engine in (ONNXRUNTIME, OPENVINO):
                    if engine in engines:
                        int8[per_channel, engine, name] = _top1(open_engine(path, engine), pictures)
                if name in _BY_WEIGHTS:
                    weights[per_channel, name] = _top1(_with_rounded_weights(builder, repairs), pictures)
                if name == "as it is":
                    x = pictures[0][0]
                    noise[per_channel] = signal_to_noise(*(_logits(each, ONNXRUNTIME, x) for each in (floats, path)))
            zeroed = builder.quantizer(Repairs(zero_dead=True)).path
            logits = [np.concatenate([_logits(p, ONNXRUNTIME, x) for x, _ in pictures]) for p in (floats, zeroed)]
            change = float(np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max())
    return Figures(
        top1,
        int8,
        _by_bits(recipe, checkpoint),
        _tuned(recipe, checkpoint, trains),
        dead,
        split,
        weights,
        change,
        noise,
    )


def _tuned(recipe, checkpoint, trains) -> dict:
    """Per channel? -> top-1 as INT8 after QAT; None where that was not run."""
    tuned = {}
    for per_channel in (True, False):
        try:
            keys = {**_TUNING, "lr": recipe.lr / 10, "pretrained": str(checkpoint), "quantization": "qat"}
            after = trained(recipe.replace(**keys, quantization_per_channel=per_channel), trains=trains)
            with _prepared(recipe, after, per_channel) as (ready, pictures):
                tuned[per_channel] = _top1(open_engine(ready.builder.write(Repairs()), ONNXRUNTIME), pictures)
        except NotTrainedError:
            tuned[per_channel] = None
    return tuned


class _prepared:  # a context manager
    """A network ready for INT8 files, and the validation pictures as batches of (images, labels)."""

    def __init__(self, recipe, checkpoint, per_channel):
        options = QuantizeOptions(per_channel=per_channel, weight_bits=8, calibration_images=_CALIBRATION)
        overrides = {"data_dir": recipe.data_dir, "batch_size": 500}
        self._context = prepared(checkpoint, options, overrides, "raw", Progress())

    def __enter__(self):
        ready = self._context.__enter__()
        return ready, [(images[valid], labels[valid]) for images, labels, valid in ready.loader]

    def __exit__(self, *error):
        return self._context.__exit__(*error)


def _logits(path, engine, images):
    return open_engine(path, engine)(images)


def _with_rounded_weights(builder, repairs):
    """A function images -> logits: the float network with INT8's weights."""
    quantizer = builder.quantizer(repairs)
    given = quantizer.graph.model
    parts = Parts(given, rounded_weights(quantizer, builder.layers))
    session = session_of(parts.between(INPUT, [given.graph.output[0].name]))
    return lambda images: session.run(None, {INPUT: images})[0]


def _top1(run, pictures) -> float:
    right = sum(int((run(images).argmax(1) == labels).sum()) for images, labels in pictures)
    return 100 * right / sum(len(labels) for _, labels in pictures)


def _by_bits(recipe, checkpoint) -> dict:
    """(per channel?, bits) -> top-1 of the network with fake quantisation."""
    from quantization_training import batches_of, run

    calibration, validation = batches_of(recipe, _CALIBRATION)
    fused = qat.to_trainable_deploy(load_weights(checkpoint))
    return {
        (per_channel, bits): run(qat.to_fake_quantized(fused, calibration, per_channel, bits), validation)[1]
        for per_channel in (False, True)
        for bits in (7, 6)
    }


def _seeds(found, read) -> str:
    """A cell: what `read` finds in each seed's figures, one after the other."""
    values = [None if figures is None else read(figures) for figures in found]
    if all(value is None for value in values):
        return _NOT_RUN
    return " / ".join(
        _NOT_RUN if value is None else f"{value:{'d' if isinstance(value, int) else '.1f'}}" for value in values
    )


def _headline(networks) -> str:
    columns = {
        "float": lambda x: x.top1,
        "per tensor, onnxruntime": lambda x: x.int8[False, ONNXRUNTIME, "as it is"],
        "OpenVINO": lambda x: x.int8[False, OPENVINO, "as it is"],
        "per channel, onnxruntime": lambda x: x.int8[True, ONNXRUNTIME, "as it is"],
        "OpenVINO ": lambda x: x.int8[True, OPENVINO, "as it is"],
        "7 bits per tensor": lambda x: x.bits[False, 7],
        "6 bits per tensor": lambda x: x.bits[False, 6],
        "QAT, per tensor": lambda x: x.qat[False],
        "QAT, per channel": lambda x: x.qat[True],
        "dead channels": lambda x: x.dead,
    }
    rows = [(name, *(_seeds(found, read) for read in columns.values())) for name, found in networks.items()]
    return markdown_table(("network", *columns), rows)


def _repairs(networks, per_channel) -> str:
    headings = (
        "per channel" if per_channel else "per tensor",
        *REPAIRS,
        "zeroing changes float logits by",
        "layers split",
    )
    rows = []
    for name, found in networks.items():
        cells = [_seeds(found, lambda x, r=repair: x.int8[per_channel, ONNXRUNTIME, r]) for repair in REPAIRS]
        known = [figures for figures in found if figures]
        change = f"{max(figures.change for figures in known):.0e}" if known else _NOT_RUN
        rows.append((name, *cells, change, _seeds(found, lambda x: x.split[per_channel])))
    return markdown_table(headings, rows)


def _by_weights(networks) -> str:
    rows = []
    for name, found in networks.items():
        cells = [_seeds(found, lambda x, r=repair: x.weights[False, r]) for repair in _BY_WEIGHTS]
        rows.append((name, _seeds(found, lambda x: x.top1), *cells))
    return markdown_table(("network", "float", *_BY_WEIGHTS), rows)


def _judged(share, goal) -> str:
    """A share in percent, and whether it reaches its goal."""
    return f"{share:.0f} % (goal {goal} %{'' if share >= goal else ': missed'})"


def _verdict_on_splitting(found) -> str:
    """In words what share of the loss per tensor comes back by repairs, over the seeds that were run."""
    sick = [x for x in found if x and x.top1 - x.int8[False, ONNXRUNTIME, "as it is"] > _SICK]
    if not sick:
        return ""

    def back(before, after):
        lost = sum(figures.top1 - before(figures) for figures in sick)
        return 100 * sum(after(figures) - before(figures) for figures in sick) / lost

    def of(repair, engine):
        return back(lambda x: x.int8[False, engine, "as it is"], lambda x: x.int8[False, engine, repair])

    by_weights = back(lambda x: x.weights[False, "as it is"], lambda x: x.weights[False, "centre split"])
    engines = ", ".join(f"{of('centre split', engine):.0f} % under {engine}" for engine in (ONNXRUNTIME, OPENVINO))
    return (
        f"Without training: of what RepVGG loses by its weights per tensor, splitting the centre brings back "
        f"{_judged(by_weights, 90)}; of all that it loses {engines}. Zeroing dead channels brings back "
        f"{of('dead channels zeroed', ONNXRUNTIME):.0f} % under onnxruntime."
    )


def _verdict(networks) -> str:
    """In words what share of RepVGG's loss per tensor each cure takes, over the seeds that were run."""

    def loss(figures):
        return figures.top1 - figures.int8[False, ONNXRUNTIME, "as it is"]

    sick = [figures for figures in networks["RepVGG"] if figures]
    if not sick:
        return ""
    lost = statistics.mean(map(loss, sick))
    if lost < _SICK:
        return f"RepVGG loses {lost:.1f} points per tensor, the mean of {len(sick)} seeds: there is nothing to cure."
    lines = [f"RepVGG loses {lost:.1f} points per tensor, the mean of {len(sick)} seeds."]
    for name, found in networks.items():
        known = [figures for figures in found if figures]
        if known and name != "RepVGG":
            share = 100 * (1 - statistics.mean(map(loss, known)) / lost)
            change = statistics.mean(x.top1 for x in known) - statistics.mean(x.top1 for x in sick)
            lines.append(f"{name} takes {_judged(share, 75)} of it, with {change:+.1f} points in float.")
    return " ".join(lines)


def _files(configs) -> str:
    """Sizes and speeds of the first network's float file, its INT8 file and that with split centres."""
    try:
        recipe = _recipe(configs, S14["RepVGG"], SEEDS[0], False)
        checkpoint = trained(recipe, trains=False)
    except NotTrainedError:
        return ""
    with _prepared(recipe, checkpoint, False) as (ready, pictures), tempfile.TemporaryDirectory():
        builder = ready.builder
        files = {
            "float32": ready.exported.destination,
            "INT8": builder.write(Repairs()),
            "INT8, centre split": builder.write(Repairs(split=builder.worth_splitting(Repairs()))),
        }
        rows = dict.fromkeys(files, ())
        for name, path in files.items():
            rows[name] = (name, f"{Path(path).stat().st_size / 2**20:.2f}")
        for engine in (ONNXRUNTIME, OPENVINO):
            for batch in _BATCHES:
                for name, speed in _speeds(files, engine, pictures[0][0][:batch]):
                    rows[name] += (f"{speed:.0f}",)
    columns = [f"{engine}, batch {batch}" for engine in (ONNXRUNTIME, OPENVINO) for batch in _BATCHES]
    return markdown_table(("file", "MiB", *columns), rows.values())


def _speeds(files, engine, images) -> Iterator[tuple[str, float]]:
    contestants = {}
    for name, path in files.items():
        run = open_engine(path, engine)
        call = lambda run=run: run(images)  # noqa: E731
        call()
        contestants[name] = timed(call, 20)
    for name, seconds in take_turns(contestants, _ROUNDS).items():
        yield name, len(images) / statistics.median(seconds)
