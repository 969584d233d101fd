"""Blocks that can be trained in deploy form: one convolution with BN, and the same as an int8 engine computes it.

    ConvBNBlock        x -- conv 3x3 -- BN -- [SE] -- ReLU -- y
    FakeQuantBlock     x -- Q -- conv 3x3 with Q(folded kernel) + Q(folded bias) -- [SE] -- ReLU -- y

Q rounds to a grid of integers and returns to float32 at once, so that every number is one an int8 engine has.
Why it is our own: MindSpore 2.10 documents no operator for fake quantisation. Its toolkit Golden Stick (mindspore-gs
1.4.1) pins MindSpore 2.7.1, which is older than this package supports. Its post-training quantisation is for language
models, and its fake-quantisation kernels run on GPUs only. So Q is built of round, minimum, maximum and the like.
Sources: arXiv:1712.05877 (integer inference), arXiv:1806.08342 (which grids), arXiv:1308.3432 (straight through).
"""

from __future__ import annotations

import copy

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindrepvgg.reparam.blocks import PlainBlock
from mindrepvgg.reparam.layers import grouped_of, prefix_of, set_grouped

BIASES = (-(2**31), 2**31 - 1)

# The share of a batch's extremes in the moving ones. Source: torch.ao.quantization.MovingAverageMinMaxObserver.
_RATE = 0.01

# A range of nothing but zeros still needs a scale to divide by.
_LEAST_RANGE = 1e-12


def largest_activation(bits) -> int:
    """The largest integer of an activation; the smallest is 0."""
    return 2**bits - 1


def largest_weight(bits) -> int:
    """The largest integer of a weight. The smallest is its negative, so -128 is left out."""
    return 2 ** (bits - 1) - 1


class FakeQuantize(nn.Cell):
    """Round to a grid: (clip(round(x / scale) + zero_point, lowest, highest) - zero_point) * scale, half to even.

    The input is x of any shape, and scale and zero_point, float32, which broadcast to it; the output has x's shape. The
    gradient passes straight through to x where nothing is clipped and is 0 elsewhere; none goes to scale and
    zero_point.

    Args:
        lowest, highest: the smallest and the largest integer of the grid.
    """

    def __init__(self, lowest, highest):
        super().__init__()
        self.lowest, self.highest = float(lowest), float(highest)

    def construct(self, x, scale, zero_point):
        """Round x to the integers' grid, in float."""
        integers = ops.round(x / scale) + zero_point
        return (ops.maximum(ops.minimum(integers, self.highest), self.lowest) - zero_point) * scale

    def bprop(self, x, scale, zero_point, _, gradient):
        """The gradient of x, and zeros."""
        integers = ops.round(x / scale) + zero_point
        inside = ops.logical_and(integers >= self.lowest, integers <= self.highest)
        return gradient * inside.astype(gradient.dtype), ops.zeros_like(scale), ops.zeros_like(zero_point)


class ActivationQuantizer(nn.Cell):
    """Put activations on a uint8 grid, one for the whole tensor; any shape -> the same shape.

    The grid spans a moving average of the batches' smallest and largest values, and zero, which every grid must hold
    exactly. Training moves it; inference leaves it as it is.

    Args:
        bits: of an integer; fewer than 8 leave a part of uint8 unused.
    """

    def __init__(self, bits=8):
        super().__init__()
        self.largest = float(largest_activation(bits))
        # Named as BN's moving statistics: ranks average them, and an update that overflows takes them back.
        self.moving_minimum = Parameter(Tensor(np.zeros(1, np.float32)), "moving_minimum", requires_grad=False)
        self.moving_maximum = Parameter(Tensor(np.zeros(1, np.float32)), "moving_maximum", requires_grad=False)
        self.quantize = FakeQuantize(0, self.largest)

    def construct(self, x):
        """Observe the range of x, then round x."""
        return self.quantize(x, *self.observe(x))

    def observe(self, x):
        """(scale, zero point), each (1,), for `x`, which moves them in training."""
        minimum, maximum = self.moving_minimum, self.moving_maximum
        if self.training:
            batch = ops.stop_gradient(x)
            minimum = minimum + _RATE * (ops.amin(batch) - minimum)
            maximum = maximum + _RATE * (ops.amax(batch) - maximum)
            ops.assign(self.moving_minimum, minimum)
            ops.assign(self.moving_maximum, maximum)
        return activation_grid(minimum, maximum, self.largest)

    def set_range(self, minimum, maximum):
        """Take over the extremes of activations."""
        self.moving_minimum.set_data(Tensor(np.full(1, minimum, np.float32)))
        self.moving_maximum.set_data(Tensor(np.full(1, maximum, np.float32)))

    def grid(self) -> dict:
        """Scale and zero point as they are now, in plain types."""
        scale, zero_point = activation_grid(self.moving_minimum, self.moving_maximum, self.largest)
        return {"scale": float(scale.asnumpy()[0]), "zero_point": int(zero_point.asnumpy()[0]), "dtype": "uint8"}


def activation_grid(minimum, maximum, largest):
    """(scale, zero point) of the integers from 0 to `largest`, which stand for min(minimum, 0) to max(maximum, 0).

    Tensors, without gradient.
    """
    minimum, maximum = ops.minimum(minimum, 0.0), ops.maximum(maximum, 0.0)
    scale = ops.maximum(maximum - minimum, _LEAST_RANGE) / largest
    return ops.stop_gradient(scale), ops.stop_gradient(ops.round(-minimum / scale))


def weight_scale(kernel, bias, input_scale, per_channel=True, bits=8):
    """The scale of a kernel's grid: max |w| / 127, with fewer bits / 63 or / 31, without gradient.

    It is larger in a channel of next to no weights, where the bias, which is int32 in units of input_scale * scale,
    would not fit its type otherwise.

    Args:
        kernel: (out, ...).
        bias: (out,).
        input_scale: (1,), of the activations.
        per_channel: a scale for each output channel, or one for all.
        bits: of a weight.

    Returns:
        (out, 1, ...) or (1, 1, ...).
    """
    largest = ops.amax(ops.abs(kernel), tuple(range(1, kernel.ndim)), keepdims=True) / float(largest_weight(bits))
    # A bit below 2 ** 31, as float32 rounds to that.
    least = ops.abs(bias).reshape(largest.shape) / (input_scale.reshape(()) * 2.0**30)
    scale = ops.maximum(ops.maximum(largest, least), _LEAST_RANGE)
    if not per_channel:
        scale = ops.amax(scale, 0, keepdims=True)
    return ops.stop_gradient(scale)


class _WeightQuantizer(nn.Cell):
    """Kernel (out, ...) and bias (out,) on the grids of int8 and int32, for inputs of `input_scale`."""

    def __init__(self, per_channel, bits):
        super().__init__()
        self.per_channel, self.bits = per_channel, bits
        self.quantize = FakeQuantize(-largest_weight(bits), largest_weight(bits))
        self.quantize_bias = FakeQuantize(*BIASES)
        self.zero = Tensor(np.zeros(1, np.float32))

    def construct(self, kernel, bias, input_scale):
        scale = weight_scale(kernel, bias, input_scale, self.per_channel, self.bits)
        kernel = self.quantize(kernel, scale, self.zero)
        return kernel, self.quantize_bias(bias, scale.reshape(-1) * input_scale, self.zero)

    def grid(self, kernel, bias, input_scale) -> dict:
        """The kernel's scales in plain types; arrays and a number."""
        kernel, bias, input_scale = (Tensor(np.asarray(value, np.float32)) for value in (kernel, bias, input_scale))
        scale = weight_scale(kernel, bias, input_scale, self.per_channel, self.bits).asnumpy().reshape(-1)
        return {"scale": [float(one) for one in scale], "axis": 0 if self.per_channel else None, "dtype": "int8"}


class ConvBNBlock(PlainBlock):
    """A deploy-form block with BN after its convolution, which computes the same in inference.

    gamma = sqrt(variance + eps) and beta = mean undo the normalisation, whatever the two are; the moving mean is `mean`
    without the bias. The parameters are called as those of a train-form block's 3x3 branch.

    Args:
        block: in deploy form; its weights are copied.
        mean, variance: (out,) of the convolution's output, bias included.
    """

    def __init__(self, block, mean=0.0, variance=1.0):
        super().__init__(
            block.in_channels,
            block.out_channels,
            block.kernel_size,
            block.stride,
            block.padding,
            block.dilation,
            block.groups,
            lambda: copy.deepcopy(block.activation),
            block.se_place,
            block.se_ratio,
        )
        self.plain, self.FUSED = type(block), block.FUSED
        set_grouped(self, grouped_of(block.fused))
        bn, size = self.rbr_dense.bn, (block.out_channels,)
        mean, variance = (np.broadcast_to(value, size).astype(np.float32) for value in (mean, variance))
        values = {
            "rbr_dense.conv.weight": block.fused.weight.asnumpy(),
            "rbr_dense.bn.moving_mean": mean.astype(np.float64) - block.fused.bias.asnumpy(),
            "rbr_dense.bn.moving_variance": variance,
            "rbr_dense.bn.gamma": np.sqrt(variance.astype(np.float64) + bn.eps),
            "rbr_dense.bn.beta": mean,
        }
        prefix = prefix_of(block.fused.weight, f"{block.FUSED}.weight")
        values.update((p.name.removeprefix(prefix), p.asnumpy()) for p in block.get_parameters())
        for parameter in self.get_parameters():
            parameter.set_data(Tensor(values[parameter.name].astype(np.float32)))
        _rename(self, prefix)
        self.set_train(block.training)

    def take(self, conv):
        """See `FoldableBlock.take`; without its BN the block is a plain one."""
        super().take(conv)
        self.__class__ = self.plain

    def switch_to_deploy(self):
        """Refused: `qat.fold_bn` makes the deploy form, as a new network."""
        raise ValueError("a block with inserted BN is folded by mindrepvgg.models.qat.fold_bn, not in place")


class FakeQuantBlock(ConvBNBlock):
    """A block that computes with int8's numbers, for training: input uint8, folded kernel int8, bias int32.

    BN's moving statistics are folded and stay as they are. So what is trained is what will be run, with one
    convolution; to fold a batch's statistics would take a second convolution to find them. gamma and beta are trained
    and take over what the statistics would have followed.

    Args:
        block: a ConvBNBlock, whose weights are copied.
        per_channel: a kernel scale for each output channel, or one for all.
        quantizes_output: put the output on a grid too; for the last block, which no other block follows.
        bits: of activations and weights.
    """

    def __init__(self, block, per_channel=True, quantizes_output=False, bits=8):
        super().__init__(block.deployed())
        prefix = prefix_of(self.rbr_dense.conv.weight, "rbr_dense.conv.weight")
        for parameter, value in zip(self.rbr_dense.get_parameters(), block.rbr_dense.get_parameters(), strict=True):
            parameter.set_data(Tensor(value.asnumpy()))
        # MindSpore's own switch: also what statistics taken anew (precise BN) go by.
        self.rbr_dense.bn.use_batch_statistics = False
        self.input_quantizer = ActivationQuantizer(bits)
        self.weight_quantizer = _WeightQuantizer(per_channel, bits)
        self.quantizes_output = quantizes_output
        if quantizes_output:
            self.output_quantizer = ActivationQuantizer(bits)
        for quantizer in self.activation_quantizers():
            _rename(quantizer, prefix)

    def construct(self, x):
        """(N, in, H, W) -> (N, out, H / stride, W / stride), rounded where the output is quantised."""
        y = super().construct(x)
        if self.quantizes_output:
            y = self.output_quantizer(y)
        return y

    def convolve(self, x):
        """The convolution of quantised numbers."""
        scale, zero_point = self.input_quantizer.observe(x)
        x = self.input_quantizer.quantize(x, scale, zero_point)
        kernel, bias = self.weight_quantizer(*self.get_equivalent_kernel_bias(), scale)
        return self.rbr_dense.conv.conv2d(x, kernel) + bias.reshape((1, -1, 1, 1))

    def branches(self):
        """See `FoldableBlock.branches`."""
        quantizers = ("input_quantizer", "weight_quantizer", *(["output_quantizer"] if self.quantizes_output else []))
        return super().branches() | {name: getattr(self, name) for name in quantizers}

    def activation_quantizers(self) -> list[ActivationQuantizer]:
        """That of the input, and that of the output where there is one."""
        return [self.input_quantizer, *([self.output_quantizer] if self.quantizes_output else [])]

    def grids(self) -> dict:
        """Scales and zero points of input, folded kernel and, in the last block, output, in plain types."""
        grid = self.input_quantizer.grid()
        kernel, bias = self.fused_kernel_bias(np.float32)
        weight = self.weight_quantizer.grid(kernel, bias, grid["scale"])
        output = {"output": self.output_quantizer.grid()} if self.quantizes_output else {}
        return {"input": grid, "weight": weight, **output}


class FakeQuantDense(nn.Dense):
    """A linear layer (N, features) -> (N, classes) that computes with int8's numbers; see `FakeQuantBlock`.

    Args:
        dense: the layer whose weights are copied.
        per_channel: a scale for each output's weights, or one for all.
        bits: of activations and weights.
    """

    def __init__(self, dense, per_channel=True, bits=8):
        super().__init__(dense.in_channels, dense.out_channels)
        for leaf in ("weight", "bias"):
            getattr(self, leaf).set_data(Tensor(getattr(dense, leaf).asnumpy()))
        self.input_quantizer = ActivationQuantizer(bits)
        self.weight_quantizer = _WeightQuantizer(per_channel, bits)
        _rename(self, dense.weight.name.removesuffix("weight"))

    def construct(self, x):
        """Logits (N, classes) of features (N, features), both rounded as int8 would be."""
        scale, zero_point = self.input_quantizer.observe(x)
        x = self.input_quantizer.quantize(x, scale, zero_point)
        kernel, bias = self.weight_quantizer(self.weight, self.bias, scale)
        return self.matmul(x, kernel) + bias

    def activation_quantizers(self) -> list[ActivationQuantizer]:
        """That of the input."""
        return [self.input_quantizer]

    def grids(self) -> dict:
        """Scales and zero points of input and weight."""
        grid = self.input_quantizer.grid()
        weight = self.weight_quantizer.grid(self.weight.asnumpy(), self.bias.asnumpy(), grid["scale"])
        return {"input": grid, "weight": weight}

    def plain(self) -> nn.Dense:
        """The float layer with these weights, as a new cell under the same names."""
        dense = nn.Dense(self.in_channels, self.out_channels)
        for leaf in ("weight", "bias"):
            own = getattr(self, leaf)
            setattr(dense, leaf, Parameter(Tensor(own.asnumpy()), name=own.name))
        return dense


def _rename(cell, prefix):
    """Put the cell's path in front of its parameters' names, as a parent does for cells it is built with."""
    for parameter in cell.get_parameters():
        parameter.name = prefix + parameter.name
