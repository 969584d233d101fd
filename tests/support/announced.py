"""Stand-ins for the convolution and BN that MindSpore announces: their signatures, and nothing of today's inside.

Only the signatures are announced. The parameters' names are those of `mindspore.mint.nn`, whose classes have the same
signatures: a package that gets along with these gets along with today's names as well.

    python -m pytest --announced-signatures tests/reparam

runs tests on them. Those of blocks, fusion, steps and conversion, which `reparam/test_layers.py` names, must pass.
"""

import importlib.util

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer


class Conv2d(nn.Cell):
    """PyTorch's arguments: no padding and a bias unless told, groups with an s."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        dtype=None,
    ):
        super().__init__()
        height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * 2
        shape = (out_channels, in_channels // groups, height, width)
        self.weight = Parameter(initializer("normal", shape, dtype or ms.float32))
        self.bias = Parameter(initializer("zeros", out_channels, dtype or ms.float32)) if bias else None
        self.options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def construct(self, x):
        return ops.conv2d(x, self.weight, self.bias, pad_mode="pad", **self.options)


class BatchNorm2d(nn.Cell):
    """PyTorch's arguments: momentum is the share of the batch."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, dtype=None):
        super().__init__()
        self.weight = Parameter(initializer("ones", num_features), requires_grad=affine)
        self.bias = Parameter(initializer("zeros", num_features), requires_grad=affine)
        self.running_mean = Parameter(initializer("zeros", num_features), requires_grad=False)
        self.running_var = Parameter(initializer("ones", num_features), requires_grad=False)
        self.num_batches_tracked = Parameter(initializer("zeros", 1, ms.int64), requires_grad=False)
        self.learn = ops.BatchNorm(is_training=True, epsilon=eps, momentum=momentum)
        self.infer = ops.BatchNorm(is_training=False, epsilon=eps)

    def construct(self, x):
        normalise = self.learn if self.training else self.infer
        return normalise(x, self.weight, self.bias, self.running_mean, self.running_var)[0]


class SyncBatchNorm(BatchNorm2d):
    """BatchNorm2d's arguments, and the processes."""

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        process_group=None,
        dtype=None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)


STAND_INS = (Conv2d, BatchNorm2d, SyncBatchNorm)


def install():
    """Put the stand-ins into `mindspore.nn`, for a whole test run; before anything imports the package's layers."""
    for stand_in in STAND_INS:
        setattr(nn, stand_in.__name__, stand_in)


def layers_on_stand_ins(monkeypatch):
    """A second `mindrepvgg.reparam.layers`, which finds the stand-ins installed."""
    spec = importlib.util.find_spec("mindrepvgg.reparam.layers")
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        for stand_in in STAND_INS:
            patch.setattr(nn, stand_in.__name__, stand_in)
        spec.loader.exec_module(module)
    return module
