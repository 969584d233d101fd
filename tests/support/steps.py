"""A small network with its training step, which a test can set back to where it started."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindrepvgg import create_model
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.step import NetworkWithLoss, TrainStep
from support import context_mode, images, randomise_bn, relative_difference

CLASSES = 5


TINY = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}

# One block a stage, for graphs: what the step does with a network is asked, not what its blocks do.
ONE_BLOCK = {**TINY, "num_blocks": (1, 1, 1, 1)}


LR, MOMENTUM = 0.05, 0.9


def batches(count, size=8, seed=0):
    """Some batches of (images, labels), as arrays."""
    rng = np.random.default_rng(seed)
    return [
        (images(size, 3, 32, 32, seed=seed + i), rng.integers(0, CLASSES, size).astype(np.int32)) for i in range(count)
    ]


def spoilt(batch):
    """The batch with one infinite pixel."""
    pictures = batch[0].copy()
    pictures[0, 0, 3, 3] = np.inf
    return pictures, batch[1]


class Run:
    """A small network and its step in one mode, which can be set back to where it started."""

    def __init__(self, mode, shape=TINY, level="O0", bn_frozen=False, aux_weight=0.1, recompute=False, **options):
        self.mode = mode
        ms.set_seed(0)
        self.net = net = randomise_bn(create_model("repvgg", CLASSES, **shape))
        self.start = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
        freeze(net, bn=bn_frozen)
        if recompute:
            net.recompute_blocks()
        set_precision(net, level)
        self.optimizer = build_optimizer(net, np.full(50, LR, np.float32), momentum=MOMENTUM)
        with context_mode(mode):  # a step that is built in graph mode compiles its gradients in PyNative mode too
            self.step = TrainStep(NetworkWithLoss(net, build_loss(), aux_weight), self.optimizer, **options)
        self._all = [
            *net.get_parameters(),
            *(p for p in self.optimizer.get_parameters() if p.name not in self.start),
            *self.step.state.values(),
            *self.step.good_statistics,
            *self.step.accumulated,
            self.step.accumulated_loss,
        ]
        self._before = [p.asnumpy().copy() for p in self._all]

    def reset(self):
        for parameter, values in zip(self._all, self._before, strict=True):
            # Not set_data: a compiled graph would go on with the memory of before.
            ops.assign(parameter, Tensor(values))
        return self

    def train(self, *batches):
        """Take the steps the batches make up; (loss, done) of each."""
        last = self.step.accumulation - 1
        outcomes = []
        with context_mode(self.mode):
            for number, (pictures, labels) in enumerate(batches):
                arguments = Tensor(pictures), Tensor(labels)
                if number % (last + 1) < last:
                    self.step.accumulate(*arguments)
                else:
                    loss, done = self.step(*arguments)
                    outcomes.append((float(loss.asnumpy()), bool(done.asnumpy())))
        return outcomes

    @property
    def weights(self):
        return {p.name: p.asnumpy().copy() for p in self.net.get_parameters()}

    @property
    def everything(self):
        """The network, the optimizer, the average: all but the loss scale, which a skipped update may change."""
        skipped = ("loss_scale", "loss_scale_counter")
        return [p.asnumpy().copy() for p in self._all if p.name not in skipped]

    @property
    def scale(self):
        return self.step.loss_scale.value

    @scale.setter
    def scale(self, value):
        ops.assign(self.step.loss_scale.scaler.scale_value, Tensor(np.float32(value)))


def largest_difference(actual, expected):
    """Of two networks' weights by name: the largest relative difference of a parameter."""
    assert list(actual) == list(expected)
    return max(relative_difference(actual[name], expected[name]) for name in actual)


def assert_same_bits(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.tobytes() == other.tobytes()
