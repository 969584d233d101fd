"""BN statistics taken anew, against PyTorch's in float64."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import images, randomise_bn, relative_difference, weights
from support.torch_reference import Network, copy_weights, torch_name

from mindrepvgg import create_model
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.precise_bn import precise_bn

TINY = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}


class Recorder(Ranks):
    """The rank of two that comes first: what it gathers is kept for the other."""

    def __init__(self):
        super().__init__()
        self.given = []

    def gather(self, array):
        self.given.append(np.array(array))
        return super().gather(array)


class Second(Ranks):
    """The other one: it gathers what the first gave, and its own."""

    def __init__(self, first):
        super().__init__(1, 2)
        self.given = list(first.given)

    def gather(self, array):
        return np.stack([self.given.pop(0), array])


def batch_statistics(net, batches):
    """By BN's name, the mean and the biased variance of its input in every batch, of PyTorch in float64."""
    truth = copy_weights(net, Network(net.variant, 5).double()).train()
    found = {}

    def record(name):
        def hook(_, inputs):
            x = inputs[0].detach()
            count = x.numel() / x.shape[1]
            found.setdefault(name, []).append((x.mean((0, 2, 3)).numpy(), x.var((0, 2, 3)).numpy(), count))

        return hook

    for name, module in truth.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(record(name))
    for batch in batches:
        truth(torch.from_numpy(batch).double())
    return found


def expected_statistics(net, batches):
    """The pooled mean and variance of each of the network's moving statistics, by its name."""
    expected = {}
    for name, values in batch_statistics(net, batches).items():
        means, variances = (np.stack([value[i] for value in values]) for i in (0, 1))
        expected[f"{name}.running_mean"] = means.mean(0)
        expected[f"{name}.running_var"] = variances.mean(0) + means.var(0)
    names = [p.name for p in net.get_parameters() if ".moving_" in p.name]
    return {name: expected[torch_name(name)] for name in names}


class TestPreciseBN:
    BATCHES = tuple(images(8, 3, 64, 64, seed=seed) for seed in range(4))

    @staticmethod
    def network():
        ms.set_seed(0)
        return randomise_bn(create_model("repvgg", 5, **TINY))

    def assert_statistics(self, net, expected):
        found = weights(net)
        for name, values in expected.items():
            assert relative_difference(found[name], values) < 1e-5, name

    @pytest.mark.usefixtures("mode")
    def test_mean_and_variance_over_all_batches(self):
        """In graph mode after a validation, as at the end of a run: its graph must not be taken for this one."""
        net = self.network().set_train(False)
        before = weights(net)
        net(Tensor(self.BATCHES[0]))
        expected = expected_statistics(net, self.BATCHES)
        precise_bn(net, self.BATCHES, Ranks())
        self.assert_statistics(net, expected)
        assert not net.training
        after = weights(net)
        assert all((before[n] != after[n]).any() == (n in expected) for n in before)
        # Negative control: without the part between the batches the variance would be another.
        within = batch_statistics(net, self.BATCHES)["stage0.rbr_dense.bn"]
        within = np.mean([variance for _, variance, _ in within], axis=0)
        assert relative_difference(after["stage0.rbr_dense.bn.moving_variance"], within) > 1e-2
        # Validation knows the new statistics.
        truth = copy_weights(net, Network(net.variant, 5).double()).eval()
        expected = truth(torch.from_numpy(self.BATCHES[0]).double())
        assert relative_difference(net(Tensor(self.BATCHES[0])), expected) < 1e-5

    @pytest.mark.usefixtures("pynative_mode")
    def test_the_mean_is_torchs_cumulative_one(self):
        net = self.network()
        truth = copy_weights(net, Network(net.variant, 5).double()).train()
        for module in truth.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        for batch in self.BATCHES:
            truth(torch.from_numpy(batch).double())
        precise_bn(net, self.BATCHES, Ranks())
        state, found = truth.state_dict(), weights(net)
        means = [name for name in found if name.endswith("moving_mean")]
        assert means
        for name in means:
            assert relative_difference(found[name], state[torch_name(name)]) < 1e-5, name

    @pytest.mark.usefixtures("pynative_mode")
    def test_on_its_one_batch_inference_is_training(self):
        """Up to the variance: BN normalises by the biased one and keeps the unbiased one, as PyTorch's does."""
        net, x = self.network(), Tensor(images(16, 3, 64, 64))
        expected = net.set_train(True)(x).asnumpy()
        precise_bn(net, [x.asnumpy()], Ranks())
        found = net.set_train(False)(x).asnumpy()
        assert relative_difference(found, expected) < 0.1, "16 * 2 * 2 numbers a channel in the last stage"
        counts = {name: values[0][2] for name, values in batch_statistics(net, [x.asnumpy()]).items()}
        for name, cell in net.cells_and_names():
            if isinstance(cell, nn.BatchNorm2d):
                count = counts[name]
                biased = cell.moving_variance.asnumpy() * np.float32((count - 1) / count)
                cell.moving_variance.set_data(Tensor(biased))
        assert relative_difference(net(x), expected) < 1e-5
        assert relative_difference(found, expected) > 1e-4, "negative control"

    @pytest.mark.usefixtures("pynative_mode")
    def test_two_ranks_share_the_batches(self):
        """An unequal share too: every batch counts the same."""
        net = self.network()
        expected = expected_statistics(net, self.BATCHES)
        first = Recorder()
        precise_bn(self.network(), self.BATCHES[:1], first)
        precise_bn(net, self.BATCHES[1:], Second(first))
        self.assert_statistics(net, expected)

    @pytest.mark.usefixtures("pynative_mode")
    def test_frozen_bn_stays(self):
        net = freeze(self.network(), stages=2).set_train()
        before = weights(net)
        precise_bn(net, self.BATCHES[:2], Ranks())
        after = weights(net)
        moving = [name for name in before if ".moving_" in name]
        changed = {name for name in moving if before[name].tobytes() != after[name].tobytes()}
        assert changed == {name for name in moving if not name.startswith(("stage0", "stage1"))}
        assert net.training
        net = freeze(self.network(), bn=True)
        precise_bn(net, self.BATCHES[:1], Ranks())
        assert all(values.tobytes() == before[name].tobytes() for name, values in weights(net).items())
