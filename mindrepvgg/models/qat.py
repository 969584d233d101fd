"""Training for INT8: BN put after each fused convolution, fake quantisation, and the integers' scales.

    trained checkpoint -- to_trainable_deploy --> 'bn' form -- to_fake_quantized --> 'qat' form
                                                     |                                  |
                                                     +--------- fold_bn ----------------+--> deploy form

A fused kernel is a sum of three branches', which nothing in training keeps even, and its accuracy may suffer from 8
bits (the authors' README; arXiv:2212.01593). Fine-tuned in deploy form the one kernel adapts; BN makes it trainable,
as in the authors' tools/insert_bn.py. `CustomL2` evens the kernel in training already. SE's layers and the pooling
stay in float. None of it has run on an NPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from mindrepvgg.errors import CheckpointError, RecipeError, UserError
from mindrepvgg.models.repvgg import create_model
from mindrepvgg.reparam.deploy import rep_blocks, to_deploy
from mindrepvgg.reparam.fake_quant import ConvBNBlock, FakeQuantBlock, FakeQuantDense
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.weights.checkpoint import STATE_PREFIX, load_arrays
from mindrepvgg.weights.containers import read_weights

FORMS = BN, QAT = ("bn", "qat")

# t3 ** 2 + t1 ** 2 of a channel whose gammas are both zero, which no device should divide by.
_LEAST_NORM = 1e-12


def to_trainable_deploy(net, batches: Iterable | None = None):
    """A new network, of one convolution and one BN a block, that computes in inference what `net` computes.

    net: a RepVGG in deploy form, or in train form, which is fused first; it stays as it was. batches: arrays
    (N, in_channels, H, W), N and size as they come, from which each convolution's mean and variance are taken, in
    float64, every image and pixel with the same weight; None: as if they were 0 and 1.
    Raises UserError for RepVGGplus, whose auxiliary heads the deploy form has not.
    """
    if net.variant.aux_heads:
        raise UserError(f"{net.variant.name} is trained with auxiliary heads, which its deploy form has not")
    form = quantization_form(net)
    if form is not None:
        raise ValueError(f"the network is in {form} form already")
    deployed = net if net.deploy else to_deploy(net)
    blocks = rep_blocks(deployed)
    moments = {name: _Moments(block.out_channels) for name, block in blocks.items()}
    if batches is not None:
        outputs = {name: block.rbr_reparam for name, block in blocks.items()}
        _watch(deployed, batches, outputs, lambda name, _, output: moments[name].update(output))
    replaced = {block: ConvBNBlock(block, moments[name].mean, moments[name].variance) for name, block in blocks.items()}
    return _copy_with(deployed, replaced, BN)


def to_fake_quantized(net, batches: Iterable | None = None, per_channel=True):
    """A new network that computes with int8's numbers: 'qat' form, to be trained or to foresee an int8 engine's output.

    net: in 'bn' form; it stays as it was. batches: as in `to_trainable_deploy`, over whose extremes the activations'
    grids span at first; None: they start from nothing. per_channel: a scale for each output channel's kernel, or one
    for a whole kernel.
    """
    if quantization_form(net) != BN:
        raise ValueError("the network must be in bn form; make one with to_trainable_deploy")
    blocks = rep_blocks(net)
    last = list(blocks)[-1]
    replaced = {
        block: FakeQuantBlock(block, per_channel, quantizes_output=name == last) for name, block in blocks.items()
    }
    replaced[net.linear] = FakeQuantDense(net.linear, per_channel)
    if batches is not None:
        ranges = {}

        def widen(name, arrays):
            for place, array in zip(("input", "output"), arrays, strict=True):
                low, high = ranges.get((name, place), (np.inf, -np.inf))
                ranges[name, place] = min(low, array.min()), max(high, array.max())

        cells = {**blocks, "linear": net.linear}
        _watch(net, batches, cells, lambda name, given, output: widen(name, (given, output)))
        for name, cell in cells.items():
            for place, quantizer in zip(("input", "output"), replaced[cell].activation_quantizers(), strict=False):
                quantizer.set_range(*ranges[name, place])
    return _copy_with(net, replaced, QAT)


def fold_bn(net):
    """A new network in plain deploy form, with BN folded in float64, of one in 'bn' or 'qat' form.

    Of 'qat' form `metadata['quantization_parameters']` holds what `quantization_parameters` gives, and goes into its
    checkpoint. Raises ValueError for other networks.
    """
    form = quantization_form(net)
    if form is None:
        raise ValueError("the network has no inserted BN: there is nothing to fold")
    deployed = to_deploy(net)
    deployed.metadata = {key: value for key, value in net.metadata.items() if key != "quantization"}
    if form == QAT:
        deployed.linear = net.linear.plain()
        deployed.metadata["quantization_parameters"] = quantization_parameters(net)
    return deployed


def quantization_parameters(net) -> dict[str, dict]:
    """The scales of a network in 'qat' form by layer, in the network's order and in plain types.

    {'stage0': {'input': {'scale', 'zero_point', 'dtype': 'uint8'}, 'weight': {'scale': [...], 'axis': 0, 'dtype':
    'int8'}}, ..., 'linear': ...}; the last block has an 'output' like its input. A real number is (q - zero_point) *
    scale; weights are symmetric and reach from -127 to 127, axis None is one scale for the kernel; a bias is int32 in
    units of input scale * weight scale. The weights are those of `fold_bn`.
    """
    if quantization_form(net) != QAT:
        raise ValueError("the network is not in qat form: it has no scales")
    return {name: cell.grids() for name, cell in (*rep_blocks(net).items(), ("linear", net.linear))}


def quantization_form(net) -> str | None:
    """'bn' or 'qat', as `to_trainable_deploy` and `to_fake_quantized` made it; None for an ordinary network."""
    if isinstance(net.linear, FakeQuantDense):
        return QAT
    return BN if any(isinstance(block, ConvBNBlock) for block in rep_blocks(net).values()) else None


def empty_network(description):
    """The network a checkpoint's description with a `quantization` tells of, to be filled.

    Raises CheckpointError when it tells of none.
    """
    form = description.get("quantization")
    if form not in FORMS:
        raise CheckpointError(f"the checkpoint holds no network for INT8 training: its form is {form!r}")
    facts = (description[key] for key in ("model", "num_classes", "in_channels"))
    net = to_trainable_deploy(create_model(*facts, deploy=True, **description.get("model_args", {})))
    return to_fake_quantized(net) if form == QAT else net


def load_quantization(path):
    """The network of a checkpoint in 'bn' or 'qat' form, which `save_checkpoint` wrote; set to inference.

    Raises CheckpointError when it is another or does not fit.
    """
    return network_of(read_weights(path), path)


def network_of(found, path):
    """`load_quantization` of what `weights.read_weights` found in the file at `path`."""
    try:
        net = empty_network(found.description)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    load_arrays(net, {k: v for k, v in found.arrays.items() if not k.startswith(STATE_PREFIX)}, path)
    net.metadata = found.description
    return net.set_train(False)


class CustomL2(nn.Cell):
    """weight_decay / 2 * sum over all blocks of |K3 but its centre|^2 + |t3 K3's centre + t1 K1|^2 / (t3^2 + t1^2).

    K3, K1: the kernels of the 3x3 and 1x1 branches; t = gamma / sqrt(moving variance + eps) of each one's BN, for
    which there is no gradient. The kernels must not decay besides: see `is_block_kernel`. () -> scalar float32.
    net: with blocks in train form. Raises RecipeError for a frozen kernel or a block without branches.
    Source: RepVGG, arXiv:2101.03697, and the authors' repvggplus_custom_L2.py: the identity branch takes no part, and
    the division keeps the equivalent centre at the size of an ordinary kernel.
    """

    def __init__(self, net, weight_decay):
        super().__init__(auto_prefix=False)
        blocks = rep_blocks(net).values()
        branches = ("rbr_dense", "rbr_1x1")
        if not all(hasattr(block, name) for block in blocks for name in branches):
            raise RecipeError("the custom L2 needs blocks with 3x3 and 1x1 branches: a fused network has none")
        dense, pointwise = ([getattr(block, name) for block in blocks] for name in branches)
        if not all(cell.conv.weight.requires_grad for cell in (*dense, *pointwise)):
            raise RecipeError("the custom L2 is a decay of all blocks, some of which are frozen; set freeze_stages 0")
        self.half = weight_decay / 2
        self.kernels = ParameterTuple(cell.conv.weight for cell in dense)
        self.kernels_1x1 = ParameterTuple(cell.conv.weight for cell in pointwise)
        self.gammas, self.gammas_1x1 = (ParameterTuple(c.bn.gamma for c in cells) for cells in (dense, pointwise))
        self.variances, self.variances_1x1 = (
            ParameterTuple(c.bn.moving_variance for c in cells) for cells in (dense, pointwise)
        )
        self.eps = dense[0].bn.eps
        # A mask, as cutting the centre out takes operators of its own in both directions.
        self.centre = Tensor(np.pad(np.ones((1, 1, 1, 1), np.float32), ((0, 0), (0, 0), (1, 1), (1, 1))))

    def construct(self):
        total = 0.0
        for i in range(len(self.kernels)):
            kernel, kernel_1x1 = self.kernels[i], self.kernels_1x1[i]
            t3 = self._scale(self.gammas[i], self.variances[i])
            t1 = self._scale(self.gammas_1x1[i], self.variances_1x1[i])
            around = kernel * (1 - self.centre)
            equivalent = (kernel * self.centre).sum((2, 3), keepdims=True) * t3 + kernel_1x1 * t1
            norm = ops.maximum(t3 * t3 + t1 * t1, _LEAST_NORM)
            total = total + (around * around).sum() + (equivalent * equivalent / norm).sum()
        return self.half * total

    def _scale(self, gamma, variance):
        return ops.stop_gradient(gamma / ops.sqrt(variance + self.eps)).reshape((-1, 1, 1, 1))


def is_block_kernel(name) -> bool:
    """Whether a parameter of this name is a kernel that `CustomL2` counts, which then must not decay besides."""
    return name.endswith(("rbr_dense.conv.weight", "rbr_1x1.conv.weight"))


class _Moments:
    """Mean and population variance (channels,) of all that `update` is given, in float64.

    Source: T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise algorithm for computing sample variances.
    """

    def __init__(self, channels):
        self.count, self.mean, self._squares = 0, np.zeros(channels), np.zeros(channels)

    def update(self, maps):
        """Take in (N, channels, H, W); one image after the other, as float64 takes room."""
        for image in maps:
            pixels = image.reshape(len(self.mean), -1).astype(np.float64)
            count, mean = pixels.shape[1], pixels.mean(1)
            total, apart = self.count + count, mean - self.mean
            self._squares += ((pixels - mean[:, None]) ** 2).sum(1) + apart**2 * (self.count * count / total)
            self.mean = self.mean + apart * (count / total)
            self.count = total

    @property
    def variance(self):
        """1 where nothing was given."""
        return self._squares / self.count if self.count else np.ones_like(self.mean)


def _watch(net, batches, cells, see):
    """Run `net` in inference over all batches; see(name, input, output) is called with each named cell's arrays."""

    def hook_for(name):
        return lambda _, inputs, output: see(name, inputs[0].asnumpy(), output.asnumpy())

    handles = [cell.register_forward_hook(hook_for(name)) for name, cell in cells.items()]
    count = 0
    try:
        with inference_mode(net), execution_mode(ms.PYNATIVE_MODE):
            for batch in batches:
                net(Tensor(np.ascontiguousarray(batch, np.float32)))
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("no batch was given to take statistics from")


def _copy_with(net, replaced, form):
    """A copy of the network with other cells in the place of some, and without compiled graphs."""
    result = copy.deepcopy(net, {id(cell): other for cell, other in replaced.items()})
    for _, cell in result.cells_and_names():
        cell.compile_cache.clear()
    result.metadata = {**net.metadata, "quantization": form}
    return result.set_train(net.training)
