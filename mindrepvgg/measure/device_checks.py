"""Checks of a device without a large network: float32, grouped convolution, fusion, QAT, overflow, gradients."""

from __future__ import annotations

import math
import statistics
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, amp, nn, ops

from mindrepvgg.errors import UserError
from mindrepvgg.measure.ascend_check_report import CheckFailed, CheckSkipped, Result, run_check
from mindrepvgg.models.repvgg import build
from mindrepvgg.models.scales import scale_shapes
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.synthetic import parameter_value, uniform
from mindrepvgg.models.variants import find
from mindrepvgg.recipe import choices
from mindrepvgg.reparam.blocks import RepVGGBlock
from mindrepvgg.reparam.compare import difference
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.fake_quant import FakeQuantDense
from mindrepvgg.reparam.layers import NATIVE, conv2d
from mindrepvgg.reparam.linear_addition import gradient_multiplier
from mindrepvgg.reparam.precision import DTYPES
from mindrepvgg.runtime.environment import launched_processes
from mindrepvgg.runtime.ranks import Ranks, start
from mindrepvgg.runtime.timing import take_turns, timed
from mindrepvgg.training.all_reduce import gradient_mean
from mindrepvgg.training.distillation import Distillation
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer, decay_groups
from mindrepvgg.training.repoptimizer import block_scales
from mindrepvgg.training.step import NetworkWithLoss

_GROUPED_TOLERANCE = 1e-2  # loose, for HF32; groups that are mixed up are off by the largest output

# What rounding to 11 and to 8 bits leaves of two blocks, and a margin.
_MIXED_TOLERANCE = {"float16": 1e-2, "bfloat16": 8e-2}

# Two updates by an optimizer: its numbers, and what rounding to float32 leaves of them, with a margin.
_RATE, _DECAY, _MOMENTUM, _BETAS, _EPS = 0.1, 0.1, 0.9, (0.9, 0.99), 1e-6
_UPDATE_TOLERANCE = 1e-5

# A matrix product may be as coarse as HF32. A wrong scale is off by more.
_QAT_TOLERANCE = 5e-3

_MSRUN = "msrun --worker_num 8 --local_worker_num 8 --join True --log_dir msrun_log python -m mindrepvgg ascend-check"


def request_float32(device: str):
    """Ask Ascend to compute float32 in float32; otherwise convolutions may use HF32, and jit level O2 float16."""
    if device != "Ascend":
        raise CheckSkipped(f"{device} knows no other")
    ms.device_context.ascend.op_precision.precision_mode("must_keep_origin_dtype")
    ms.device_context.ascend.op_precision.conv_allow_hf32(False)
    return "precision_mode must_keep_origin_dtype, HF32 off in convolutions", None


class _ConvGradients(nn.Cell):
    """A 3x3 convolution (N, C, H, W) -> its output, and the gradients of its product with `probe`: input, weight."""

    def __init__(self, weight, groups, grouped=NATIVE):
        super().__init__()
        out_channels, per_group = weight.shape[:2]
        self.conv = conv2d(per_group * groups, out_channels, 3, groups=groups, grouped=grouped)
        self.conv.weight.set_data(Tensor(weight))
        self.gradients = ms.grad(self._product, 0, ms.ParameterTuple([self.conv.weight]))

    def _product(self, x, probe):
        return (self.conv(x) * probe).sum()

    def construct(self, x, probe):
        by_input, by_weight = self.gradients(x, probe)
        return self.conv(x), by_input, by_weight[0]


def check_grouped(groups: int, grouped: str = NATIVE, channels: int = 64, size: int = 16):
    """Compare a grouped convolution and its gradients with a plain convolution for each group, on the same device.

    Args:
        groups: of its channels.
        grouped: how it is computed: as MindSpore's own, or as plain ones in one graph; see `layers.conv2d`.
        channels: of input and output.
        size: height and width.
    """
    shape = (4, channels, size, size)
    x, probe = (uniform(name, shape).astype(np.float32) for name in ("grouped x", "grouped probe"))
    weight = parameter_value("grouped.weight", (channels, channels // groups, 3, 3))
    actual = [y.asnumpy() for y in _ConvGradients(weight, groups, grouped)(Tensor(x), Tensor(probe))]
    parts = []
    for i in range(groups):
        part = slice(i * channels // groups, (i + 1) * channels // groups)
        inputs = (Tensor(np.ascontiguousarray(a[:, part])) for a in (x, probe))
        parts.append([y.asnumpy() for y in _ConvGradients(weight[part], 1)(*inputs)])
    expected = [np.concatenate(pieces, axis) for pieces, axis in zip(zip(*parts, strict=True), (1, 1, 0), strict=True)]
    names = ("output", "gradient of the input", "gradient of the weight")
    found = {name: difference(b, a)[1] for name, a, b in zip(names, actual, expected, strict=True)}
    line = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    if not max(found.values()) <= _GROUPED_TOLERANCE:
        raise CheckFailed(f"differs from {groups} plain convolutions: {line}", found)
    return f"differs from {groups} plain convolutions by: {line}", found


def check_mixed_precision(dtype: str, device: str):
    """Fuse two blocks in MindSpore's automatic mixed precision O2, and compare both forms in the type of that name."""
    if device == "CPU" and dtype == "bfloat16":
        raise CheckSkipped("MindSpore has no bfloat16 convolution on CPU")
    net = nn.SequentialCell(RepVGGBlock(16, 32, 2), RepVGGBlock(32, 32)).set_train(False)
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(parameter_value(parameter.name, parameter.shape)))
    net = amp.auto_mixed_precision(net, "O2", DTYPES[dtype])
    x = Tensor(uniform("mixed precision x", (4, 16, 16, 16)).astype(np.float32))
    expected, actual = (form(x).asnumpy() for form in (net, to_deploy(net)))
    found = difference(expected, actual)[1]
    line = f"the fused network differs by {found:.1e}"
    if not found <= _MIXED_TOLERANCE[dtype]:
        raise CheckFailed(f"{line}: too much", found)
    return line, found


def check_repoptimizer(opt: str):
    """Compare two updates by RepOptimizer, compiled for the device and fed the same gradients, with float64.

    Args:
        opt: 'momentum', which is Nesterov's here, or 'adamw'.
    """
    net = build(find("repopt_vgg", num_blocks=(1, 1, 2, 1), widths=(16, 16, 32, 32, 32)), 10)
    scales = {name: 1 + uniform(name, shape) / 2 for name, shape in scale_shapes(net.variant).items()}
    values = {}
    for parameter in net.trainable_params():
        array = parameter_value(parameter.name, parameter.shape)
        parameter.set_data(Tensor(array))
        values[parameter.name] = array.astype(np.float64)
    rates = np.full(2, _RATE, np.float32)
    optimizer: Any = build_optimizer(
        net,
        rates,
        opt=opt,
        momentum=_MOMENTUM,
        use_nesterov=opt == "momentum",
        betas=_BETAS,
        eps=_EPS,
        weight_decay=_DECAY,
        weight_decay_filter="paper",
        scales=scales,
    )
    factors: dict[str, Any] = {}
    for spec in net.variant.block_specs():
        own = block_scales(spec.name, scales)
        factors[f"{spec.name}.conv.weight"] = gradient_multiplier(own, spec.kernel_shape, optimizer.POWER)
    decayed = {parameter.name for parameter in decay_groups(net, "paper")[0]}
    state = dict.fromkeys(values, (0.0, 0.0))
    for number in (1, 2):
        gradients = {name: uniform(f"gradient {number} {name}", value.shape) for name, value in values.items()}
        optimizer(tuple(Tensor(gradients[p.name].astype(np.float32)) for p in optimizer.parameters))
        for name, value in values.items():
            factor, decay = factors.get(name, 1.0), _DECAY * (name in decayed) * value
            gradient, (first, second) = gradients[name] * factor, state[name]
            if opt == "momentum":
                first = _MOMENTUM * first + gradient + decay
                step = gradient + decay + _MOMENTUM * first
            else:
                first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
                second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
                root = np.sqrt(second / (1 - _BETAS[1] ** number)) + _EPS
                step = factor * first / (1 - _BETAS[0] ** number) / root + decay
            state[name], values[name] = (first, second), value - _RATE * step
    found = max(difference(values[p.name], p.asnumpy())[1] for p in optimizer.parameters)
    line = f"weights differ from float64's by {found:.1e}"
    if not found <= _UPDATE_TOLERANCE:
        raise CheckFailed(f"{line}: too much", found)
    return line, found


class _Teacher(nn.Cell):
    """A linear layer in the place of a float network."""

    deploy = True

    def __init__(self, dense):
        super().__init__()
        self.linear = dense

    def construct(self, x):
        return self.linear(x)


def check_qat(share: float = 0.5):
    """Compare loss and gradients of QAT per tensor with float64, for a linear layer that is also distilled.

    Args:
        share: of the loss that is the divergence from the teacher.
    """
    inputs, classes, images = 16, 10, 8
    integers = {
        "x": np.rint(127.5 + 127 * uniform("qat x", (images, inputs))),
        "weight": np.rint(126 * uniform("qat weight", (classes, inputs))),
        "bias": np.rint(1e4 * uniform("qat bias", (classes,))),
    }
    # Inputs span 255 steps, weights 127: the scales are known. No number lies close to the middle of two steps.
    integers["x"][0, :2], integers["weight"][0, 0] = (0, 255), 127
    x_step, weight_step = 1 / 128, 1 / 256
    steps = {"x": x_step, "weight": weight_step, "bias": x_step * weight_step}
    rounded = {name: steps[name] * value for name, value in integers.items()}
    given = {
        name: value + 0.3 * steps[name] * uniform(f"qat {name} rest", value.shape) for name, value in rounded.items()
    }
    given["x"][0, :2], given["weight"][0, 0] = rounded["x"][0, :2], rounded["weight"][0, 0]
    taught = uniform("qat teacher", (classes, inputs))
    labels = np.arange(images, dtype=np.int32) % classes

    student = FakeQuantDense(_dense(given["weight"], given["bias"]), per_channel=False)
    student.input_quantizer.set_range(0, 255 * x_step)
    distillation = Distillation(_Teacher(_dense(taught, np.zeros(classes))), share)
    step = NetworkWithLoss(student.set_train(), build_loss(), distillation=distillation)
    gradient = ms.value_and_grad(step, None, student.trainable_params())
    loss, gradients = gradient(Tensor(given["x"].astype(np.float32)), Tensor(labels), Tensor(1.0))

    said, known = rounded["x"] @ rounded["weight"].T + rounded["bias"], given["x"] @ taught.T
    said, known = _log_softmax(said), _log_softmax(known)
    wanted = (1 - share) * np.eye(classes)[labels] + share * np.exp(known)
    by_logits = (np.exp(said) - wanted) / images
    task, apart = said[np.arange(images), labels], (np.exp(known) * (known - said)).sum(1)
    expected = {
        "loss": ((1 - share) * -task + share * apart).mean(),
        "weight": by_logits.T @ rounded["x"],
        "bias": by_logits.sum(0),
    }
    actual = {"loss": loss, **{p.name: g for p, g in zip(student.trainable_params(), gradients, strict=True)}}
    found = {name: difference(np.asarray(value), actual[name].asnumpy())[1] for name, value in expected.items()}
    line = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    if not max(found.values()) <= _QAT_TOLERANCE:
        raise CheckFailed(f"loss and gradients differ from float64's: {line}", found)
    return f"loss and gradients differ from float64's by: {line}", found


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _dense(weight, bias):
    """A linear layer of given weights (out, in) and bias (out,)."""
    dense = nn.Dense(*weight.shape[::-1])
    dense.weight.set_data(Tensor(weight.astype(np.float32)))
    dense.bias.set_data(Tensor(bias.astype(np.float32)))
    return dense


class _Overflow(nn.Cell):
    """x -> x + x, and whether `amp.all_finite` says that it is finite."""

    def construct(self, x):
        total = x + x
        return total, amp.all_finite((total,))


def check_overflow():
    """Check that an overflow in float16 is noticed, whether the device gives infinity or its largest number."""
    total, finite = _Overflow()(Tensor(np.full(16, 60000, np.float16)))
    value = float(total.asnumpy()[0])
    line = f"60000 + 60000 in float16 is {value:g} ({'INF/NaN' if np.isinf(value) else 'saturation'})"
    if bool(finite.asnumpy()):
        raise CheckFailed(f"{line} and was taken for finite: loss scaling would not notice")
    return f"{line} and was noticed", {"value": value}


class _Sum(nn.Cell):
    """The sum of a tensor over the processes."""

    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def join() -> tuple[Result, Ranks]:
    """Meet the other processes of an msrun, as training does; where that fails, this process goes on alone."""
    group = Ranks()

    def meet():
        nonlocal group
        if launched_processes() is None:
            raise CheckSkipped(f"one process; for the collectives: {_MSRUN}")
        group = start()
        return f"rank {group.rank} of {group.size}", None

    return run_check("processes meet", meet), group


def check_collectives(group: Ranks, elements: int = 14_092_264, rounds: int = 5):
    """Check all-reduce and broadcast over processes; the line names every rank that got something wrong.

    Args:
        group: the processes.
        elements: float32 numbers of the all-reduce that is timed; as many as repvgg_a1 has gradients.
        rounds: how often it is timed.
    """
    if group.size == 1:
        raise CheckSkipped("one process")
    values = [uniform(f"rank {rank}", (4096,)).astype(np.float32) for rank in range(group.size)]
    total = _Sum()(Tensor(values[group.rank])).asnumpy()
    sent = Parameter(Tensor(values[group.rank]), name="sent")
    group.broadcast([sent])
    wanted = np.sum(values, axis=0, dtype=np.float64)
    wrong = [difference(wanted, total)[1], difference(values[0], sent.asnumpy())[0]]
    by_rank = group.gather(np.array(wrong, np.float32))
    figures = {"all-reduce": by_rank[:, 0].tolist(), "broadcast": by_rank[:, 1].tolist()}
    complaints = []
    for kind, tolerance in (("all-reduce", 1e-5), ("broadcast", 0.0)):
        ranks = [str(rank) for rank, error in enumerate(figures[kind]) if not error <= tolerance]
        if ranks:
            complaints.append(f"{kind} is wrong on rank {', '.join(ranks)}")
    if complaints:
        raise CheckFailed("; ".join(complaints), figures)
    seconds = _all_reduce_seconds(elements, rounds)
    size = 4e-6 * elements
    figures["all_reduce_seconds"], figures["all_reduce_megabytes"] = seconds, size
    return f"{group.size} ranks agree; {size:.1f} MB all-reduced in {1e3 * seconds:.1f} ms", figures


def _all_reduce_seconds(elements, rounds):
    """Return the median time of an all-reduce, after one that does not count."""
    cell, gradients = _Sum(), Tensor(np.ones(elements, np.float32))
    # One element of the result is fetched: that waits for the whole of it, without the time of copying it.
    reduce = timed(lambda: cell(gradients)[:1].asnumpy())
    return statistics.median(take_turns({"all-reduce": reduce}, rounds, warmup=1)["all-reduce"])


def check_gradient_mean(group: Ranks, model: str = "repvgg_a1", rounds: int = 5):
    """Check every way to average the gradients of a network over the processes, and time them side by side.

    Args:
        group: the processes.
        model: the network whose gradients' shapes are taken.
        rounds: how often each way is timed.
    """
    if group.size == 1:
        raise CheckSkipped("one process")
    moving = ("moving_mean", "moving_variance")
    shapes = [shape for name, shape in parameter_shapes(find(model), "train").items() if not name.endswith(moving)]
    # Another part of one noise for every gradient, times the rank plus 1: the mean is known, and a mix-up shows.
    noise = uniform("gradients", (max(map(math.prod, shapes)) + len(shapes),))
    base = [noise[n : n + math.prod(shape)].reshape(shape) for n, shape in enumerate(shapes)]
    gradients = tuple(Tensor((array * (group.rank + 1)).astype(np.float32)) for array in base)
    weights = [Parameter(gradient, name=f"weight {n}") for n, gradient in enumerate(gradients)]
    factor = (group.size + 1) / 2
    cells, worst = {}, []
    try:
        for kind in choices.ALL_REDUCES:
            try:
                cells[kind] = gradient_mean(kind, weights, group.size)
            except UserError:  # MindSpore's own is announced to end
                continue
            found = zip(base, cells[kind](gradients), strict=True)
            worst.append(max(difference(factor * wanted, mean.asnumpy())[1] for wanted, mean in found))
        by_rank = dict(zip(cells, group.gather(np.array(worst, np.float32)).T.tolist(), strict=True))
        wrong = [
            f"{kind} on rank {n}" for kind, errors in by_rank.items() for n, x in enumerate(errors) if not x <= 1e-5
        ]
        if wrong:
            raise CheckFailed(f"the mean is wrong: {', '.join(wrong)}", by_rank)
        contestants = {
            kind: timed(lambda cell=cell: (cell(gradients), ms.runtime.synchronize())) for kind, cell in cells.items()
        }
        seconds = {kind: statistics.median(values) for kind, values in take_turns(contestants, rounds, 1).items()}
    finally:
        ms.reset_auto_parallel_context()
    times = ", ".join(f"{kind} {1e3 * value:.1f} ms" for kind, value in seconds.items())
    return f"gradients of {model}: {times}", {"differences": by_rank, "seconds": seconds}
