"""The loss of one head, against PyTorch's losses of probabilities."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from support import relative_difference

from mindrepvgg.training.loss import build_loss


class TestLoss:
    """Against PyTorch's losses of probabilities, value and gradient; the smoothing spelled out."""

    @pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("name", ["CE", "BCE"])
    @pytest.mark.usefixtures("mode")
    def test_value_and_gradient(self, name, smoothing, soft):
        rng = np.random.default_rng(0)
        logits = 3 * rng.normal(size=(6, 5)).astype(np.float32)
        labels = rng.integers(0, 5, 6).astype(np.int32)
        targets = rng.dirichlet(np.ones(5), 6).astype(np.float32) if soft else labels
        value, gradient = ms.value_and_grad(build_loss(name, smoothing))(Tensor(logits), Tensor(targets))

        truth = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        probabilities = torch.tensor(targets if soft else np.eye(5)[labels], dtype=torch.float64)
        if name == "CE":
            expected = torch.nn.functional.cross_entropy(truth, probabilities, label_smoothing=smoothing)
        else:
            smoothed = (1 - smoothing) * probabilities + smoothing / 5
            expected = torch.nn.functional.binary_cross_entropy_with_logits(truth, smoothed)
        expected.backward()
        assert float(value.asnumpy()) == pytest.approx(float(expected.detach()), rel=1e-6)
        assert relative_difference(gradient, truth.grad) < 1e-6

    @pytest.mark.slow
    @pytest.mark.usefixtures("graph_mode")
    def test_the_age_of_the_process_changes_no_gradient(self):
        """While MindSpore looks for the best number of threads, its logarithm has other last bits: launches 6 to 15.

        Of a loss, they may change the last bit. The gradient takes the logarithm's argument, not its value.
        """
        rng = np.random.default_rng(0)
        logits = Tensor(rng.normal(size=(30, 10)).astype(np.float32))
        step = ms.value_and_grad(build_loss("CE", 0.1))
        found = [step(logits, Tensor(np.arange(30, dtype=np.int32) % 10)) for _ in range(30)]
        assert len({gradient.asnumpy().tobytes() for _, gradient in found}) == 1
        losses = [float(loss.asnumpy()) for loss, _ in found]
        assert losses == [pytest.approx(losses[-1], rel=2**-23)] * len(losses)
