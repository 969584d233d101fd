"""Other people's cells: what an adapter says is fused, tried and proven; nothing of the other project is imported."""

import importlib.metadata
import logging
import sys

import numpy as np
import pytest
from mindspore import Tensor, nn
from support import images, randomise_bn, relative_difference
from support.other_projects import other_project

from mindrepvgg import to_deploy, verify_equivalence
from mindrepvgg.errors import EquivalenceError, FusionError, UserError
from mindrepvgg.reparam import adapters, algebra, insert, maps, register
from mindrepvgg.reparam.layers import batch_norm, conv2d

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("pynative_mode")]


def layers(net):
    """How many convolutions and BNs a network has."""
    cells = [cell for _, cell in net.cells_and_names()]
    return sum(isinstance(cell, nn.Conv2d) for cell in cells), sum(hasattr(cell, "moving_mean") for cell in cells)


def check(net, convolutions, **options):
    """Fuse a network and compare; the fused network."""
    randomise_bn(net).set_train(False)
    x, before = images(), layers(net)
    deployed = to_deploy(net, **options)
    report = verify_equivalence(net, deployed, x, 1e-5)
    assert (layers(net), layers(deployed)) == (before, (convolutions, 0))
    assert relative_difference(deployed(Tensor(x)), net(Tensor(x))) < 1e-5
    assert len(report.blocks) == convolutions
    names = [parameter.name for parameter in deployed.get_parameters()]
    assert len(set(names)) == len(names)
    return deployed


# ------------------------------------------------------------------------------------------------------------- a cell


class TwoBranches(nn.Cell):
    """Another project's cell: 3x3 and 1x1, each with BN, and an activation that has a parameter."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.large = nn.SequentialCell(conv2d(3, 4, 3), batch_norm(4))
        self.small = nn.SequentialCell(conv2d(3, 4, 1), batch_norm(4))
        self.act = nn.PReLU()

    def construct(self, x):
        return self.act(self.large(x) + self.factor * self.small(x))


def two_branches(cell):
    """Says nothing of the factor."""

    def linear_map(read):
        return algebra.add(maps.map_of(cell.large, read), maps.map_of(cell.small, read))

    return linear_map, ("act",), "fused"


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    register(f"{__name__}.TwoBranches", two_branches)


@pytest.mark.usefixtures("known")
def test_a_registered_cell_is_fused():
    net = nn.SequentialCell(TwoBranches(), conv2d(4, 4, 1))
    net[0].large[0].weight.requires_grad = False
    randomise_bn(net).set_train(False)
    deployed = to_deploy(net)
    assert [p.name for p in deployed.get_parameters()] == ["0.fused.weight", "0.fused.bias", "0.act.w", "1.weight"]
    assert deployed[0].act.w is not net[0].act.w
    assert verify_equivalence(net, deployed, images()).max_rel < 1e-5
    kernel, bias = deployed[0].fused.weight, deployed[0].fused.bias
    kernel.set_data(kernel * 1.001)
    report = verify_equivalence(net, deployed, images(), 0.1, raise_on_failure=False)
    assert report.failures[0].startswith("0: the weights differ from the fused branches by 1.0e-03")
    assert bias.requires_grad


@pytest.mark.usefixtures("known")
def test_an_adapter_that_is_wrong_is_found_out():
    net = randomise_bn(nn.SequentialCell(TwoBranches(1.2)))
    with pytest.raises(FusionError, match=r"0 \(TwoBranches\) cannot be fused: .* correct the adapter"):
        to_deploy(net)
    with pytest.raises(EquivalenceError, match="the two forms differ: 0: the outputs differ"):
        to_deploy(net, images())


@pytest.mark.usefixtures("known")
def test_what_an_adapter_cannot_fold_is_left_and_named(caplog):
    net = nn.SequentialCell(TwoBranches(), TwoBranches())
    net[1].small[0] = nn.ReLU()
    with caplog.at_level(logging.WARNING):
        to_deploy(nn.SequentialCell(net[0], net[1]))
    assert "it cannot fuse 1: what ReLU computes is not known as a convolution" in caplog.text


def broken(_):
    raise ZeroDivisionError("no branch")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (broken, "the adapter of TwoBranches fails: ZeroDivisionError: no branch; it must return None, or"),
        (
            lambda cell: two_branches(cell)[:2],
            "the adapter of TwoBranches fails: TypeError: .*; it must return None, or",
        ),
        (lambda cell: (broken, ("act",), "fused"), "it cannot fuse .*: no branch"),
        (lambda cell: (lambda read: None, ("act",), "fused"), "it cannot fuse .*: cannot unpack"),
        (lambda cell: (two_branches(cell)[0], ("act",), "a.b"), "it cannot fuse .*: .*can not contain"),
        (
            lambda cell: (two_branches(cell)[0], ("act",), "act"),
            "it cannot fuse .*: .* convolution act, as a cell that",
        ),
    ],
    ids=["raises", "too little", "map raises", "map of nothing", "dotted name", "name of another cell"],
)
def test_an_adapter_that_fails_is_named(adapter, reason):
    register(f"{__name__}.TwoBranches", adapter)
    with pytest.raises(FusionError, match=reason):
        to_deploy(nn.SequentialCell(TwoBranches()))


def test_a_name_must_be_dotted():
    for name in ("Block", "a..b", "a.b-c", 3):
        with pytest.raises(UserError, match="must be the dotted name of a class"):
            register(name, two_branches)


def test_an_entry_point_is_loaded_when_its_cell_is_met(monkeypatch):
    name = f"{__name__}.TwoBranches"
    point = importlib.metadata.EntryPoint(name, f"{__name__}:two_branches", adapters.GROUP)
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    monkeypatch.setattr(adapters, "_entry_points", lambda: {name: point})
    check(nn.SequentialCell(TwoBranches()), 1)


# ------------------------------------------------------------------------------------------------------------ MindCV


def mindcv_network(deploy=False, **options):
    mindcv = pytest.importorskip("mindcv.models.repvgg")
    return mindcv.RepVGG([1, 2, 1, 1], 10, 3, [0.25, 0.25, 0.25, 0.25], deploy=deploy, **options)


@pytest.fixture
def _today(pytestconfig):
    if pytestconfig.getoption("--announced-signatures"):
        pytest.skip("MindCV and MindYOLO make their convolutions by today's signatures")


@pytest.mark.usefixtures("_today")
@pytest.mark.parametrize("options", [{}, {"override_group_map": {2: 4}}, {"use_se": True}], ids=["plain", "g4", "se"])
def test_mindcvs_repvgg_is_fused(options):
    net = randomise_bn(mindcv_network(**options)).set_train(False)
    deployed = to_deploy(net)
    report = verify_equivalence(net, deployed, images(), 1e-5)
    assert len(report.blocks) == 6
    assert layers(deployed)[1] == 0
    # MindCV's own deploy form has these names: it can read them.
    names = {p.name for p in deployed.get_parameters()}
    assert {"stage2.1.rbr_reparam.weight", "stage4.0.rbr_reparam.bias", "linear.weight"} <= names
    with pytest.raises(FusionError, match="nothing to fuse"):
        to_deploy(deployed)


@pytest.mark.slow
@pytest.mark.usefixtures("_today")
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4"])
def test_mindcvs_networks_are_fused(name):
    net = pytest.importorskip("mindcv.models").create_model(name)
    check(net, len([cell for _, cell in net.cells_and_names() if hasattr(cell, "rbr_dense")]))


# ---------------------------------------------------------------------------------------------------------- MindYOLO


class ConvNormAct(nn.Cell):
    """A stand-in for MindYOLO's cell, with its attributes."""

    def __init__(self, inputs, outputs, size, stride=1, groups=1, act=True):
        super().__init__()
        self.conv = conv2d(inputs, outputs, size, stride, groups=groups)
        self.bn = batch_norm(outputs, eps=1e-3)
        self.act = nn.SiLU() if act else nn.Identity()

    def construct(self, x):
        return self.act(self.bn(self.conv(x)))


class RepConv(nn.Cell):
    """A stand-in for MindYOLO's cell, with its attributes."""

    def __init__(self, inputs, outputs, stride=1, groups=1, bn=True):
        super().__init__()
        straight = bn and inputs == outputs and stride == 1
        self.in_channels, self.act = inputs, nn.SiLU()
        self.rbr_identity = batch_norm(inputs, eps=1e-3) if straight else None
        self.rbr_dense, self.rbr_1x1 = (
            nn.SequentialCell(conv2d(inputs, outputs, size, stride, groups=groups), batch_norm(outputs, eps=1e-3))
            for size in (3, 1)
        )

    def construct(self, x):
        straight = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.act(self.rbr_dense(x) + self.rbr_1x1(x) + straight)


class RepVGGDW(nn.Cell):
    """A stand-in for MindYOLO's cell, with its attributes."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.conv1 = (ConvNormAct(channels, channels, size, 1, channels, False) for size in (7, 3))
        self.act = nn.SiLU()

    def construct(self, x):
        return self.act(self.conv(x) + self.conv1(x))


@pytest.fixture
def yolo(monkeypatch):
    """A small network of cells that are called as MindYOLO's; what is in the place of that project is not imported."""
    for kind, module in ((ConvNormAct, "conv"), (RepConv, "conv"), (RepVGGDW, "bottleneck")):
        monkeypatch.setattr(kind, "__module__", f"mindyolo.models.layers.{module}")
    return nn.SequentialCell(
        ConvNormAct(3, 8, 3, 2),
        RepConv(8, 8),
        RepConv(8, 12, 2, 4),
        RepConv(12, 12, bn=False),
        RepVGGDW(12),
        nn.SequentialCell(ConvNormAct(12, 8, 1), conv2d(8, 5, 1)),
    )


def test_mindyolos_cells_are_fused(yolo):
    before = set(sys.modules)
    randomise_bn(yolo).set_train(False)
    deployed = to_deploy(yolo)
    report = verify_equivalence(yolo, deployed, images(), 1e-5)
    assert [block.name for block in report.blocks] == ["0", "1", "2", "3", "4", "5.0"]
    assert (layers(yolo), layers(deployed)) == ((11, 11), (7, 0))
    assert {"0.conv.weight", "1.rbr_reparam.bias", "4.conv.weight"} <= {p.name for p in deployed.get_parameters()}
    assert not [name for name in set(sys.modules) - before if name.startswith("mindyolo")]


def test_a_block_inserted_into_another_projects_cell_is_fused_with_it(yolo):
    randomise_bn(yolo).set_train(False)
    grown = insert(yolo, "repvgg", ["0.*", "1.rbr_dense.0", "4.conv.conv"], images(), keep_function=True)
    assert len(grown.insertion.replaced) == 3
    assert relative_difference(grown(Tensor(images())), yolo(Tensor(images()))) < 1e-6
    randomise_bn(grown, 1)
    deployed = to_deploy(grown)
    assert layers(deployed) == (7, 0)
    assert verify_equivalence(grown, deployed, images(), 1e-5).passed
    assert np.abs(deployed(Tensor(images())).asnumpy()).max() > 0


@pytest.mark.usefixtures("_today")
def test_mindyolos_own_cells_are_fused():
    bottleneck, conv = (other_project(f"mindyolo.models.layers.{name}") for name in ("bottleneck", "conv"))
    check(
        nn.SequentialCell(
            conv.ConvNormAct(3, 8, 3, 2),
            conv.RepConv(8, 8),
            conv.RepConv(8, 12, 3, 2),
            bottleneck.RepNCSP(12, 12),
            bottleneck.RepVGGDW(12),
        ),
        3 + 5 + 1,
    )
