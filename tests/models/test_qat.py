"""Training for INT8: inserted BN computes the same, fake quantisation computes what integers do."""

import functools
import json
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from support import ROOT, SMALL, TINY_DIGITS, context_mode, images, noise, randomise_bn, relative_difference, weights

from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint, to_deploy
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loaders import CalibrationBatches, loader_of
from mindrepvgg.data.source import spread
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.models.qat import (
    fold_bn,
    form_of,
    quantization_parameters,
    to_fake_quantized,
    to_trainable_deploy,
    without_dead_channels,
)
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.reparam.fake_quant import ActivationQuantizer, FakeQuantBlock, FakeQuantize, weight_scale
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training import loop
from mindrepvgg.training.assemble import build_network
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.step import LossScale, NetworkWithLoss, TrainStep
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.convert import convert_checkpoint

CLASSES = 5
TINY = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}

# Batches of other numbers and sizes of images.
RAGGED = [images(3, 3, 32, 32, seed=1), images(2, 3, 40, 24, seed=2), images(1, 3, 32, 32, seed=3)]


def network(kind="plain", seed=0):
    return randomise_bn(create_model("repvgg", CLASSES, **(SMALL | {"tiny": TINY})[kind]), seed).set_train(False)


@pytest.fixture(autouse=True)
def _mode():
    """PyNative mode: most of these networks run once or twice. What trains is compiled, see `train`."""
    with context_mode("pynative"):
        yield


def test_a_network_without_dead_channels_computes_the_same_and_is_worth_training():
    """A channel that is always 0 and read by a weight of 300: per tensor, every other weight of that kernel is 0."""
    net = to_deploy(network("tiny"))
    arrays = {name: array.copy() for name, array in network_arrays(net).items()}
    arrays["stage3.0.rbr_reparam.weight"][2] = 0
    arrays["stage3.0.rbr_reparam.bias"][2] = -1
    arrays["stage3.1.rbr_reparam.weight"][2, 2, 1, 1] = 300
    load_arrays(net.get_parameters(), arrays, "the test")
    found = without_dead_channels(net, RAGGED)
    assert net.stage3[1].fused.weight.asnumpy().max() == 300, "what was given stays"
    assert not found.stage3[1].fused.weight.asnumpy()[:, 2].any()
    x = Tensor(RAGGED[0])
    assert relative_difference(net(x).asnumpy(), found(x).asnumpy()) < 1e-5
    sick, mended = (
        to_fake_quantized(to_trainable_deploy(one, RAGGED), RAGGED, per_channel=False).stage3[1] for one in (net, found)
    )
    kept = []
    for block in (sick, mended):
        scale = np.array(block.grids()["weight"]["scale"])
        kept.append((np.abs(block.get_equivalent_kernel_bias()[0].asnumpy()) > scale / 2).mean())
    assert kept[0] < 0.1 < 0.5 < kept[1]
    with pytest.raises(UserError, match="auxiliary heads"):
        without_dead_channels(create_model("repvgg", CLASSES, **SMALL["plus"]), RAGGED)


# Fake quantisation


@pytest.mark.parametrize(("scale", "zero_point"), [(0.05, 100), (0.25, 0), (0.01, 255)])
def test_a_tensors_grid_is_torchs(scale, zero_point):
    x = np.concatenate([2 * noise(400), np.arange(-9, 9) * scale / 2]).astype(np.float32)  # half-way too
    theirs = torch.from_numpy(x).requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, 0, 255)
    gradient = noise(len(x), seed=1)
    expected.backward(torch.from_numpy(gradient))
    cell, grid = FakeQuantize(0, 255), [Tensor([value], ms.float32) for value in (scale, zero_point)]
    actual, pull = ms.vjp(lambda x: cell(x, *grid), Tensor(x))
    # Their division is a product with the reciprocal: half-way cases may fall on the other side.
    steps = (actual.asnumpy() - expected.detach().numpy()) / scale
    assert np.abs(steps).max() < 1.01
    assert (np.abs(steps) > 0.01).mean() < 0.02
    np.testing.assert_array_equal(pull(Tensor(gradient))[0].asnumpy(), theirs.grad.numpy())
    assert 0 < (theirs.grad == 0).float().mean() < 1, "some were clipped, some were not"


def test_a_kernels_grid_is_torchs():
    kernel = (noise(6, 4, 3, 3) * np.geomspace(0.01, 10, 6)[:, None, None, None]).astype(np.float32)
    scale = weight_scale(Tensor(kernel), Tensor(np.zeros(6, np.float32)), Tensor([0.1], ms.float32))
    assert scale.shape == (6, 1, 1, 1)
    np.testing.assert_allclose(scale.asnumpy().ravel(), np.abs(kernel).reshape(6, -1).max(1) / 127, rtol=1e-6)
    expected = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(kernel),
        torch.from_numpy(scale.asnumpy().ravel()),
        torch.zeros(6, dtype=torch.int32),
        0,
        -127,
        127,
    )
    actual = FakeQuantize(-127, 127)(Tensor(kernel), scale, Tensor([0.0], ms.float32))
    assert relative_difference(actual, expected) < 1e-6
    one = weight_scale(Tensor(kernel), Tensor(np.zeros(6, np.float32)), Tensor([0.1], ms.float32), per_channel=False)
    np.testing.assert_allclose(one.asnumpy().ravel(), np.abs(kernel).max() / 127, rtol=1e-6)


@pytest.mark.parametrize(("bits", "activation", "weight"), [(8, 255, 127), (7, 127, 63), (6, 63, 31)])
def test_fewer_bits_are_a_coarser_grid(bits, activation, weight):
    kernel, bias = noise(4, 3, 3, 3).astype(np.float32), np.zeros(4, np.float32)
    scale = weight_scale(Tensor(kernel), Tensor(bias), Tensor([0.1], ms.float32), bits=bits).asnumpy().ravel()
    np.testing.assert_allclose(scale, np.abs(kernel).reshape(4, -1).max(1) / weight, rtol=1e-6)
    cell = ActivationQuantizer(bits)
    cell.set_range(-1, 3)
    assert cell.grid()["scale"] == pytest.approx(4 / activation)
    y = cell.set_train(False)(Tensor(np.linspace(-2, 5, 1000, dtype=np.float32))).asnumpy()
    assert len(np.unique(y)) == activation + 1


def test_a_bias_fits_int32_in_a_channel_without_weights():
    kernel, bias = np.ones((2, 1, 3, 3), np.float32), np.array([1, -3], np.float32)
    kernel[1] = 0
    input_scale = Tensor([0.02], ms.float32)
    scale = weight_scale(Tensor(kernel), Tensor(bias), input_scale).asnumpy().ravel()
    assert scale[0] == np.float32(1 / 127)
    integers = bias / (scale.astype(np.float64) * 0.02)
    assert np.abs(integers).max() < 2**31
    quantised = FakeQuantize(-(2**31), 2**31 - 1)(Tensor(bias), Tensor(scale) * input_scale, Tensor([0.0], ms.float32))
    assert relative_difference(quantised, bias) < 1e-3


def test_training_moves_the_range_and_inference_does_not():
    cell, x = ActivationQuantizer(), noise(2, 3, 4, 4)
    cell.set_range(-1, 2)
    with context_mode("graph"):
        cell.set_train(False)(Tensor(100 * x))
        assert (cell.moving_minimum.asnumpy(), cell.moving_maximum.asnumpy()) == (-1, 2)
        cell.set_train(True)(Tensor(x))
        y = cell.set_train(False)(Tensor(x))
    low, high = 0.99 * -1 + 0.01 * x.min(), 0.99 * 2 + 0.01 * x.max()
    np.testing.assert_allclose([*cell.moving_minimum.asnumpy(), *cell.moving_maximum.asnumpy()], [low, high], rtol=1e-6)
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    assert cell.grid() == {"scale": pytest.approx(scale), "zero_point": zero_point, "dtype": "uint8"}
    assert np.abs(y.asnumpy() - x).max() > 0.1, "clipped"
    integers = y.asnumpy() / scale + zero_point
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-4)


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0.5, 2, 0), (-3, -1, 255), (0, 0, 0)])
def test_every_range_holds_zero(low, high, zero_point):
    cell = ActivationQuantizer()
    cell.set_range(low, high)
    assert cell.grid()["zero_point"] == zero_point
    y = cell.set_train(False)(Tensor([0.0], ms.float32))
    assert y.asnumpy() == 0


# Inserted BN


@pytest.mark.parametrize("kind", ["g4", "d2se"])
def test_inserted_bn_computes_the_same(kind):
    net, x = network(kind), Tensor(images(4, 3, 32, 32, seed=9))
    expected = net(x)
    found = to_trainable_deploy(to_deploy(net) if kind == "g4" else net, RAGGED)
    assert (form_of(net), form_of(found)) == ("train", "bn")
    assert relative_difference(found(x), expected) < 1e-5
    assert not any("1x1" in name or "identity" in name for name in weights(found))
    folded = fold_bn(found)
    assert folded.deploy
    assert relative_difference(folded(x), expected) < 1e-5
    assert weights(folded).keys() == weights(to_deploy(net)).keys()
    gamma = found.stage2[0].rbr_dense.bn.gamma
    gamma.set_data(gamma * 1.01)
    assert relative_difference(found(x), expected) > 1e-4, "the BN is in the network"


def test_the_statistics_are_those_of_all_pixels():
    net = network()
    kernel, bias = (torch.from_numpy(array) for array in net.stage0.fused_kernel_bias())
    maps = [torch.nn.functional.conv2d(torch.from_numpy(x).double(), kernel, stride=2, padding=1) for x in RAGGED]
    pixels = np.concatenate([x.numpy().swapaxes(0, 1).reshape(len(bias), -1) for x in maps], axis=1)
    bn = to_trainable_deploy(net, RAGGED).stage0.rbr_dense.bn
    np.testing.assert_allclose(bn.moving_mean.asnumpy(), pixels.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.moving_variance.asnumpy(), pixels.var(1), rtol=1e-5)
    np.testing.assert_allclose(bn.gamma.asnumpy(), np.sqrt(pixels.var(1) + bn.eps), rtol=1e-5)
    np.testing.assert_allclose(bn.beta.asnumpy(), pixels.mean(1) + bias.numpy(), rtol=1e-5, atol=1e-6)
    of_batches = np.mean([x.numpy().var((0, 2, 3)) for x in maps], axis=0)
    assert relative_difference(of_batches, pixels.var(1)) > 1e-2, "a mean over batches would be noticed"


def test_statistics_far_from_zero_lose_nothing():
    """A sum of squares would: the mean is a thousand standard deviations away."""
    net = create_model("repvgg", CLASSES, deploy=True, **TINY).set_train(False)
    net.stage0.rbr_reparam.bias.set_data(Tensor(np.full(4, 1e4, np.float32)))
    block = to_trainable_deploy(net, RAGGED).stage0
    kernel = torch.from_numpy(net.stage0.rbr_reparam.weight.asnumpy()).double()
    maps = [torch.nn.functional.conv2d(torch.from_numpy(x).double(), kernel, stride=2, padding=1) for x in RAGGED]
    pixels = np.concatenate([x.numpy().swapaxes(0, 1).reshape(4, -1) for x in maps], axis=1)
    assert relative_difference(block.rbr_dense.bn.moving_variance, pixels.var(1)) < 1e-2


def test_what_cannot_be_converted():
    net = network("tiny")
    found = to_trainable_deploy(net)
    for call, message in [
        (lambda: to_trainable_deploy(found), "in bn form already"),
        (lambda: to_fake_quantized(net), "must be in bn form"),
        (lambda: fold_bn(net), "nothing to fold"),
        (lambda: quantization_parameters(found), "not in qat form"),
        (lambda: found.switch_to_deploy(), "folded by mindrepvgg.models.qat.fold_bn"),
        (lambda: to_trainable_deploy(net, []), "no batch was given"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(UserError, match="auxiliary heads, which its deploy form has not"):
        to_trainable_deploy(create_model("repvgg", CLASSES, **SMALL["plus"]))


# Training, in graph mode


class Trained:
    """A network in bn or qat form after some steps on one batch."""

    def __init__(self, form):
        ms.set_seed(0)
        with context_mode("pynative"):
            self.net = to_trainable_deploy(network("tiny"), RAGGED)
            if form == "qat":
                self.net = to_fake_quantized(self.net, RAGGED)
        self.start = weights(self.net)
        optimizer = build_optimizer(self.net, np.full(50, 0.1, np.float32), momentum=0.9)
        batch = Tensor(images(8, 3, 32, 32, seed=4)), Tensor(np.arange(8, dtype=np.int32) % CLASSES)
        # 'bn' form is a ConvBN as any; what is new in 'qat' form must compile.
        with context_mode("graph" if form == "qat" else "pynative"):
            step = TrainStep(NetworkWithLoss(self.net, build_loss()), optimizer, loss_scale=LossScale(1024.0))
            self.losses = [float(step(*batch)[0].asnumpy()) for _ in range(12)]
            self.before_bad = weights(self.net)
            spoilt = batch[0].asnumpy().copy()
            spoilt[0, 0, 3, 3] = np.inf
            self.bad_was_made = bool(step(Tensor(spoilt), batch[1])[1].asnumpy())
        self.net.set_train(False)
        self.weights = weights(self.net)

    def changed(self, leaf):
        """Whether the parameters of this name are all others than at the start; not some."""
        changed = {not np.array_equal(self.weights[n], self.start[n]) for n in self.start if n.endswith(leaf)}
        assert len(changed) == 1, leaf
        return changed.pop()


@pytest.fixture(scope="module")
def trained():
    """A function (form): what was trained; each form when a test first asks for it."""
    return functools.cache(Trained)


@pytest.mark.parametrize("form", ["bn", "qat"])
def test_it_trains_and_an_overflow_leaves_no_trace(trained, form):
    run = trained(form)
    assert run.losses[-1] < 0.9 * run.losses[0]
    assert run.changed("conv.weight")
    assert run.changed("bn.gamma")
    assert run.changed("moving_variance") is (form == "bn"), "qat folds frozen statistics"
    if form == "qat":
        assert run.changed("moving_maximum")
    assert not run.bad_was_made
    for name, values in run.before_bad.items():
        np.testing.assert_array_equal(run.weights[name], values, err_msg=name)


@pytest.mark.parametrize("form", ["bn", "qat"])
def test_a_checkpoint_keeps_the_form_and_is_no_other(trained, form, tmp_path):
    net, path = trained(form).net, tmp_path / f"{form}.ckpt"
    save_checkpoint(net, path)
    loaded = load_checkpoint(path, form=form)
    assert form_of(loaded) == form
    x = Tensor(images(2, 3, 32, 32))
    np.testing.assert_array_equal(loaded(x).asnumpy(), net(x).asnumpy())
    for other in ("train", "deploy", "qat" if form == "bn" else "bn"):
        with pytest.raises(CheckpointError, match=f"{path} is in {form} form"):
            load_checkpoint(path, form=other)
    folded = tmp_path / "folded.ckpt"
    convert_checkpoint(path, folded)
    plain = load_weights(folded, form="deploy")
    assert "quantization" not in plain.metadata
    assert plain.metadata.get("quantization_parameters") == (quantization_parameters(net) if form == "qat" else None)
    with pytest.raises(CheckpointError, match=f"{folded} is in deploy form, a {form} checkpoint is needed"):
        load_checkpoint(folded, form=form)


def test_folding_what_was_trained_changes_nothing(trained):
    net, x = trained("bn").net, Tensor(images(4, 3, 32, 32, seed=7))
    assert relative_difference(fold_bn(net)(x), net(x)) < 1e-5


# Integers


def quantised(x, grid):
    """Floats as the grid's integers."""
    scale = np.float32(grid["scale"])
    return np.clip(np.rint(x / scale).astype(np.int64) + grid["zero_point"], 0, 255)


def integer_layer(x, weight, bias, grids, stride, groups):
    """A convolution as an int8 engine computes it: integers up to the one product with both scales."""
    grid, kernel = grids["input"], grids["weight"]
    scale = np.broadcast_to(np.asarray(kernel["scale"], np.float32), len(weight)).reshape(-1, 1, 1, 1)
    integers = np.clip(np.rint(weight / scale).astype(np.int64), -127, 127)
    both = scale.ravel().astype(np.float64) * grid["scale"]
    biases = np.rint(bias / both).astype(np.int64)
    assert np.abs(biases).max() < 2**31
    x = np.pad(quantised(x, grid) - grid["zero_point"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    size = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))[:, :, ::stride, ::stride]
    parts = [
        np.einsum("nchwij,ocij->nohw", *pair)
        for pair in zip(np.split(windows, groups, 1), np.split(integers, groups, 0), strict=True)
    ]
    total = np.concatenate(parts, 1) + biases[:, None, None]
    assert total.dtype == np.int64
    assert np.abs(total).max() < 2**31
    return total * both[:, None, None]


def integer_network(deployed, parameters, x):
    """Logits of a plain deploy network from integers; SE is not known here."""
    for name, block in rep_blocks(deployed).items():
        conv = block.rbr_reparam
        layer = conv.weight.asnumpy(), conv.bias.asnumpy(), parameters[name], block.stride, block.groups
        x = np.maximum(integer_layer(x.astype(np.float32), *layer), 0)
    grid = parameters[name]["output"]
    x = ((quantised(x.astype(np.float32), grid) - grid["zero_point"]) * grid["scale"]).mean((2, 3))
    grids, scale = parameters["linear"], np.asarray(parameters["linear"]["weight"]["scale"])
    integers = np.rint(deployed.linear.weight.asnumpy() / scale[:, None]).astype(np.int64)
    x = quantised(x.astype(np.float32), grids["input"]) - grids["input"]["zero_point"]
    both = scale * grids["input"]["scale"]
    return (x @ integers.T + np.rint(deployed.linear.bias.asnumpy() / both).astype(np.int64)) * both


@pytest.mark.parametrize(("kind", "per_channel"), [("trained", True), ("g4", True), ("tiny", False)])
def test_fake_quantisation_is_what_integers_compute(trained, kind, per_channel):
    net = trained("qat").net
    if kind != "trained":
        net = to_fake_quantized(to_trainable_deploy(network(kind), RAGGED), RAGGED, per_channel)
    deployed, parameters = fold_bn(net), quantization_parameters(net)
    assert json.loads(json.dumps(parameters)) == parameters
    assert [*parameters] == [*rep_blocks(net), "linear"]
    seen = {}
    for name, block in rep_blocks(net).items():
        block.register_forward_hook(lambda _, given, y, name=name: seen.update({name: (given[0], y)}))
    x = images(6, 3, 32, 32, seed=11)
    logits = net(Tensor(x))
    for name, block in rep_blocks(deployed).items():
        given, y = (tensor.asnumpy() for tensor in seen[name])
        conv = block.rbr_reparam
        layer = conv.weight.asnumpy(), conv.bias.asnumpy(), parameters[name], block.stride, block.groups
        expected = np.maximum(integer_layer(given, *layer), 0)
        if "output" in parameters[name]:
            grid = parameters[name]["output"]
            expected = (quantised(expected.astype(np.float32), grid) - grid["zero_point"]) * grid["scale"]
        # Sums of float32 products round, at half-way cases to another integer of the next grid.
        assert relative_difference(y, expected) < (1e-2 if "output" in parameters[name] else 2e-5), name
        assert np.median(np.abs(y - expected)) < 1e-6 * np.abs(expected).max(), name
    spread = float(logits.asnumpy().max() - logits.asnumpy().min())
    assert np.abs(integer_network(deployed, parameters, x) - logits.asnumpy()).max() < 5e-3 * spread
    assert np.abs(deployed(Tensor(x)).asnumpy() - logits.asnumpy()).max() > 1e-2 * spread, "8 bits are not 32"


def test_one_scale_a_kernel_loses_more_than_one_a_channel():
    start = to_trainable_deploy(network(seed=3), RAGGED)
    x = Tensor(RAGGED[0])
    expected = start(x)
    channels, kernels = (relative_difference(to_fake_quantized(start, RAGGED, each)(x), expected) for each in (1, 0))
    assert channels < kernels
    net = to_fake_quantized(start, RAGGED, per_channel=False)
    assert quantization_parameters(net)["stage1.0"]["weight"]["axis"] is None
    assert isinstance(net.stage1[0], FakeQuantBlock)


# The recipe


def recipe_for(path, form, **more):
    return Recipe(**{**TINY_DIGITS, "pretrained": str(path), "quantization": form, "batch_size": 400, **more})


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A checkpoint of the tiny digits' network, and the network."""
    path = tmp_path_factory.mktemp("digits") / "train.ckpt"
    net = randomise_bn(create_model(TINY_DIGITS["model"], 10, 1, **TINY_DIGITS["model_args"]))
    save_checkpoint(net, path)
    return path, net.set_train(False)


@pytest.mark.parametrize("form", ["bn", "qat"])
def test_a_recipe_builds_the_form_from_a_checkpoint(digits, form):
    path, net = digits
    recipe = recipe_for(path, form)
    found = build_network(recipe, Ranks(), recipe.pretrained).set_train(False)
    assert (form_of(found), found.metadata) == (form, {"quantization": form})
    loader = loader_of(recipe, open_source("mnist5k", "", "train", 10))
    x = Tensor(next(iter(loader))[0][:50])
    assert relative_difference(found(x), net(x)) < {"bn": 1e-5, "qat": 0.2}[form]
    bn = found.stage1[0].rbr_dense.bn
    np.testing.assert_allclose(bn.gamma.asnumpy() ** 2, bn.moving_variance.asnumpy() + bn.eps, rtol=1e-5)
    assert (bn.moving_variance.asnumpy() != 1).all(), "from data"
    # What --resume fills, and what --show_param_groups shows.
    assert weights(build_network(recipe, Ranks())).keys() == weights(found).keys()


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 9},
        {"in_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        {"model": "repvgg_nano", "model_args": {}},
    ],
)
def test_another_network_than_the_recipes_is_refused(digits, change):
    recipe = recipe_for(digits[0], "bn", **change)
    wanted = f"instead of a {recipe.model} of {recipe.num_classes} classes and {recipe.in_channels} channels"
    with pytest.raises(CheckpointError, match=wanted):
        build_network(recipe, Ranks(), recipe.pretrained)


def test_calibration_images_are_no_padding():
    loader = loader_of(Recipe(**TINY_DIGITS, batch_size=48), spread(open_source("mnist5k", "", "train", 10), 100))
    batches = CalibrationBatches(loader)
    for _ in range(2):
        sizes = [len(batch) for batch in batches]
        assert sizes == [48, 48, 4]


@pytest.mark.slow
def test_a_run_is_resumed_exactly(digits, tmp_path, monkeypatch):
    """Two epochs at once; and stopped in the second, then resumed in a process of its own; with a moving average."""
    recipe = recipe_for(digits[0], "qat", epoch_size=2, ema=True, lr=0.01, scheduler="constant", log_interval=4)
    whole, halves = (recipe.replace(ckpt_save_dir=str(tmp_path / name)) for name in ("whole", "halves"))
    assert Trainer(whole).run().finished
    first = Trainer(halves)
    end_epoch = loop.Loop._end_epoch
    monkeypatch.setattr(loop.Loop, "_end_epoch", lambda self: (end_epoch(self), first.folder.stop.touch()))
    assert not first.run().finished
    command = [sys.executable, ROOT / "train.py", "--resume", first.folder.last]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    expected, actual = (load_checkpoint(next((tmp_path / name).glob("*_last.ckpt"))) for name in ("whole", "halves"))
    for name, values in weights(expected).items():
        np.testing.assert_array_equal(weights(actual)[name], values, err_msg=name)
