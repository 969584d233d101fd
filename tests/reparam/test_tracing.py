"""Which BN follows which convolution: found where attributes mislead, and refused where the BN is not alone."""

import numpy as np
import pytest
from mindspore import Tensor, nn
from support import images

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam import trace
from mindrepvgg.reparam.layers import batch_norm, conv2d

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("pynative_mode")]


class Cells(nn.Cell):
    """Two convolutions and two BNs; the attributes of the BNs stand in the wrong order."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv2d(3, 4, 3), conv2d(4, 4, 3)
        self.bn2, self.bn1 = batch_norm(4), batch_norm(4)
        self.relu = nn.ReLU()

    def construct(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class TwoConsumers(Cells):
    def construct(self, x):
        y = self.conv1(x)
        return self.bn2(self.conv2(self.relu(self.bn1(y)))) + y


class Spread(Cells):
    """Its second consumer sees how far the pixels of a channel lie apart, and no shift of the channel."""

    def construct(self, x):
        y = self.conv1(x)
        return self.bn2(self.conv2(self.relu(self.bn1(y)))) + (y.max((2, 3)) - y.min((2, 3))).mean()


class SharedConv(Cells):
    def construct(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(self.conv2(y)))


class SharedNorm(Cells):
    def construct(self, x):
        return self.bn1(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class TwoNorms(Cells):
    def construct(self, x):
        y = self.conv1(x)
        return self.bn1(y) + self.bn2(y)


class Activated(Cells):
    def construct(self, x):
        return self.bn2(self.relu(self.conv2(self.bn1(self.conv1(x)))))


class Summed(Cells):
    """A BN of two convolutions' sum."""

    def construct(self, x):
        y = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(y) + y)


class SharedKernel(Cells):
    def __init__(self):
        super().__init__()
        self.conv3 = conv2d(4, 4, 3)
        self.conv3.weight = self.conv2.weight

    def construct(self, x):
        return super().construct(x) + self.conv3(self.conv1(x) * 0)


def by_order(net):
    """What the order of attributes says: each convolution with the next BN that is free."""
    names = [(path, hasattr(cell, "moving_mean")) for path, cell in net.cells_and_names() if hasattr(cell, "weight")]
    names += [(path, True) for path, cell in net.cells_and_names() if hasattr(cell, "moving_mean")]
    convs, norms = ([path for path, norm in dict.fromkeys(names) if norm is kind] for kind in (False, True))
    return dict(zip(convs, norms, strict=True))


def test_the_order_of_attributes_does_not_count():
    net, expected = Cells(), {"conv1": "bn1", "conv2": "bn2"}
    assert trace(net, images()) == (expected, {})
    assert by_order(net) == {"conv1": "bn2", "conv2": "bn1"}  # so that the order would have misled


@pytest.mark.parametrize(
    ("kind", "pairs", "refused"),
    [
        (TwoConsumers, ["conv2"], {"conv1": "not only bn1 uses its output"}),
        (Spread, ["conv2"], {"conv1": "not only bn1 uses its output"}),
        (SharedConv, ["conv1"], {"conv2": "is called 2 times"}),
        (SharedNorm, [], dict.fromkeys(["conv1", "conv2"], "the BN after it, bn1, is called 2 times")),
        (TwoNorms, [], {"conv1": "its output goes into 2 BNs: bn1, bn2", "conv2": "is not called on these inputs"}),
        (Activated, ["conv1"], {"conv2": "no BN takes its output as it is"}),
        (Summed, ["conv1"], {"conv2": "no BN takes its output as it is"}),
    ],
)
def test_what_is_not_alone_is_refused_with_the_reason(kind, pairs, refused):
    found = trace(kind(), images())
    assert list(found.pairs) == pairs
    assert found.refused.keys() == refused.keys()
    for path, reason in refused.items():
        assert found.refused[path].startswith(reason)


def test_a_kernel_of_two_convolutions_is_refused():
    found = trace(SharedKernel(), images())
    assert found.refused["conv2"] == "another cell has a parameter of it, or of its BN"


def test_a_network_that_computes_something_else_each_time_tells_nothing():
    class Random(Cells):
        def construct(self, x):
            return super().construct(x) + float(np.random.default_rng().uniform())

    assert "does not compute the same twice" in trace(Random(), images()).refused["conv1"]


def test_every_pair_of_mindcvs_resnet18_is_found(pytestconfig):
    if pytestconfig.getoption("--announced-signatures"):
        pytest.skip("MindCV makes its convolutions by today's signatures")
    net = pytest.importorskip("mindcv.models").create_model("resnet18", num_classes=5)
    found = trace(net)
    expected = {
        path: path.replace("conv", "bn") if "conv" in path else path.replace("sample.0", "sample.1")
        for path, cell in net.cells_and_names()
        if isinstance(cell, nn.Conv2d)
    }
    assert len(expected) == 20
    assert (found.pairs, found.refused) == (expected, {})


def test_the_network_stays_as_it_was():
    net = Cells().set_train()
    net.bn1.set_train(False)
    before = {name: parameter.asnumpy() for name, parameter in net.parameters_dict().items()}
    trace(net, Tensor(images()))
    assert [cell.training for cell in (net, net.conv1, net.bn1, net.bn2)] == [True, True, False, True]
    assert not any(cell._forward_hook or cell._forward_pre_hook for _, cell in net.cells_and_names())
    assert all(np.array_equal(before[name], value.asnumpy()) for name, value in net.parameters_dict().items())


def test_a_network_that_does_not_take_noise_asks_for_inputs():
    class Two(Cells):
        def construct(self, x, scale):
            return super().construct(x) * scale

    with pytest.raises(FusionError, match=r"Two cannot be run on noise \(2, 3, 64, 64\): .*; give example inputs"):
        trace(Two())
    for given in (images(), [images(), Tensor(2.0)]):
        with pytest.raises(FusionError, match=r"Two cannot be run on the inputs that were given: .* as a tuple"):
            trace(Two(), given)
    assert len(trace(Two(), (images(), Tensor(2.0))).pairs) == 2
