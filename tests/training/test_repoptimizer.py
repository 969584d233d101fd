"""RepOptimizer: training one convolution a block is training the linear addition that its scales stand for."""

import numpy as np
import pytest
import torch
from mindspore import Tensor, ops
from support import context_mode, relative_difference
from support.numpy_training import Network, decays, multiplier, one_kernel
from torch.nn import functional

from mindrepvgg import create_model
from mindrepvgg.errors import RecipeError
from mindrepvgg.models.variants import custom
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer, decay_groups
from mindrepvgg.training.repoptimizer import start_from_scales
from mindrepvgg.training.step import LossScale, NetworkWithLoss, TrainStep

SHAPE = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 6, 6, 8), "strides": (1, 1, 2, 2, 2)}
VARIANT = custom(**SHAPE, family="repopt_vgg")
BLOCKS = {spec.name: spec.stride for spec in VARIANT.block_specs()}
CLASSES, BATCH, SIDE, STEPS = 5, 16, 16, 20
LR, MOMENTUM, DECAY = 0.02, 0.9, 0.02


def scales():
    """Scales of no pattern, by name."""
    rng = np.random.default_rng(1)
    found = {}
    for spec in VARIANT.block_specs():
        for name in ("scale_conv", "scale_1x1", *(["scale_identity"] if spec.keeps else [])):
            found[f"{spec.name}.{name}.weight"] = rng.uniform(0.5, 1.5, spec.out_channels)
    return found


def start():
    """Parameters of the network of linear additions, in float64, the inputs' scales among them."""
    rng = np.random.default_rng(2)
    values = {name: array for name, array in scales().items() if "identity" in name}
    for spec in VARIANT.block_specs():
        out, inputs = spec.out_channels, spec.in_channels
        values[f"{spec.name}.conv.weight"] = rng.normal(0, (9 * inputs) ** -0.5, (out, inputs, 3, 3))
        values[f"{spec.name}.conv_1x1.weight"] = rng.normal(0, inputs**-0.5, (out, inputs, 1, 1))
        values[f"{spec.name}.bn.gamma"] = rng.uniform(0.5, 1.5, out)
        values[f"{spec.name}.bn.beta"] = rng.normal(0, 0.3, out)
    values["linear.weight"] = rng.normal(0, 0.5, (CLASSES, VARIANT.widths[-1]))
    values["linear.bias"] = rng.normal(0, 0.5, CLASSES)
    return values


def merged(values):
    """The same network with one kernel a block."""
    kept = {name: array for name, array in values.items() if ".conv" not in name and "scale" not in name}
    return kept | {f"{block}.conv.weight": one_kernel(values, scales(), block) for block in BLOCKS}


def multipliers(power=2, **options):
    return {
        f"{spec.name}.conv.weight": multiplier(scales(), spec.name, spec.kernel_shape, power, **options)
        for spec in VARIANT.block_specs()
    }


def batch(number):
    rng = np.random.default_rng(100 + number)
    return rng.normal(size=(BATCH, 3, SIDE, SIDE)).astype(np.float32), rng.integers(0, CLASSES, BATCH).astype(np.int32)


def train(values, of_branches, make_gradients, factors=None, **wrong):
    """The logits of every step in float64, (STEPS, BATCH, CLASSES), and the network."""
    net = Network(BLOCKS, dict(values), scales() if of_branches else None)
    history = []
    for number in range(STEPS):
        logits, gradients = make_gradients(net, *batch(number))
        history.append(logits)
        net.sgd(gradients, LR, MOMENTUM, DECAY, True, factors, **wrong)
    return np.stack(history), net


def by_numpy(net, images, labels):
    return net.gradients(images, labels)


def by_torch(net, images, labels):
    """The same by PyTorch's operators and its gradients."""
    values = {name: torch.tensor(array, requires_grad=True) for name, array in net.values.items()}
    x = torch.tensor(images, dtype=torch.float64)
    for name, stride in net.blocks.items():
        y = functional.conv2d(x, values[f"{name}.conv.weight"], stride=stride, padding=1)
        if net.scales is not None:
            s, t = (
                torch.tensor(net.scales[f"{name}.{key}.weight"])[:, None, None] for key in ("scale_conv", "scale_1x1")
            )
            y = s * y + t * functional.conv2d(x, values[f"{name}.conv_1x1.weight"], stride=stride)
            if f"{name}.scale_identity.weight" in values:
                y = y + values[f"{name}.scale_identity.weight"][:, None, None] * x
        gamma, beta = values[f"{name}.bn.gamma"], values[f"{name}.bn.beta"]
        x = torch.relu(functional.batch_norm(y, None, None, gamma, beta, training=True))
    logits = functional.linear(x.mean((2, 3)), values["linear.weight"], values["linear.bias"])
    functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.int64)).backward()
    return logits.detach().numpy(), {name: value.grad.numpy() for name, value in values.items()}


def torch_sgd():
    """The linear additions trained by PyTorch's own SGD; the logits of every step."""
    net = Network(BLOCKS, start(), scales())
    parameters = {name: torch.tensor(array, requires_grad=True) for name, array in net.values.items()}
    groups = [{"params": [p], "weight_decay": DECAY * decays(name)} for name, p in parameters.items()]
    optimizer = torch.optim.SGD(groups, LR, MOMENTUM, nesterov=True)
    history = []
    for number in range(STEPS):
        net.values = {name: p.detach().numpy() for name, p in parameters.items()}
        logits, gradients = by_torch(net, *batch(number))
        history.append(logits)
        for name, p in parameters.items():
            p.grad = torch.tensor(gradients[name])
        optimizer.step()
    return np.stack(history)


@pytest.fixture(scope="module")
def additions():
    """The linear additions' logits of every step, by NumPy."""
    return train(start(), True, by_numpy)[0]


class TestTheTrainingsAreOne:
    """In float64, 20 steps of Nesterov's SGD with decay: linear additions, and single kernels with RepOptimizer."""

    @pytest.mark.parametrize("gradients", [by_numpy, by_torch])
    def test_one_kernel_a_block_gives_the_same_logits(self, gradients, additions):
        found, _ = train(merged(start()), False, gradients, multipliers())
        assert np.abs(found[-1] - found[0]).max() > 0.1, "it learns something"
        assert relative_difference(found, additions) < 1e-12

    @pytest.mark.slow
    def test_numpy_and_pytorch_train_the_linear_additions_alike(self, additions):
        assert relative_difference(torch_sgd(), additions) < 1e-12

    @pytest.mark.parametrize(
        ("factors", "wrong"),
        [
            (multipliers(point=False), {}),
            (multipliers(), {"after_decay": True}),
        ],
        ids=["no-centre", "after-decay"],
    )
    def test_wrong_multipliers_are_seen(self, factors, wrong, additions):
        found, _ = train(merged(start()), False, by_numpy, factors, **wrong)
        assert relative_difference(found[-1], additions[-1]) > 1e-4

    def test_a_constant_scale_of_the_input_is_another_training(self, additions):
        """The multiplier's diagonal holds for a scale that is trained."""
        found, _ = train(start(), True, by_numpy, frozen="identity.weight")
        assert relative_difference(found[-1], additions[-1]) > 1e-4


def our_network(values):
    """A RepOpt-VGG with these values."""
    net = create_model("repopt_vgg", CLASSES, **SHAPE)
    for parameter in net.get_parameters():
        if parameter.name in values:
            parameter.set_data(Tensor(values[parameter.name].astype(np.float32)))
    return net


def our_optimizer(net, **options):
    rates = np.full(STEPS, options.pop("lr", LR), np.float32)
    settings = {"momentum": MOMENTUM, "use_nesterov": True, "weight_decay": DECAY, "weight_decay_filter": "paper"}
    return build_optimizer(net, rates, **settings, **options, scales=scales())


def our_step(net, optimizer, **options):
    with context_mode("graph"):
        return TrainStep(NetworkWithLoss(net, build_loss()), optimizer, **options)


def run(step, steps=STEPS):
    """The loss of every step."""
    with context_mode("graph"):
        return [float(step(*map(Tensor, batch(number)))[0].asnumpy()) for number in range(steps)]


def weights_of(net):
    return {p.name: p.asnumpy() for p in net.trainable_params()}


def worst(found, expected):
    return max(relative_difference(found[name], expected[name]) for name in expected)


def test_the_compiled_step_follows_it():
    """float32, Nesterov, decay: 20 steps."""
    net = our_network(merged(start()))
    run(our_step(net, our_optimizer(net)))
    _, expected = train(merged(start()), False, by_numpy, multipliers())
    found = weights_of(net)
    assert set(found) == set(expected.values)
    assert worst(found, expected.values) < 1e-5
    _, wrong = train(merged(start()), False, by_numpy, multipliers(), after_decay=True)
    assert worst(found, wrong.values) > 1e-4


ADAMW = {"betas": (0.9, 0.99), "eps": 1e-6}


def fed(optimizer, net, gradients):
    """One update of the optimizer, compiled, with these gradients by name."""
    with context_mode("graph"):
        optimizer(tuple(Tensor(gradients[p.name].astype(np.float32)) for p in optimizer.parameters))
    return weights_of(net)


@pytest.mark.parametrize("opt", ["momentum", "adamw"])
def test_one_update_fed_the_same_gradients(opt):
    """Three updates, each from where the one before ended in float64."""
    net, twin = our_network(merged(start())), Network(BLOCKS, merged(start()))
    optimizer = our_optimizer(net, opt=opt, **(ADAMW if opt == "adamw" else {}))
    for number in range(3):
        _, gradients = twin.gradients(*batch(number))
        for parameter in net.trainable_params():
            ops.assign(parameter, Tensor(twin.values[parameter.name].astype(np.float32)))
        if opt == "adamw":
            twin.adamw(gradients, LR, **ADAMW, decay=DECAY, multipliers=multipliers(1))
        else:
            twin.sgd(gradients, LR, MOMENTUM, DECAY, True, multipliers())
        assert worst(fed(optimizer, net, gradients), twin.values) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("opt", "level"), [(opt, level) for opt in ("momentum", "adamw") for level in ("O0", "O2")])
def test_the_drift_over_20_steps(opt, level, capsys):
    """What float32 and half precision make of 20 steps; measured, and not far from the float64 twin."""
    net = set_precision(our_network(merged(start())), level)
    optimizer = our_optimizer(net, opt=opt, **(ADAMW if opt == "adamw" else {}))
    run(our_step(net, optimizer, loss_scale=LossScale(1024.0) if level == "O2" else None))
    twin = Network(BLOCKS, merged(start()))
    for number in range(STEPS):
        _, gradients = twin.gradients(*batch(number))
        if opt == "adamw":
            twin.adamw(gradients, LR, **ADAMW, decay=DECAY, multipliers=multipliers(1))
        else:
            twin.sgd(gradients, LR, MOMENTUM, DECAY, True, multipliers())
    found = weights_of(net)
    apart, all_of_it = (
        np.sqrt(sum(np.square(array).sum() for array in arrays))
        for arrays in ([found[name] - twin.values[name] for name in found], twin.values.values())
    )
    with capsys.disabled():
        print(f"\n{opt}, {level}: after {STEPS} steps the weights are off by {apart / all_of_it:.1e} of their norm")
    assert apart < 0.5 * all_of_it


@pytest.mark.slow
@pytest.mark.parametrize("opt", ["momentum", "adamw"])
def test_half_precision_updates_by_its_own_gradients(graph_mode, opt):
    """One compiled step in half precision: the update is the twin's, fed the gradients of that same step."""
    net = set_precision(our_network(merged(start())), "O2")
    before = {name: array.astype(np.float64) for name, array in weights_of(net).items()}
    optimizer = our_optimizer(net, opt=opt, **(ADAMW if opt == "adamw" else {}))
    step = our_step(net, optimizer, loss_scale=LossScale(1024.0))
    images, labels = map(Tensor, batch(0))
    _, gradients = step.backward(images, labels)
    caught = {p.name: g.asnumpy().astype(np.float64) for p, g in zip(optimizer.parameters, gradients, strict=True)}
    step(images, labels)
    twin = Network(BLOCKS, before)
    if opt == "adamw":
        twin.adamw(caught, LR, **ADAMW, decay=DECAY, multipliers=multipliers(1))
    else:
        twin.sgd(caught, LR, MOMENTUM, DECAY, True, multipliers())
    assert worst(weights_of(net), twin.values) < 1e-6


def test_what_decays_is_what_the_authors_say():
    """Kernels and, in a search, the scale of the input; not the two other scales, BN, nor the bias."""
    search = create_model("repopt_vgg", CLASSES, block="linear_addition", **SHAPE)
    for net in (search, our_network({})):
        decayed, free = ({p.name for p in group} for group in decay_groups(net, "paper"))
        assert decayed | free == {p.name for p in net.trainable_params()}
        for name in decayed | free:
            shape = dict(weights_of(net))[name].shape
            assert (name in decayed) == ("identity.weight" in name or len(shape) > 1), name


def test_clipping_is_refused_with_the_reason():
    net = our_network({})
    with pytest.raises(RecipeError, match="takes no clipped gradients: their norm would be that of the one kernel's"):
        TrainStep(NetworkWithLoss(net, build_loss()), our_optimizer(net), clip_norm=1.0)


def test_networks_without_its_blocks_are_refused():
    net = create_model("repvgg", CLASSES, num_blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4, 4))
    with pytest.raises(RecipeError, match="RepOpt-VGG's blocks in train form, and the network has none"):
        our_optimizer(net)
    with pytest.raises(RecipeError, match="the network has none"):
        start_from_scales(create_model("repopt_vgg", CLASSES, deploy=True, **SHAPE), scales())
