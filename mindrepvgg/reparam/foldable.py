"""Blocks whose branches fold into one convolution, whatever the branches are."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.algebra import LinearMap
from mindrepvgg.reparam.container import Container
from mindrepvgg.reparam.copying import copy_fused, forget_graphs, fused_block
from mindrepvgg.reparam.finding import is_block
from mindrepvgg.reparam.layers import NATIVE, batch_norm, conv2d, fill_conv, grouped_of, pair, prefix_of, sides
from mindrepvgg.reparam.maps import (
    Exact,
    chain_map,
    chain_output,
    check_convolution,
    differentiable,
    fold_norm,
    is_convolution,
    is_norm,
    map_of,
    norm_of,
)
from mindrepvgg.reparam.parts import SqueezeExcite
from mindrepvgg.reparam.probe import needs_probe
from mindrepvgg.text import quoted

# Output channels are fused a few at a time, as many as have a kernel of this size: in float64, a large kernel's copies
# would fill caches and memory.
_BYTES_AT_ONCE = 5 << 19


class FoldableBlock(Container):
    """A block of branches that equal one convolution in inference: branches -- + -- [BN] -- [SE] -- activation.

    (N, in_channels, H, W) -> (N, out_channels, H', W'). A subclass makes its branches and says what they are, see
    `make_branches`; the forward pass, the fold, the proof and the deploy form follow from that.

    Args:
        in_channels, out_channels: channels of the input and the output.
        kernel_size, stride, padding, dilation, groups: of the convolution that the branches equal, see `layers.conv2d`.
        activation: makes the cell at the end; None: no activation.
        se: None, 'pre' (before the activation) or 'post' (after it).
        se_ratio: SE squeezes to out_channels // se_ratio.
        deploy: build the single convolution instead of the branches.
        norm, eps, momentum: the BN's class and numbers, see `layers.batch_norm`.
        own: attributes of the subclass, which `make_branches` needs.
        fused: what the convolution of the deploy form is called; None: as the class says (FUSED).
        identity: False: the input is no branch even where channels and size stay.

    Raises:
        ValueError: `groups` does not divide the channels, or `se` is unknown.
    """

    FUSED = "rbr_reparam"

    # Whether a few output channels can be folded at a time: not where a branch's convolution follows another one.
    BY_ROWS = True

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=1,
        padding=None,
        dilation=1,
        groups=1,
        activation=nn.ReLU,
        se=None,
        se_ratio=16,
        deploy=False,
        norm=nn.BatchNorm2d,
        eps=1e-5,
        momentum=0.1,
        own=None,
        fused=None,
        identity=True,
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
        self.kernel_size = pair(kernel_size)
        self.stride = stride
        self.dilation = dilation
        self.padding = sides(padding, self.kernel_size, pair(dilation))
        self.groups = groups
        self.se_place = se
        self.se_ratio = se_ratio
        self.deploy = deploy
        self.with_identity = identity
        if fused is not None:
            self.FUSED = fused
        for name, value in (own or {}).items():
            setattr(self, name, value)
        self.chains: tuple[tuple[str, ...], ...] = ()
        self.after_sum: tuple[str, ...] = ()
        if deploy:
            setattr(self, self.FUSED, self.make_conv())
        else:
            self.chains = self.make_branches(functools.partial(batch_norm, norm=norm, eps=eps, momentum=momentum))
        if se == "pre":
            self.se = SqueezeExcite(out_channels, out_channels // se_ratio)
        elif se == "post":
            self.post_se = SqueezeExcite(out_channels, out_channels // se_ratio)
        self.activation = nn.Identity() if activation is None else activation()

    def make_branches(self, norm) -> tuple[tuple[str, ...], ...]:
        """Make the cells of the train form, as attributes that are called as in the code of the block's authors.

        Args:
            norm: makes a BN of a number of channels.

        Returns:
            The branches; of each, the attributes of the cells that the input goes through: convolutions, BN, other
            blocks, and cells with the method `linear_map`. A branch without cells is the bare input. `after_sum` may be
            set to the attributes of BNs that follow the sum.
        """
        raise NotImplementedError

    def centred(self, size, dilation=1) -> tuple[int, int, int, int]:
        """The padding of a smaller convolution whose kernel lies in the centre of the block's.

        Args:
            size, dilation: of the smaller one's kernel, a number or (height, width).

        Returns:
            (top, bottom, left, right); negative where the smaller kernel does not reach the input's border.

        Raises:
            ValueError: the kernel does not fit into the block's.
        """
        steps, small, spread = pair(self.dilation), pair(size), pair(dilation)
        room = [steps[i] * (self.kernel_size[i] - 1) - spread[i] * (small[i] - 1) for i in (0, 1)]
        if min(room) < 0:
            raise ValueError(
                f"a kernel of {small} with dilation {spread} does not fit into the block's of {self.kernel_size} with "
                f"dilation {steps}"
            )
        before = [room[i] // (2 * steps[i]) * steps[i] for i in (0, 1)]  # on the grid of the block's own dilation
        top, bottom, left, right = self.padding
        return top - before[0], bottom - room[0] + before[0], left - before[1], right - room[1] + before[1]

    def keeps_shape(self) -> bool:
        """Whether channels and size stay and the input may be a branch."""
        top, bottom, left, right = self.padding
        reach = [spread * (size - 1) for spread, size in zip(pair(self.dilation), self.kernel_size, strict=True)]
        same_size = pair(self.stride) == (1, 1) and [top + bottom, left + right] == reach
        return self.with_identity and same_size and self.in_channels == self.out_channels

    def construct(self, x):
        """(N, in, H, W) -> (N, out, H', W')."""
        y = self.convolve(x)
        if self.se_place == "pre":
            y = self.se(y)
        y = self.activation(y)
        if self.se_place == "post":
            y = self.post_se(y)
        return y

    def convolve(self, x):
        """The sum of the branches, or the one convolution they equal: what comes before SE and the activation."""
        if self.deploy:
            return getattr(self, self.FUSED)(x)
        total = chain_output(self, self.chains[0], x)
        for chain in self.chains[1:]:
            total = total + chain_output(self, chain, x)
        return chain_output(self, self.after_sum, total)

    def linear_map(self, read):
        """The one convolution that this block equals up to SE and activation; see `maps.map_of`."""
        if self.deploy:
            return map_of(getattr(self, self.FUSED), read)
        total = chain_map(self, self.chains[0], read)
        for chain in self.chains[1:]:
            total = algebra.add(total, chain_map(self, chain, read), in_place=True)
        for name in self.after_sum:
            total = fold_norm(total, getattr(self, name), read)
        return total

    def get_equivalent_kernel_bias(self):
        """The kernel and the bias of the one convolution this block equals in inference, as differentiable tensors.

        They can be used inside a loss at any time of training, in graph mode too; gradients reach kernels, gamma and
        beta. BN counts with its moving statistics. In deploy form they are the convolution's own parameters. For the
        exact fusion of a finished network, in float64, see `fused_kernel_bias`.

        Returns:
            Kernel (out, in // groups, kh, kw) and bias (out,).
        """
        linear_map = self.linear_map(differentiable)
        return linear_map[0], linear_map[1]

    def fused_kernel_bias(self, dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
        """The kernel and the bias of the one convolution this train-form block equals, computed in float64 throughout.

        Args:
            dtype: what they are rounded to at the end.

        Returns:
            NumPy arrays (out, in // groups, kh, kw) and (out,).

        Raises:
            ValueError: the block is in deploy form already, or its branches are no convolution of the block's geometry.
        """
        kernel = np.empty(self.kernel_shape, dtype)
        bias = np.zeros(self.out_channels, dtype)

        def keep(rows, some_kernel, some_bias):
            kernel[rows], bias[rows] = some_kernel, some_bias

        self.fold_by_rows(keep)
        return kernel, bias

    def fold_by_rows(self, take: Callable) -> list:
        """Compute the fused kernel and bias a few output channels at a time, each processor its own.

        Args:
            take: is called with each part: its rows as a slice, the kernel (rows, in // groups, kh, kw) and the bias
                (rows,). They are float64, but for the kernel of a lone convolution, which is the parameter itself and
                must not be written. Several threads call `take` at a time.

        Returns:
            What `take` returned, in the order of the rows.

        Raises:
            ValueError: see `fused_kernel_bias`.
        """
        self.check_train_form()
        parts = [slice(None)]
        if all(getattr(cell, "BY_ROWS", True) for _, cell in self.cells_and_names()):
            count = max(1, _BYTES_AT_ONCE // (8 * math.prod(self.kernel_shape[1:])))
            parts = [slice(start, start + count) for start in range(0, self.out_channels, count)]
        expected = pair(self.stride), self.padding, pair(self.dilation), self.groups
        read = Exact()

        def fold(rows):
            found = LinearMap(*self.linear_map(read.of(rows)))
            count = len(range(*rows.indices(self.out_channels)))
            if found.kernel.shape != (count, *self.kernel_shape[1:]) or found[2:] != expected:
                raise ValueError(
                    f"the branches make a kernel of {found.kernel.shape[1:]} with stride, padding, dilation and groups "
                    f"{found[2:]}; the block was built for {self.kernel_shape[1:]} and {expected}"
                )
            return take(rows, found.kernel, np.zeros(count) if found.bias is None else found.bias)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # NumPy computes without Python's lock
            # The first part is folded here, and so this thread alone reads parameters, from a device perhaps.
            return [fold(parts[0]), *threads.map(fold, parts[1:])]

    def start_gammas(self, first: float, others: float):
        """Set the gamma of the last BN in each branch: that of the first branch, and that of the others.

        (1, 0) lets training begin with the first branch alone, and (1 / n, 1 / n) with the mean of n branches.
        """
        for number, chain in enumerate(self.chains):
            cells = [cell for name in chain for _, cell in getattr(self, name).cells_and_names()]
            norms = [norm_of(cell) for cell in cells if is_norm(norm_of(cell))]
            if norms:
                gamma = norms[-1].gamma
                gamma.set_data(Tensor(np.full(gamma.shape, others if number else first), gamma.dtype))

    def branches(self) -> dict[str, nn.Cell]:
        """The cells that only the train form has, by their attributes."""
        names = dict.fromkeys(name for chain in (*self.chains, self.after_sum) for name in chain)
        return {name: getattr(self, name) for name in names}

    def equivalent_conv(self) -> nn.Cell:
        """The one convolution this train-form block equals, as a new cell; its parameters carry their final names.

        It computes in the precision of the first convolution in the branches. The weight is trainable where a kernel or
        a gamma is, and the bias where a beta is.

        Raises:
            ValueError: the block is in deploy form already, or its branches are no single convolution.
        """
        self.check_train_form()
        branches = self.branches()
        cells = [(path, cell) for path, cell in self.cells_and_names() if path.partition(".")[0] in branches]
        convs = {path: cell for path, cell in cells if is_convolution(cell)}
        for conv in convs.values():
            check_convolution(conv)
        for path, cell in cells:
            if is_block(cell) and not (cell.se_place is None and isinstance(cell.activation, nn.Identity)):
                raise ValueError(f"the block {path} in it has an activation or SE, which no convolution equals")
        if not convs:
            raise ValueError("there is no convolution in its branches")
        path, trained = next(iter(convs.items()))
        kernel, bias = self.fused_kernel_bias(trained.weight.asnumpy().dtype)
        with no_init_parameters():
            conv = self.make_conv(grouped_of(trained))
        parameters = [p for branch in branches.values() for p in branch.get_parameters()]
        prefix = prefix_of(trained.weight, f"{path}.weight")
        return fill_conv(conv, trained, kernel, bias, parameters, f"{prefix}{self.FUSED}.")

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """(out, in // groups, kh, kw) of the convolution that the branches equal."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    @property
    def fused(self) -> nn.Conv2d:
        """The convolution of the deploy form."""
        return getattr(self, self.FUSED)

    def make_conv(self, grouped=NATIVE) -> nn.Conv2d:
        """The one convolution of the deploy form, before it has values; `grouped` as for `layers.conv2d`."""
        return conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=True,
            grouped=grouped,
        )

    def take(self, conv: nn.Cell):
        """Put `conv` in the place of the branches. Its parameters keep their names, and come before the others."""
        for name in self.branches():
            delattr(self, name)
        # Not setattr: it would put the attribute's name, and nothing of what is around the block, before the names.
        self.insert_child_to_cell(self.FUSED, conv)
        self._cells.move_to_end(self.FUSED, last=False)
        self.cell_list = []  # where automatic mixed precision O1 and O2 leave the branches
        self.deploy = True

    def switch_to_deploy(self):
        """Replace the branches, in place, by the one convolution they equal; does nothing in deploy form.

        Compiled graphs that contain this block are forgotten, so that the next call of any network around it runs the
        new form. An optimizer made before still holds the branches' parameters: make a new one. To keep the trained
        network, use `mindrepvgg.to_deploy`, which builds a new one.

        Raises:
            FusionError: the block cannot be fused, see `mindrepvgg.to_deploy`; it stays as it was.
        """
        if self.deploy:
            return
        conv = fused_block("", self)
        if needs_probe(self):
            self.deployed()
        self.take(conv)
        forget_graphs(self)

    def deployed(self) -> nn.Cell:
        """Make a new block in deploy form that computes the same, under the same names; this one stays as it was.

        Class, attributes, hooks, flags and other cells are those of this block.

        Raises:
            FusionError: the block is in deploy form already, or cannot be fused, see `mindrepvgg.to_deploy`.
        """
        self.check_train_form()
        return copy_fused(self, {"": self})

    def check_train_form(self):
        """Raise FusionError where the block is fused already."""
        if self.deploy:
            raise FusionError("the block is in deploy form: its branches are fused already")
