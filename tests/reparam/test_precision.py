"""Mixed precision, set and taken back in place: what computes in half, what stays float32, and what comes of it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import SMALL, images, randomise_bn, relative_difference, weights

from mindrepvgg import create_model, load_checkpoint, save_checkpoint, to_deploy, verify_equivalence
from mindrepvgg.errors import UserError
from mindrepvgg.reparam.precision import check_precision, float32_precision, set_precision
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.step import LossScale, NetworkWithLoss, TrainStep
from mindrepvgg.weights.convert import convert_checkpoint

pytestmark = pytest.mark.usefixtures("pynative_mode")

KINDS = ("plain", "g4", "d2se", "plus")
HALF = ("O2", "O3")


def network(kind="plain", **changes):
    ms.set_seed(0)
    return randomise_bn(create_model("repvgg", 5, **{**SMALL[kind], **changes})).set_train(False)


def outputs(net, x):
    """All that a network answers: the logits, and in training the heads' too."""
    found = net(x)
    return found if isinstance(found, tuple) else (found,)


def types_inside(net, x):
    """The types of what the network's cells give, by the cell's class."""
    found, handles = {}, []
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.Conv2d | nn.Dense | nn.ReLU | nn.Sigmoid | nn.BatchNorm2d):
            name = type(cell).__name__
            handles.append(
                cell.register_forward_hook(lambda _, __, y, name=name: found.setdefault(name, set()).add(y.dtype))
            )
    net(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", HALF)
def test_what_computes_in_half(kind, level):
    net, x = network(kind), Tensor(images())
    before, single = weights(net), net(x)
    assert single.dtype == ms.float32
    assert set.union(*types_inside(net, x).values()) == {ms.float32}

    assert set_precision(net, level) is net
    half = net(x)
    assert half.dtype == ms.float16
    found = types_inside(net, x)
    assert found.pop("BatchNorm2d") == {ms.float32 if level == "O2" else ms.float16}
    assert set.union(*found.values()) == {ms.float16}
    # Near enough to be the same network, far enough to have been computed otherwise.
    assert 1e-5 < relative_difference(half, single) < 2e-2
    assert all(p.dtype == ms.float32 for p in net.get_parameters())
    after = weights(net)
    assert list(after) == list(before)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)

    set_precision(net, "O0")
    again = net(x)
    assert again.dtype == ms.float32
    np.testing.assert_array_equal(again.asnumpy(), single.asnumpy())


@pytest.mark.parametrize("level", HALF)
def test_in_training_every_head_is_in_half(level):
    net = set_precision(network("plus"), level).set_train()
    found = outputs(net, Tensor(images(4, 3, 64, 64)))
    assert [y.dtype for y in found] == [ms.float16] * 4
    assert all(p.dtype == ms.float32 for p in net.get_parameters())


@pytest.mark.parametrize("level", ["O2", pytest.param("O3", marks=pytest.mark.slow)])
def test_a_compiled_graph_is_near_float32(level):
    net, x = network("d2se", num_blocks=(1, 1, 2, 1)), Tensor(images())
    expected = net(x).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)  # the fixture takes it back
    half = set_precision(net, level)(x)
    assert half.dtype == ms.float16
    assert 1e-5 < relative_difference(half, expected) < 2e-2


@pytest.mark.parametrize("level", HALF)
def test_statistics_are_taken_in_float32(level):
    """They move as in float32, up to the rounding of what the BN is given."""
    found = []
    for precision in ("O0", level):
        net = set_precision(network(), precision).set_train()
        before = net.stage0.rbr_dense.bn.moving_variance.asnumpy().copy()
        net(Tensor(images(8, 3, 64, 64)))
        found.append(net.stage0.rbr_dense.bn.moving_variance.asnumpy().copy())
        assert found[-1].dtype == np.float32
        assert np.abs(found[-1] - before).max() > 1e-2, "negative control"
    assert relative_difference(found[1], found[0]) < 1e-3
    # Float16 would have rounded them to 11 bits.
    assert (found[1] != found[1].astype(np.float16).astype(np.float32)).any()


def test_float32_for_a_while():
    net, x = network(), Tensor(images())
    expected = net(x).asnumpy()
    set_precision(net, "O2")
    half = net(x).asnumpy()
    with float32_precision(net, "O2", "float16"):
        np.testing.assert_array_equal(net(x).asnumpy(), expected)
    np.testing.assert_array_equal(net(x).asnumpy(), half)
    with pytest.raises(KeyError), float32_precision(net, "O2", "float16"):
        raise KeyError
    assert net(x).dtype == ms.float16


def test_frozen_bn_computes_in_half_too():
    net = set_precision(freeze(network(), bn=True), "O2").set_train()
    assert net(Tensor(images())).dtype == ms.float16


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("d2se", "O2"),
        pytest.param("d2se", "O3", marks=pytest.mark.slow),
        pytest.param("plus", "O2", marks=pytest.mark.slow),
        pytest.param("plus", "O3", marks=pytest.mark.slow),
    ],
)
def test_what_was_trained_in_half_is_a_network_like_any_other(kind, level, tmp_path):
    """Saved, loaded, fused, proved, and converted; the parameters have moved off every float16 number."""
    net = set_precision(network(kind, num_blocks=(1, 1, 2, 1)), level)
    before = weights(net)
    optimizer = build_optimizer(net, np.full(9, 0.05))
    step = TrainStep(NetworkWithLoss(net, build_loss()), optimizer, loss_scale=LossScale(128.0))
    for number in range(2):
        _, done = step(Tensor(images(8, 3, 32, 32, seed=number)), Tensor(np.arange(8, dtype=np.int32) % 5))
        assert bool(done.asnumpy())
    trained = weights(set_precision(net, "O0").set_train(False))
    assert list(trained) == list(before)
    assert all(values.dtype == np.float32 for values in trained.values())
    assert all(trained[name].tobytes() != before[name].tobytes() for name in before)
    kernel = trained["stage1.0.rbr_dense.conv.weight"]
    assert (kernel != kernel.astype(np.float16)).any()

    path = tmp_path / "trained.ckpt"
    save_checkpoint(net, path)
    loaded, x = load_checkpoint(path), Tensor(images(4, 3, 32, 32))
    assert all(weights(loaded)[name].tobytes() == trained[name].tobytes() for name in trained)
    np.testing.assert_array_equal(loaded(x).asnumpy(), net(x).asnumpy())
    report = verify_equivalence(loaded, to_deploy(loaded), x, rtol=1e-4)
    assert report.passed
    assert report.max_rel < 1e-4
    convert_checkpoint(path, tmp_path / "deployed.ckpt")
    deployed = load_checkpoint(tmp_path / "deployed.ckpt", form="deploy")
    assert relative_difference(deployed(x), net(x)) < 1e-4


class TestRefusals:
    @pytest.mark.parametrize(
        ("level", "dtype", "message"),
        [
            ("O1", "float16", "amp_level (=O1) must be O0, O2 or O3"),
            ("O2", "float8", "amp_dtype (=float8) must be one of float16, bfloat16"),
            (
                "O3",
                "bfloat16",
                "amp_level O3 needs amp_dtype float16: MindSpore's BN takes no bfloat16; use amp_level O2",
            ),
        ],
    )
    def test_values(self, level, dtype, message):
        net, x = network(), Tensor(images())
        expected = net(x).asnumpy()
        with pytest.raises(UserError) as caught:
            set_precision(net, level, dtype)
        assert str(caught.value) == message
        np.testing.assert_array_equal(net(x).asnumpy(), expected)

    def test_bfloat16_on_a_cpu(self):
        with pytest.raises(UserError, match=r"^amp_dtype bfloat16 cannot be used on CPU: .+; use float16$"):
            check_precision("O2", "bfloat16", "CPU")
        check_precision("O2", "bfloat16", "Ascend")
        check_precision("O0", "bfloat16", "CPU")
        check_precision("O3", "float16", "CPU")
