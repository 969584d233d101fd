"""The training step: clipping, accumulation, moving average, loss scale, overflow, each against another computation."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops
from support import SMALL, context_mode, images, randomise_bn, relative_difference
from support.torch_reference import Network, copy_weights, torch_name

from mindrepvgg import create_model
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.step import LossScale, NetworkWithLoss, TrainStep, bn_statistics, is_bn_statistic

CLASSES = 5


TINY = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}


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


def train_torch(run, batches, clip_norm=None, aux_weight=0.0):
    """What PyTorch makes of the run's first weights in float64: all by our names, the losses, the gradients' norms."""
    with_start = run.reset().net
    net = copy_weights(with_start, Network(with_start.variant, CLASSES).double()).train()
    optimizer = torch.optim.SGD(net.parameters(), LR, MOMENTUM)
    losses, norms = [], []
    for pictures, labels in batches:
        outputs, targets = net(torch.from_numpy(pictures).double()), torch.from_numpy(labels).long()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = torch.nn.functional.cross_entropy(outputs[0], targets)
        for head in outputs[1:]:
            loss = loss + aux_weight * torch.nn.functional.cross_entropy(head, targets)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), clip_norm or np.inf)))
        optimizer.step()
        losses.append(float(loss.detach()))
    state = net.state_dict()
    plus = with_start.variant.aux_heads
    return {name: state[torch_name(name, plus)].numpy() for name in run.start}, losses, norms


def assert_equals_torch(run, outcomes, expected, losses, tolerance):
    found = run.weights
    for name, values in expected.items():
        if is_bn_statistic(run.net.parameters_dict()[name]):
            continue  # see test_the_statistics_have_torchs_formula
        assert relative_difference(found[name], values) < tolerance, name
    np.testing.assert_allclose([loss for loss, _ in outcomes], losses, rtol=1e-5)
    assert all(done for _, done in outcomes)


class TestAgainstTorch:
    @pytest.fixture(scope="class")
    def plain(self):
        return Run("pynative")

    @pytest.fixture(scope="class")
    def torch_unclipped(self, plain):
        return train_torch(plain, batches(3))

    @pytest.fixture(scope="class")
    def unclipped(self, plain):
        outcomes = plain.reset().train(*batches(3))
        return outcomes, plain.weights

    def test_without_clipping(self, plain, unclipped, torch_unclipped):
        expected, losses, _ = torch_unclipped
        plain.reset()
        assert_equals_torch(plain, plain.train(*batches(3)), expected, losses, 1e-5)
        # Negative control: they did move, and their statistics too.
        assert largest_difference(plain.weights, plain.start) > 1e-2

    def test_the_statistics_have_torchs_formula(self, unclipped, torch_unclipped):
        for name, values in torch_unclipped[0].items():
            if name.endswith(("moving_mean", "moving_variance")):
                assert relative_difference(unclipped[1][name], values) < 1e-5, name

    def test_clipping_by_the_global_norm(self, unclipped):
        clipping = Run("pynative", clip_norm=0.5)
        expected, losses, norms = train_torch(clipping, batches(3), clip_norm=0.5)
        assert min(norms) > 0.7, "each step is to be clipped, and by far"
        clipping.reset()
        assert_equals_torch(clipping, clipping.train(*batches(3)), expected, losses, 1e-5)
        assert largest_difference(clipping.weights, unclipped[1]) > 1e-2, "negative control"

    def test_below_the_norm_nothing_is_clipped(self, unclipped, torch_unclipped):
        assert max(torch_unclipped[2]) < 1024
        clipping = Run("pynative", clip_norm=1024.0)
        clipping.train(*batches(3))
        assert largest_difference(clipping.weights, unclipped[1]) < 1e-6

    def test_auxiliary_heads_have_their_weight(self):
        run = Run("pynative", SMALL["plus"], aux_weight=0.25)
        data = batches(2)
        expected, losses, _ = train_torch(run, data, aux_weight=0.25)
        run.reset()
        assert_equals_torch(run, run.train(*data), expected, losses, 1e-5)
        # Negative control: another weight is seen.
        other = train_torch(run, data, aux_weight=0.1)[0]
        assert max(relative_difference(other[n], v) for n, v in expected.items()) > 1e-3


class TestAccumulation:
    """With BN frozen, the gradients of a batch are the mean of its parts'."""

    UPDATES = 3

    @pytest.fixture(scope="class")
    def whole(self):
        run = Run("pynative", bn_frozen=True)
        return run.train(*batches(self.UPDATES, 64)), run

    def test_four_parts_make_the_batch(self, whole):
        outcomes, expected = whole
        run = Run("pynative", bn_frozen=True, accumulation=4)
        parts = [
            (pictures[i : i + 16], labels[i : i + 16])
            for pictures, labels in batches(self.UPDATES, 64)
            for i in range(0, 64, 16)
        ]
        found = run.train(*parts)
        assert largest_difference(run.weights, expected.weights) < 1e-5
        np.testing.assert_allclose([loss for loss, _ in found], [loss for loss, _ in outcomes], rtol=1e-6)
        assert int(run.optimizer.global_step.asnumpy().item()) == self.UPDATES
        # Negative controls: the updates are far larger than the tolerance, and no two parts have the same loss.
        assert largest_difference(run.weights, expected.start) > 1e-2
        run.reset().train(*parts[:4] * self.UPDATES)
        assert largest_difference(run.weights, expected.weights) > 1e-3

    def test_the_scale_may_change_between_two_parts(self, whole):
        """What is accumulated are unscaled gradients."""
        _, expected = whole
        run = Run("pynative", bn_frozen=True, accumulation=2, loss_scale=LossScale(256.0))
        (pictures, labels), *_ = batches(1, 64)
        run.train((pictures[:32], labels[:32]))
        run.scale = 16.0
        with context_mode("pynative"):
            run.step(Tensor(pictures[32:]), Tensor(labels[32:]))
        found = run.weights
        expected.reset().train(*batches(1, 64))
        assert largest_difference(found, expected.weights) < 1e-5


@pytest.fixture(scope="module", params=["graph", pytest.param("pynative", marks=pytest.mark.slow)])
def guarded(request):
    """A float32 run with a dynamic scale that doubles after 2 updates, and a moving average; in both modes.

    An overflow in PyNative mode is in TestAllAtOnce too.
    """
    return Run(request.param, loss_scale=LossScale(1024.0, dynamic=True, window=2), ema_decay=0.99)


class TestOverflow:
    def test_the_update_is_left_out(self, guarded):
        data = batches(3)
        assert [done for _, done in guarded.reset().train(data[0])] == [True]
        before = guarded.everything
        (_, done), *_ = guarded.train(spoilt(data[1]))
        assert not done
        assert_same_bits(guarded.everything, before)
        assert int(guarded.optimizer.global_step.asnumpy().item()) == 1

    def test_the_next_update_is_as_if_it_had_not_been(self, guarded):
        data = batches(3)
        outcomes = guarded.reset().train(data[0], spoilt(data[1]), data[2])
        assert [done for _, done in outcomes] == [True, False, True]
        found = guarded.everything
        expected = guarded.reset().train(data[0], data[2])
        assert outcomes[::2] == expected
        # The scales differ by a power of two, which changes no bit in float32.
        assert_same_bits(found, guarded.everything)

    def test_in_the_very_first_step(self, guarded):
        before = guarded.reset().everything
        assert not guarded.train(spoilt(batches(1)[0]))[0][1]
        assert_same_bits(guarded.everything, before)

    def test_statistics_from_outside_are_kept(self, guarded):
        """After the ranks' averaging or a resumed checkpoint, these are the last good ones."""
        guarded.reset()
        statistic = bn_statistics(guarded.net)[0]
        changed = statistic.asnumpy() + 1
        ops.assign(statistic, Tensor(changed))
        guarded.step.accept_statistics()
        assert not guarded.train(spoilt(batches(1)[0]))[0][1]
        np.testing.assert_array_equal(statistic.asnumpy(), changed)

    def test_the_scale_halves_and_doubles(self, guarded):
        good, bad = batches(1)[0], spoilt(batches(1)[0])
        scales = []
        guarded.reset()
        for batch in (good, good, good, bad, good, good, bad, bad):
            guarded.train(batch)
            scales.append(guarded.scale)
        assert scales == [1024, 2048, 2048, 1024, 1024, 2048, 1024, 512]

    def test_1_is_the_least_scale(self, guarded):
        guarded.reset().scale = 2.0
        scales = []
        for _ in range(3):
            guarded.train(spoilt(batches(1)[0]))
            scales.append(guarded.scale)
        assert scales == [1, 1, 1]

    def test_without_skipping_it_comes_through(self):
        """Negative control: the overflow is one, for the statistics as for the weights."""
        run = Run("pynative", loss_scale=LossScale(1024.0, skip=False))
        assert run.step.good_statistics == ()
        (_, done), *_ = run.train(spoilt(batches(1)[0]))
        assert done
        for leaf in ("conv.weight", "bn.gamma", "bn.moving_mean", "bn.moving_variance"):
            assert not np.isfinite(run.weights[f"stage0.rbr_dense.{leaf}"]).all()


class TestLossScale:
    def test_a_static_scale_changes_nothing_in_float32(self):
        plain, scaled = Run("pynative"), Run("pynative", loss_scale=LossScale(1024.0))
        outcomes = plain.train(*batches(3)), scaled.train(*batches(3))
        assert outcomes[0] == outcomes[1]
        assert_same_bits(scaled.weights.values(), plain.weights.values())
        assert scaled.scale == 1024
        assert scaled.step.state == {}, "a static scale is no state"

    def test_dynamic_skips_always(self):
        assert LossScale(2.0, dynamic=True, skip=False).skip
        assert not LossScale(2.0, skip=False).skip
        assert [p.name for p in LossScale(2.0, dynamic=True).state] == ["loss_scale", "loss_scale_counter"]


class TestMovingAverage:
    def test_the_recurrence(self, guarded):
        """Of every parameter and statistic, over the updates that were made."""
        data = batches(6)
        data[2] = spoilt(data[2])
        guarded.reset()
        expected, updates = {name: values.astype(np.float64) for name, values in guarded.start.items()}, 0
        largest_lag = 0
        for batch in data:
            if guarded.train(batch)[0][1]:
                updates += 1
                decay = 0.99 * (1 - np.exp(-updates / 2000))
                for name, values in guarded.weights.items():
                    expected[name] = expected[name] * decay + values.astype(np.float64) * (1 - decay)
                    largest_lag = max(largest_lag, relative_difference(values, expected[name]))
        assert updates == 5
        assert float(guarded.step.updates.asnumpy()) == 5
        found = {p.name.removeprefix("ema."): p.asnumpy() for p in guarded.step.ema}
        assert largest_difference(found, expected) < 1e-6
        assert largest_lag > 1e-4, "negative control: the average is not the weights themselves"

    def test_far_into_the_run_it_has_its_full_decay(self, guarded):
        ops.assign(guarded.reset().step.updates, Tensor(np.float32(40000)))
        guarded.train(batches(1)[0])
        found = {p.name.removeprefix("ema."): p.asnumpy() for p in guarded.step.ema}
        expected = {n: 0.99 * guarded.start[n].astype(np.float64) + 0.01 * w for n, w in guarded.weights.items()}
        assert largest_difference(found, expected) < 1e-6
        assert largest_difference(found, guarded.weights) > 1e-2, "negative control"

    def test_the_trained_weights_come_back(self, guarded):
        guarded.reset().train(*batches(2))
        before, average = guarded.weights, [p.asnumpy().copy() for p in guarded.step.ema]
        with guarded.step.averaged_weights():
            assert_same_bits(guarded.weights.values(), average)
        assert_same_bits(guarded.weights.values(), before.values())
        assert largest_difference(guarded.weights, dict(zip(before, average, strict=True))) > 1e-4
        with pytest.raises(KeyError), guarded.step.averaged_weights():
            raise KeyError
        assert_same_bits(guarded.weights.values(), before.values())
        assert_same_bits([p.asnumpy() for p in guarded.step.ema], average)

    def test_its_state_is_named(self, guarded):
        names = list(guarded.step.state)
        assert names[:3] == ["loss_scale", "loss_scale_counter", "ema_updates"]
        assert names[3:] == [f"ema.{name}" for name in guarded.start]

    def test_without_one_there_is_none(self):
        run = Run("pynative")
        assert run.step.state == {}
        before = run.weights
        with run.step.averaged_weights():
            assert_same_bits(run.weights.values(), before.values())


EVERYTHING = {"level": "O2", "accumulation": 2, "clip_norm": 1.0, "ema_decay": 0.99}


def with_everything(mode):
    return Run(mode, loss_scale=LossScale(256.0, dynamic=True, window=2), **EVERYTHING)


class TestAllAtOnce:
    """Float16, two batches a step, clipping, a dynamic scale and a moving average, as one graph."""

    @pytest.fixture(scope="class")
    def graph(self):
        return with_everything("graph")

    def test_both_modes_do_the_same(self, graph):
        data = batches(6)
        data[2] = spoilt(data[2])
        found = graph.reset().train(*data)
        other = with_everything("pynative")
        expected = other.train(*data)
        assert [done for _, done in found] == [done for _, done in expected] == [True, False, True]
        assert found[0][0] == pytest.approx(expected[0][0], rel=1e-3)
        assert found[2][0] == pytest.approx(expected[2][0], rel=5e-3)
        assert graph.scale == other.scale == 128
        assert largest_difference(graph.weights, other.weights) < 2e-2
        averages = ({p.name: p.asnumpy() for p in run.step.ema} for run in (graph, other))
        assert largest_difference(*averages) < 2e-2
        assert largest_difference(graph.weights, graph.start) > 0.1, "negative control"

    def test_it_is_near_float32(self, graph):
        data = batches(4)
        found = graph.reset().train(*data)
        single = Run("pynative", accumulation=2, clip_norm=1.0)
        expected = single.train(*data)
        np.testing.assert_allclose([loss for loss, _ in found], [loss for loss, _ in expected], rtol=1e-2)
        # linear.weight's gradient has come through the fewest casts.
        change, truth = (run.weights["linear.weight"] - run.start["linear.weight"] for run in (graph, single))
        assert relative_difference(change, truth) < 0.2

    @pytest.mark.parametrize("number", [0, 1])
    def test_an_overflow_in_one_batch_drops_the_step(self, graph, number):
        data = batches(6)
        graph.reset().train(*data[:2])
        before = graph.everything
        bad = data[2:4]
        bad[number] = spoilt(bad[number])
        assert not graph.train(*bad)[0][1]
        assert_same_bits(graph.everything, before)
        assert not any(p.asnumpy().any() for p in graph.step.accumulated)
        assert float(graph.step.accumulated_loss.asnumpy()) == 0
        graph.scale = 256.0
        outcome = graph.train(*data[4:])
        found = graph.everything
        graph.reset().train(*data[:2])
        assert graph.train(*data[4:]) == outcome
        assert_same_bits(found, graph.everything)

    def test_gradients_that_overflow_alone(self, graph):
        """The images and the loss are finite, the scale is too large for float16."""
        data = batches(2)
        graph.reset().scale = 2.0**24
        before = graph.everything
        (loss, done), *_ = graph.train(*data)
        assert np.isfinite(loss)
        assert not done
        assert_same_bits(graph.everything, before)
        assert graph.scale == 2.0**23

    def test_the_scale_is_found(self, graph):
        """From one that is too large, halving leads to one that fits, and from there the run is on its way."""
        data = batches(2)
        graph.reset().scale = 2.0**20
        outcomes = [graph.train(*data)[0] for _ in range(20)]
        done = [made for _, made in outcomes]
        assert not done[0]
        assert done[-1] or done[-2]
        assert 1 < graph.scale < 2.0**20
        assert outcomes[-1][0] < outcomes[0][0]


def test_recomputing_the_blocks_changes_nothing():
    """Neither the gradients nor the BN statistics, which a second forward pass would move twice."""
    plain, recomputing = Run("pynative"), Run("graph", recompute=True)
    outcomes = plain.train(*batches(3)), recomputing.train(*batches(3))
    np.testing.assert_allclose(*outcomes, rtol=1e-5)
    assert largest_difference(recomputing.weights, plain.weights) < 1e-5
    assert largest_difference(plain.weights, plain.start) > 1e-2, "negative control"


class Fixed(nn.Cell):
    """Gives back what it was made with, whatever the images."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def construct(self, images):
        return self.outputs


@pytest.mark.compat
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.usefixtures("pynative_mode")
def test_the_loss(label_smoothing, heads):
    """Cross-entropy of the logits, plus the auxiliary heads' at their weight."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1 + heads, 6, 5))
    labels = rng.integers(0, 5, 6)
    target = (1 - label_smoothing) * np.eye(5)[labels] + label_smoothing / 5
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -(target * log_softmax).sum(-1).mean(-1)
    expected = losses[0] + 0.25 * losses[1:].sum()

    tensors = tuple(Tensor(x, ms.float32) for x in logits)
    cell = NetworkWithLoss(Fixed(tensors if heads else tensors[0]), build_loss("CE", label_smoothing), aux_weight=0.25)
    for scale in (1.0, 8.0):
        found = cell(None, Tensor(labels, ms.int32), Tensor(scale, ms.float32))
        assert float(found.asnumpy()) == pytest.approx(scale * expected, rel=1e-5)
