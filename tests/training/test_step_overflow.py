"""The training step's loss scale, skipped updates and moving average, alone and with all else at once."""

import numpy as np
import pytest
from mindspore import Tensor, ops
from support import relative_difference
from support.steps import ONE_BLOCK, Run, assert_same_bits, batches, largest_difference, spoilt

from mindrepvgg.training.step import LossScale, bn_statistics


@pytest.fixture(scope="module", params=["graph", pytest.param("pynative", marks=pytest.mark.slow)])
def guarded(request):
    """A float32 run with a dynamic scale that doubles after 2 updates, and a moving average; in both modes.

    An overflow in PyNative mode is in TestAllAtOnce too.
    """
    return Run(request.param, ONE_BLOCK, loss_scale=LossScale(1024.0, dynamic=True, window=2), ema_decay=0.99)


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
    return Run(mode, ONE_BLOCK, loss_scale=LossScale(256.0, dynamic=True, window=2), **EVERYTHING)


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
        single = Run("pynative", ONE_BLOCK, accumulation=2, clip_norm=1.0)
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
