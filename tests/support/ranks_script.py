"""What every rank of an msrun finds out about working together; `python ranks_script.py FOLDER ARGUMENT...`.

Building a cluster takes long, so everything is done in one; at last train.py runs with the arguments.
test_distributed.py judges what is written: FOLDER/N.json and FOLDER/N.npz of rank N, and the run.
"""

import json
import runpy
import sys
from pathlib import Path

import mindrepvgg  # noqa: F401 - sets the environment MindSpore needs

# isort: split
import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from mindrepvgg import create_model
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.source import Source
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.loop import evaluate
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.recipe import choices
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.runtime import device
from mindrepvgg.runtime.ranks import start
from mindrepvgg.training.all_reduce import BUNDLED_BYTES, gradient_mean
from mindrepvgg.training.assemble import build_network, build_step
from mindrepvgg.training.precise_bn import precise_bn
from mindrepvgg.training.rank_statistics import RankStatistics
from mindrepvgg.training.step import bn_statistics
from support import ROOT, SMALL, images, randomise_bn

CLASSES, BATCH, STEPS = 5, 8, 5
SHAPE = {**SMALL["plain"], "num_blocks": (1, 1, 1, 1)}
NUM_IMAGES = 23  # neither two ranks nor batches of 4 divide it

GATHERED = {
    "float32": (np.float32, [np.nan, -0.0, 1e-45, np.inf, np.float32(1) / 3]),
    "float64": (np.float64, [np.nan, -0.0, 5e-324, -np.inf, 1 / 3]),
    "int32": (np.int32, [-1, 2**31 - 1, -(2**31), 0, 16777217]),
    "int64": (np.int64, [-1, 2**63 - 1, -(2**63), 2**32 + 1, 2**53 + 1]),
}


# Trainings whose statistics stay: what two ranks do with halves of the batches is then what one does with them whole.
FROZEN = {
    "frozen": {"freeze_bn": True},
    "repoptimizer": {
        **{"freeze_bn": True, "model": "repopt_vgg", "scales": "initial", "use_nesterov": True, "clip_grad": False},
    },
}


def recipe(**changes):
    """A small network with everything between gradient and weight switched on."""
    values = {
        **{"model": "repvgg", "model_args": SHAPE, "num_classes": CLASSES, "image_resize": 16},
        **{"batch_size": BATCH, "opt": "momentum", "momentum": 0.9, "weight_decay": 1e-2, "clip_grad": True},
        **{"clip_value": 0.5, "dataset": "mnist5k", "device_target": "CPU"},
    }
    return Recipe(**{**values, **changes})


def build(chosen, ranks):
    """The network and its training step, at a learning rate that does not change."""
    net = randomise_bn(build_network(chosen, ranks))
    return net, build_step(chosen, net, np.full(STEPS, 0.1, np.float32), ranks)


def run(step, ranks, numbers, spoilt=False):
    """Take steps on this rank's part of 2 * BATCH images each; (loss, whether it was made) of every step.

    spoilt: with an infinity among the images of the last rank.
    """
    outcomes = []
    for number in numbers:
        own = np.array_split(np.arange(2 * BATCH), ranks.size)[ranks.rank]
        pictures = images(2 * BATCH, 3, 16, 16, seed=number)[own]
        labels = np.random.default_rng(number).integers(0, CLASSES, 2 * BATCH).astype(np.int32)[own]
        if spoilt and ranks.rank == ranks.size - 1:
            pictures[0] = np.inf
        outcomes.append(step(Tensor(pictures), Tensor(labels)))
    return [(float(loss.asnumpy()), bool(done.asnumpy())) for loss, done in outcomes]


def parameters(prefix, found):
    return {f"{prefix}/{parameter.name}": parameter.asnumpy().copy() for parameter in found}


def validation(ranks, batch_size=4):
    """The validation of one network on NUM_IMAGES images, as a dict without the speed."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (NUM_IMAGES, 16, 16, 3)).astype(np.uint8)
    labels = rng.integers(0, 7, NUM_IMAGES).astype(np.int32)
    net = create_model("repvgg", 7, **SMALL["plain"])
    for number, parameter in enumerate(randomise_bn(net).get_parameters()):
        if parameter.name.startswith("linear"):
            values = np.random.default_rng(number).normal(0, 3, parameter.shape)
            parameter.set_data(Tensor(values, parameter.dtype))
        elif parameter.name.endswith("conv.weight"):
            values = np.random.default_rng(number).normal(0, 0.1, parameter.shape)
            parameter.set_data(Tensor(values, parameter.dtype))
    preprocessing = Preprocessing(image_size=(16, 16), crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3, in_channels=3)
    loader = EvalLoader(
        Source("mnist5k", tuple("abcdefg"), labels, images=pictures),
        preprocessing,
        batch_size,
        num_parallel_workers=1,
        rank=ranks.rank,
        rank_size=ranks.size,
    )
    found = evaluate(net, loader, ranks=ranks)
    return {name: getattr(found, name) for name in ("num_images", "correct", "top1", "top5", "loss")}


def collectives(ranks, facts, arrays):
    """Gather, any, broadcast and average."""
    for name, (kind, values) in GATHERED.items():
        arrays[f"gather/{name}"] = ranks.gather(np.roll(np.array(values, kind), ranks.rank).reshape(5, 1))
    arrays["gather/scalar"] = ranks.gather(np.float64(ranks.rank + 0.1))
    for name, own in {"some": [7, 3] if ranks.rank else [3, 2**40, 5], "few": [9] * ranks.rank, "none": []}.items():
        arrays[f"union/{name}"] = np.array(ranks.union(own), np.int64)
    arrays["gather/transposed"] = ranks.gather(np.arange(6, dtype=np.int64).reshape(2, 3).T + ranks.rank)
    facts["any"] = [ranks.any(flag) for flag in (False, ranks.rank == 0, ranks.rank == 1, True)]

    rng = np.random.default_rng(ranks.rank)
    unequal = [Parameter(Tensor(rng.normal(size=shape), ms.float32), str(shape)) for shape in ((3, 2), (5,), (1,), ())]
    unequal.append(Parameter(Tensor(rng.integers(0, 9, 4), ms.int32), "whole"))
    arrays.update(parameters("own", unequal))
    ranks.average(unequal[:3])
    arrays.update(parameters("average", unequal[:3]))
    ranks.broadcast(unequal)
    arrays.update(parameters("broadcast", unequal))
    ranks.average(())


# Small ones at both ends and between two that are sent by themselves.
GRADIENTS = ((3, 2), (5,), (BUNDLED_BYTES // 4 + 1,), (4, 1, 3, 3), (BUNDLED_BYTES // 4,), (300, 300), (), (2,))


def own_gradients(rank):
    rng = np.random.default_rng(rank)
    return [rng.normal(size=shape).astype(np.float32) for shape in GRADIENTS]


def means(ranks, facts, arrays):
    """The mean of gradients, in every way."""
    gradients = tuple(map(Tensor, own_gradients(ranks.rank)))
    weights = [Parameter(gradient, f"weight {n}") for n, gradient in enumerate(gradients)]
    for kind in choices.ALL_REDUCES:
        found = gradient_mean(kind, weights, ranks.size)(gradients)
        arrays.update({f"mean of {kind}/{n}": mean.asnumpy() for n, mean in enumerate(found)})
    ms.reset_auto_parallel_context()


def trainings(ranks, facts, arrays):
    """What is the same on all ranks after training, and what is not."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for name, changes in FROZEN.items():
        net, step = build(recipe(**changes), ranks)
        arrays.update(parameters(f"start of {name}", net.get_parameters()))
        facts[name] = run(step, ranks, range(STEPS))
        arrays.update(parameters(name, net.get_parameters()))

    ms.set_context(mode=ms.GRAPH_MODE)  # as users train; compiling it is the dearest part of this script
    net, step = build(recipe(ema=True, ema_decay=0.9, loss_scale_type="dynamic", loss_scale=1024), ranks)
    facts["free"] = run(step, ranks, range(4))
    arrays.update(parameters("free", (*net.get_parameters(), *step.ema)))
    facts["spoilt"] = run(step, ranks, [4], spoilt=True)
    facts["scale"] = step.loss_scale.value
    arrays.update(parameters("spoilt", (*net.get_parameters(), *step.ema)))

    statistics = RankStatistics(net, step, ranks)
    arrays["statistics_of_ranks"] = statistics.gather()["statistics_of_ranks"]
    statistics.average()
    arrays.update(parameters("averaged", (*net.get_parameters(), *step.ema, *step.good_statistics)))

    ms.set_context(mode=ms.PYNATIVE_MODE)  # nothing is run often from here on
    precise_bn(net, (Tensor(batch) for batch in batches_of(ranks.rank)), ranks)
    arrays.update(parameters("precise", bn_statistics(net)))


def batches_of(rank):
    """A rank's batches for the statistics of BN: two of the first one, three of the second."""
    return [images(4, 3, 16, 16, seed=10 * rank + number) for number in range(2 + rank)]


def main(folder):
    device.setup("CPU")
    ranks = start("auto")
    # Of its own: what is equal later was made equal.
    ms.set_seed(ranks.rank)
    facts, arrays = {"rank": ranks.rank, "size": ranks.size, "is_first": ranks.is_first}, {}
    collectives(ranks, facts, arrays)
    means(ranks, facts, arrays)
    trainings(ranks, facts, arrays)
    facts["validation"] = validation(ranks)
    try:
        build_network(recipe(sync_bn=True), ranks)
    except UserError as error:
        facts["sync_bn"] = f"{type(error).__name__}: {error}"
    facts["parallel_mode"] = ms.get_auto_parallel_context("parallel_mode")
    facts["again"] = start("auto").size
    np.savez(folder / f"{ranks.rank}.npz", **arrays)
    (folder / f"{ranks.rank}.json").write_text(json.dumps(facts))
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.argv = ["train.py", *sys.argv[2:]]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
