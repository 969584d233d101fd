"""The one place that makes convolutions and BN, and that knows how MindSpore wants to be asked for them.

MindSpore announces other signatures for `nn.Conv2d`, `nn.BatchNorm2d` and `nn.SyncBatchNorm`: padding, bias and groups
get PyTorch's names and defaults, the choice of the initialisation goes, and BN's momentum turns round. Which ones the
installed MindSpore has is read from its classes. Where it has the new ones, cells of our own are made on top of them:
their parameters, arithmetic and switches are those of today, so that checkpoints and graphs stay the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeUniform, Uniform, initializer
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import UserError
from mindrepvgg.reparam.leaves import BN_LEAVES
from mindrepvgg.text import quoted

# The classes a network may have BN of; all of them have BatchNorm2d's parameters.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)

# How a convolution in groups is computed: by MindSpore's own, or group by group.
NATIVE, SPLIT = "native", "split"
GROUPED = (NATIVE, SPLIT)


def arguments_of(make: Callable) -> Mapping[str, inspect.Parameter]:
    """The arguments that a function, or a class of cells, is called with, by name.

    Of a class, its `__init__` is asked. Python 3.10 and 3.11.2 let `__new__` speak for a class that inherits both, and
    that of every Cell takes all arguments and names none.
    """
    called = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]  # of this class, not a subclass
    return inspect.signature(called).parameters


_CONV_IS_NEW = "has_bias" not in arguments_of(nn.Conv2d)


def kernel_init() -> HeUniform:
    """The initialisation of convolution and linear weights: U(-b, b) with b = 1 / sqrt(fan_in).

    The authors' code keeps PyTorch's default. MindSpore's own default changed over its versions, so it is spelled out.
    Source: torch.nn.Conv2d, kaiming_uniform with a = sqrt(5).
    """
    return HeUniform(negative_slope=math.sqrt(5))


def bias_init(fan_in: int) -> Uniform:
    """U(-b, b) with b = 1 / sqrt(fan_in), PyTorch's default for biases."""
    return Uniform(1 / math.sqrt(fan_in))


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[int, int, int, int] | None = None,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = False,
    grouped: str = NATIVE,
) -> nn.Conv2d:
    """Make a convolution: (N, in_channels, H, W) -> (N, out_channels, H', W').

    Args:
        in_channels, out_channels: channels of the input and the output; `groups` divides both.
        kernel_size, stride, dilation: a number, or (height, width).
        padding: zeros on each side, a number, (height, width), or (top, bottom, left, right); a negative one cuts that
            much of the input off; None: what keeps H and W at stride 1, for odd kernels.
        groups: of input and output channels.
        bias: add one to each output channel.
        grouped: 'native': groups by MindSpore's own operator; 'split': a convolution for each group, for a device that
            has no other. The parameters are the same.

    Returns:
        The cell. Its `conv2d(x, kernel)` convolves with another kernel of the same shape, without the bias.

    Raises:
        UserError: `grouped` is unknown.
    """
    kernel, spread = pair(kernel_size), pair(dilation)
    around = sides(padding, kernel, spread)
    place = (kernel, pair(stride), _zeros_of(around), spread, groups, bias)
    if _CONV_IS_NEW:
        made: nn.Conv2d = Conv2d(in_channels, out_channels, *place)
    else:
        made = nn.Conv2d(in_channels, out_channels, **_conv_arguments(in_channels, *place))
    if min(around) < 0:
        made.padding = around
        del made.conv2d
        made.conv2d = _operator(made, groups)
    return set_grouped(made, grouped)


def fill_conv(
    conv: nn.Conv2d,
    trained: nn.Conv2d,
    kernel: np.ndarray,
    bias: np.ndarray,
    parameters: Iterable[Parameter],
    prefix: str,
) -> nn.Conv2d:
    """Give a convolution the values that stand for trained cells.

    Args:
        conv: has a bias; its parameters need no values.
        trained: one of the convolutions it stands for; it computes in its precision.
        kernel, bias: (out, in // groups, kh, kw) and (out,); arrays that own their data become the parameters' memory.
        parameters: of the cells it stands for. The weight is trainable where a kernel or a gamma is, and the bias where
            a beta or a bias is.
        prefix: what the names of its parameters begin with.

    Returns:
        `conv`.
    """
    # Half precision is a flag of a cell, and under automatic mixed precision O1 its class.
    conv.__class__ = type(trained)
    conv.add_flags_recursive(**trained.get_flags())
    leaves = {parameter.name.rpartition(".")[2] for parameter in parameters if parameter.requires_grad}
    shifts = {"beta", "bias"}
    for leaf, value, trainable in (("weight", kernel, leaves - shifts), ("bias", bias, leaves & shifts)):
        tensor = Tensor.from_numpy(np.require(value, requirements=("C", "W", "O")))
        with no_init_parameters():
            empty = initializer("zeros", tensor.shape, tensor.dtype)
            parameter = Parameter(empty, name=f"{prefix}{leaf}", requires_grad=bool(trainable))
        setattr(conv, leaf, fill_parameter(parameter, tensor))
    return conv


def fill_parameter(parameter: Parameter, tensor: Tensor) -> Parameter:
    """Give a parameter, which may have been without values, those of a tensor; its memory becomes the parameter's.

    Returns:
        `parameter`.
    """
    parameter.set_data(tensor)
    # What it was to be initialised with: MindSpore's clone, copy and pickle would make their parameters of that.
    parameter.init_mode = None
    return parameter


def prefix_of(parameter: Parameter, ending: str, path: str = "") -> str:
    """What stands before the ending of a parameter's name: what the names of a cell in its place begin with.

    Args:
        parameter: of a cell that is replaced.
        ending: the parameter's path in that cell.
        path: the cell's place in the network, which counts where somebody gave the parameter a name of another kind.
    """
    if f".{parameter.name}".endswith(f".{ending}"):
        return parameter.name.removesuffix(ending)
    return f"{path}." if path else ""


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of one number for both, or of the two."""
    return value if isinstance(value, tuple) else (value, value)


def sides(padding, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """The padding of a convolution as (top, bottom, left, right); arguments as of `conv2d`."""
    if padding is None:
        padding = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
    if isinstance(padding, tuple) and len(padding) == 4:
        return padding
    height, width = pair(padding)
    return height, height, width, width


def _zeros_of(padding):
    """What is padded of a padding that may be negative."""
    top, bottom, left, right = padding
    return max(0, top), max(0, bottom), max(0, left), max(0, right)


def _as_today(padding):
    """(top, bottom, left, right) as today's convolution keeps it: a number where all are the same."""
    return padding[0] if len(set(padding)) == 1 else padding


def _conv_arguments(in_channels, kernel_size, stride, padding, dilation, groups, bias):
    """The arguments of the installed `nn.Conv2d`, by its names."""
    common = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    if _CONV_IS_NEW:
        return {**common, "padding": padding[::2], "groups": groups, "bias": bias}
    return {
        **common,
        "pad_mode": "pad",
        "padding": _as_today(padding),
        "group": groups,
        "has_bias": bias,
        "weight_init": kernel_init(),
        "bias_init": bias_init(math.prod(kernel_size) * in_channels // groups) if bias else None,
    }


class Conv2d(nn.Conv2d):
    """MindSpore's convolution of the announced signature, with today's attributes, operators and initialisation."""

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias):
        super().__init__(
            in_channels,
            out_channels,
            **_conv_arguments(in_channels, kernel_size, stride, padding, dilation, groups, bias),
        )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.has_bias, self.pad_mode = bias, "pad"
        self.stride, self.padding, self.dilation = stride, _as_today(padding), dilation
        shape = (out_channels, in_channels // groups, *kernel_size)
        self.weight = Parameter(initializer(kernel_init(), shape))
        if bias:
            self.bias = Parameter(initializer(bias_init(math.prod(shape[1:])), out_channels))
        self.bias_add = ops.BiasAdd()  # an operator of the cell: in half precision its parameter is cast
        self.conv2d = _operator(self, groups)

    def construct(self, x):
        """Convolve (N, in_channels, H, W), and add the bias."""
        y = self.conv2d(x, self.weight)
        if self.has_bias:
            y = self.bias_add(y, self.bias)
        return y


def _operator(conv, groups, parts=1):
    """MindSpore's operator for one of `parts` equal parts of a convolution of `groups` groups."""
    padding = conv.padding if isinstance(conv.padding, tuple) else (conv.padding,) * 4
    made = ops.Conv2D(
        conv.out_channels // parts,
        conv.kernel_size,
        pad_mode=conv.pad_mode,
        pad=_as_today(_zeros_of(padding)),
        stride=conv.stride,
        dilation=conv.dilation,
        group=groups // parts,
    )
    return _CutConvolution(made, padding) if min(padding) < 0 else made


class _CutConvolution(nn.Cell):
    """A convolution after as much of the input's border was cut off as `padding` is negative."""

    def __init__(self, operator, padding):
        super().__init__()
        self.operator, self.padding = operator, padding
        self.cut = _zeros_of(tuple(-side for side in padding))

    def construct(self, x, kernel):
        top, bottom, left, right = self.cut
        return self.operator(x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right], kernel)


class _SplitConvolution(nn.Cell):
    """A plain convolution for each group: x (N, in, H, W), kernel (out, in // groups, kh, kw) -> (N, out, H', W')."""

    def __init__(self, conv, groups):
        super().__init__()
        self.one_group = _operator(conv, groups, groups)
        self.inputs, self.outputs = conv.in_channels // groups, conv.out_channels // groups

    def construct(self, x, kernel):
        parts = zip(ops.split(x, self.inputs, 1), ops.split(kernel, self.outputs, 0))  # noqa: B905 - a compiled zip
        return ops.concat([self.one_group(a, b) for a, b in parts], 1)


def grouped_of(conv: nn.Conv2d) -> str:
    """How a convolution computes its groups, one of GROUPED."""
    return SPLIT if hasattr(getattr(conv, "conv2d", None), "one_group") else NATIVE


def set_grouped(net: nn.Cell, grouped: str) -> nn.Cell:
    """Choose how the convolutions of a network that have groups compute, from its next call on.

    Parameters, their names and the result stay the same; only rounding may differ.

    Args:
        net: any cell.
        grouped: as for `conv2d`.

    Returns:
        `net`.

    Raises:
        UserError: `grouped` is unknown.
    """
    if grouped not in GROUPED:
        raise UserError(f"grouped (={quoted(grouped)}) must be native or split")
    for _, cell in list(net.cells_and_names()):
        cell.compile_cache.clear()
        if isinstance(cell, nn.Conv2d) and grouped_of(cell) != grouped:
            groups = cell.in_channels // cell.weight.shape[1]
            if groups > 1:
                del cell.conv2d
                cell.conv2d = _SplitConvolution(cell, groups) if grouped == SPLIT else _operator(cell, groups)
                cell.add_flags_recursive(**cell.get_flags())  # half precision reaches the new cell
    return net


def batch_norm(channels: int, norm=nn.BatchNorm2d, eps: float = 1e-5, momentum: float = 0.1) -> nn.Cell:
    """Make a BN over (N, channels, H, W), with the parameters `gamma`, `beta`, `moving_mean` and `moving_variance`.

    Args:
        channels: of its input.
        norm: `nn.BatchNorm2d`, `nn.SyncBatchNorm`, or a function that makes a BN of a number of channels; eps and
            momentum are then that function's own affair.
        eps: added to the variance.
        momentum: the share that a batch has in the moving statistics, as PyTorch means it.

    Returns:
        The cell. Its `momentum` is that share, whichever way round its class was asked for it.

    Raises:
        ValueError: the BN has other parameters, or the installed MindSpore has no such BN.
    """
    if norm not in NORMS:
        bn = norm(channels)
    elif "gamma_init" in arguments_of(norm):
        bn = norm(channels, eps=eps, momentum=1 - momentum)
    elif norm is NORMS[0]:
        bn = BatchNorm2d(channels, eps, momentum)
    else:
        raise ValueError(f"MindSpore {ms.__version__}'s {norm.__name__} is not one that this package knows")
    missing = [leaf for leaf in BN_LEAVES if not hasattr(bn, leaf)]
    if missing:
        raise ValueError(f"the BN that norm (={norm!r}) makes has no {', '.join(missing)}")
    return bn


class BatchNorm2d(nn.BatchNorm2d):
    """MindSpore's BN of the announced signature, with the parameters, operators and switches that it has today."""

    def __init__(self, channels, eps, momentum):
        super().__init__(channels, eps=eps, momentum=momentum)
        for name in list(self._params):  # the same four and a count of batches, under names that are not announced
            delattr(self, name)
        self.moving_mean = Parameter(initializer("zeros", channels), requires_grad=False)
        self.moving_variance = Parameter(initializer("ones", channels), requires_grad=False)
        self.gamma = Parameter(initializer("ones", channels))
        self.beta = Parameter(initializer("zeros", channels))
        self.eps, self.momentum = eps, momentum
        self.use_batch_statistics: bool | None = None
        self.bn_train = ops.BatchNorm(is_training=True, epsilon=eps, momentum=momentum)
        self.bn_infer = ops.BatchNorm(is_training=False, epsilon=eps)

    def construct(self, x):
        """Normalise (N, channels, H, W): by the batch in training, otherwise by the moving statistics."""
        terms = (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        by_batch = self.training if self.use_batch_statistics is None else self.use_batch_statistics
        return self.bn_train(x, *terms)[0] if by_batch else self.bn_infer(x, *terms)[0]


def epsilon_of(bn: nn.Cell) -> float:
    """What a BN adds to the variance: its operator's; MindSpore's BN does not look at its attribute `eps` again."""
    return getattr(getattr(bn, "bn_infer", None), "epsilon", bn.eps)


def geometry(conv: nn.Conv2d) -> dict:
    """How a convolution goes over its input, by its operator: padding, stride and dilation."""
    operator = getattr(conv.conv2d, "one_group", conv.conv2d)  # that of one group, where groups are split
    attributes = dict(getattr(operator, "operator", operator).attrs)
    if isinstance(operator, _CutConvolution):
        attributes["pad"] = operator.padding
    return {key: attributes[key] for key in ("pad_mode", "pad", "stride", "dilation")}
