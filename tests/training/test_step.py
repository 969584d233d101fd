"""The training step: clipping, accumulation, recomputing and the loss, each against another computation.

test_step_overflow.py has the loss scale, overflows and the moving average.
"""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import SMALL, context_mode, relative_difference
from support.steps import CLASSES, LR, MOMENTUM, ONE_BLOCK, Run, batches, largest_difference
from support.torch_reference import Network, copy_weights, torch_name

from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.step import LossScale, NetworkWithLoss, is_bn_statistic


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


def assert_equals_torch(run, found, outcomes, expected, losses, tolerance):
    parameters = run.net.parameters_dict()
    for name, values in expected.items():
        if is_bn_statistic(parameters[name]):
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
        outcomes, found = unclipped
        assert_equals_torch(plain, found, outcomes, expected, losses, 1e-5)
        # Negative control: they did move, and their statistics too.
        assert largest_difference(found, plain.start) > 1e-2

    def test_the_statistics_have_torchs_formula(self, unclipped, torch_unclipped):
        for name, values in torch_unclipped[0].items():
            if name.endswith(("moving_mean", "moving_variance")):
                assert relative_difference(unclipped[1][name], values) < 1e-5, name

    def test_clipping_by_the_global_norm(self, unclipped):
        clipping = Run("pynative", clip_norm=0.5)
        expected, losses, norms = train_torch(clipping, batches(3), clip_norm=0.5)
        assert min(norms) > 0.7, "each step is to be clipped, and by far"
        outcomes = clipping.reset().train(*batches(3))
        assert_equals_torch(clipping, clipping.weights, outcomes, expected, losses, 1e-5)
        assert largest_difference(clipping.weights, unclipped[1]) > 1e-2, "negative control"

    def test_below_the_norm_nothing_is_clipped(self, unclipped, torch_unclipped):
        assert max(torch_unclipped[2]) < 1024
        clipping = Run("pynative", clip_norm=1024.0)
        clipping.train(*batches(3))
        assert largest_difference(clipping.weights, unclipped[1]) < 1e-6

    def test_auxiliary_heads_have_their_weight(self):
        run = Run("pynative", {**SMALL["plus"], "num_blocks": (1, 1, 2, 1)}, aux_weight=0.25)
        data = batches(2)
        expected, losses, _ = train_torch(run, data, aux_weight=0.25)
        outcomes = run.reset().train(*data)
        assert_equals_torch(run, run.weights, outcomes, expected, losses, 1e-5)
        # Negative control: another weight is seen.
        other = train_torch(run, data, aux_weight=0.1)[0]
        assert max(relative_difference(other[n], v) for n, v in expected.items()) > 1e-3


class TestAccumulation:
    """With BN frozen, the gradients of a batch are the mean of its parts'."""

    UPDATES = 2

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


def test_recomputing_the_blocks_changes_nothing():
    """Neither the gradients nor the BN statistics, which a second forward pass would move twice."""
    plain, recomputing = Run("pynative", ONE_BLOCK), Run("graph", ONE_BLOCK, recompute=True)
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
