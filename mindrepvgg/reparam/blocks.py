"""The RepVGG block, in both of its forms.

    train form                                   deploy form

    x --+-- conv 3x3 -- BN --+                   x -- conv 3x3 + bias -- [SE] -- ReLU -- y
        +-- conv 1x1 -- BN --+-- [SE] -- ReLU -- y
        +------------- BN ---+   (identity: only where channels and size stay the same)

Source: RepVGG, figure 4, arXiv:2101.03697; SE after the ReLU ('post') is RepVGGplus's.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.reparam import arithmetic
from mindrepvgg.reparam.foldable import FoldableBlock, add_padded, bn_terms, norm_of
from mindrepvgg.reparam.layers import NATIVE, batch_norm, conv2d, epsilon_of, geometry, grouped_of
from mindrepvgg.text import quoted


class ConvBN(nn.Cell):
    """A bias-free convolution and its BN: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels, out_channels, size, stride=1, groups=1, dilation=1, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, size, stride, dilation=dilation, groups=groups)
        self.bn = batch_norm(out_channels, norm)

    def construct(self, x):
        """Convolve (N, in, H, W) and normalise."""
        return self.bn(self.conv(x))


class SqueezeExcite(nn.Cell):
    """Scale each channel by a weight computed from the map's mean: x * sigmoid(up(relu(down(mean(x))))).

    (N, C, H, W) -> (N, C, H, W), for a map of any size and shape. Source: arXiv:1709.01507.
    """

    def __init__(self, channels, squeezed):
        super().__init__()
        self.down = conv2d(channels, squeezed, 1, bias=True)
        self.up = conv2d(squeezed, channels, 1, bias=True)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def construct(self, x):
        """Scale each channel of x (N, C, H, W) by a weight between 0 and 1."""
        weights = self.relu(self.down(x.mean((2, 3), keep_dims=True)))  # (N, squeezed, 1, 1)
        return x * self.sigmoid(self.up(weights))


class RepVGGBlock(FoldableBlock):
    """One block: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels: channels of the input and the output.
        stride: of both convolutions.
        groups: of both convolutions; it divides the channels.
        dilation: of the 3x3 convolution; the map keeps its size at stride 1.
        se: None, 'pre' (before the ReLU) or 'post' (after it).
        se_ratio: SE squeezes to out_channels // se_ratio.
        deploy: build the single 3x3 convolution instead of the branches.
        norm: the BN's class; any with BatchNorm2d's parameters, such as SyncBatchNorm.

    Raises:
        ValueError: `groups` does not divide the channels, or `se` is unknown.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        stride=1,
        groups=1,
        dilation=1,
        se=None,
        se_ratio=16,
        deploy=False,
        norm=nn.BatchNorm2d,
    ):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels (={in_channels}) and out_channels (={out_channels}) must be divisible by "
                f"groups (={groups})"
            )
        if se not in (None, "pre", "post"):
            raise ValueError(f"se (={quoted(se)}) must be None, 'pre' or 'post'")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.groups = groups
        self.dilation = dilation
        self.se_place = se
        self.se_ratio = se_ratio
        self.deploy = deploy
        self.has_identity = in_channels == out_channels and stride == 1
        if deploy:
            self.rbr_reparam = self._make_conv()
        else:
            self.rbr_dense = ConvBN(in_channels, out_channels, 3, stride, groups, dilation, norm)
            self.rbr_1x1 = ConvBN(in_channels, out_channels, 1, stride, groups, norm=norm)
            if self.has_identity:
                self.rbr_identity = batch_norm(out_channels, norm)
        if se == "pre":
            self.se = SqueezeExcite(out_channels, out_channels // se_ratio)
        elif se == "post":
            self.post_se = SqueezeExcite(out_channels, out_channels // se_ratio)
        self.relu = nn.ReLU()

    def construct(self, x):
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        y = self.convolve(x)
        if self.se_place == "pre":
            y = self.se(y)
        y = self.relu(y)
        if self.se_place == "post":
            y = self.post_se(y)
        return y

    def convolve(self, x):
        """The sum of the branches, or the one convolution they equal: what comes before SE and ReLU."""
        if self.deploy:
            return self.rbr_reparam(x)
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.has_identity:
            y = y + self.rbr_identity(x)
        return y

    def get_equivalent_kernel_bias(self):
        """The kernel and the bias of the one convolution this block equals in inference, as differentiable tensors.

        They can be used inside a loss at any time of training, in graph mode too; gradients reach kernels, gamma and
        beta. BN counts with its moving statistics. In deploy form they are the convolution's own parameters. For the
        exact fusion of a finished network, in float64, see `fused_kernel_bias`.

        Returns:
            Kernel (out, in // groups, 3, 3) and bias (out,).
        """
        if self.deploy:
            return self.rbr_reparam.weight, self.rbr_reparam.bias
        dtype = self.rbr_dense.conv.weight.dtype
        identity = None
        if self.has_identity:
            kernel = Tensor(arithmetic.identity_kernel(self.out_channels, self.groups), dtype)
            identity = (kernel, *bn_terms(self.rbr_identity))
        return arithmetic.fuse_branches(
            (self.rbr_dense.conv.weight, *bn_terms(self.rbr_dense.bn)),
            (self.rbr_1x1.conv.weight, *bn_terms(self.rbr_1x1.bn)),
            identity,
            add_padded,
        )

    def fused_kernel_bias(self, dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
        """The kernel and the bias of the one convolution this train-form block equals, computed in float64 throughout.

        Args:
            dtype: what they are rounded to at the end.

        Returns:
            NumPy arrays (out, in // groups, 3, 3) and (out,).

        Raises:
            ValueError: the block is in deploy form already.
        """
        self.check_train_form()
        branches = {"rbr_dense": norm_of(self.rbr_dense.bn), "rbr_1x1": norm_of(self.rbr_1x1.bn)}
        params = {f"{name}.conv.weight": getattr(self, name).conv.weight for name in branches}
        prefixes = {name: f"{name}.bn" for name in branches}
        if self.has_identity:
            branches["rbr_identity"] = norm_of(self.rbr_identity)
            prefixes["rbr_identity"] = "rbr_identity"
        for name, bn in branches.items():
            for leaf in arithmetic.BN_LEAVES:
                params[f"{prefixes[name]}.{leaf}"] = getattr(bn, leaf)
        arrays = {name: parameter.asnumpy() for name, parameter in params.items()}
        return arithmetic.fuse_block(arrays, {name: epsilon_of(bn) for name, bn in branches.items()}, dtype)

    def branches(self) -> dict[str, nn.Cell]:
        """The 3x3 and the 1x1 convolution with their BN, and the identity's BN where there is one."""
        names = ("rbr_dense", "rbr_1x1", "rbr_identity") if self.has_identity else ("rbr_dense", "rbr_1x1")
        return {name: getattr(self, name) for name in names}

    def fused_conv(self) -> nn.Conv2d:
        """The one convolution this train-form block equals, as a new cell; its parameters carry their final names.

        It computes in the 3x3 convolution's precision. The weight is trainable where a kernel or a gamma is, and the
        bias where a beta is.

        Raises:
            ValueError: the block is in deploy form already, or its 3x3 convolution is another than it was built with.
        """
        self.check_train_form()
        trained = self.rbr_dense.conv
        kernel, bias = self.fused_kernel_bias(trained.weight.asnumpy().dtype)
        with no_init_parameters():
            conv = self._make_conv(grouped_of(trained))
        found, expected = geometry(trained), geometry(conv)
        if found != expected:
            raise ValueError(f"rbr_dense.conv has {found}, the block was built with {expected}")
        # Half precision is a flag of a cell, and under automatic mixed precision O1 its class.
        conv.__class__ = type(trained)
        conv.add_flags_recursive(**trained.get_flags())
        parameters = [p for branch in self.branches().values() for p in branch.get_parameters()]
        leaves = {parameter.name.rpartition(".")[2] for parameter in parameters if parameter.requires_grad}
        prefix = trained.weight.name.removesuffix("rbr_dense.conv.weight")
        for leaf, value, trainable in (("weight", kernel, leaves - {"beta"}), ("bias", bias, leaves & {"beta"})):
            name = f"{prefix}{self.FUSED}.{leaf}"
            setattr(conv, leaf, Parameter(Tensor.from_numpy(value), name=name, requires_grad=bool(trainable)))
        return conv

    def _make_conv(self, grouped=NATIVE):
        """The one convolution of the deploy form, before it has values."""
        return conv2d(
            self.in_channels,
            self.out_channels,
            3,
            self.stride,
            dilation=self.dilation,
            groups=self.groups,
            bias=True,
            grouped=grouped,
        )
