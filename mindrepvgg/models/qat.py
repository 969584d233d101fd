"""Training for INT8: BN put after each fused convolution, fake quantisation, and the integers' scales.

    trained checkpoint -- to_trainable_deploy --> 'bn' form -- to_fake_quantized --> 'qat' form
                                                     |                                  |
                                                     +--------- fold_bn ----------------+--> deploy form

A fused kernel is the sum of three branches' kernels. Nothing in training keeps its weights even, and 8 bits may cost it
accuracy (the authors' README; arXiv:2212.01593). In deploy form the one kernel can be fine-tuned; BN makes that
trainable, as in the authors' tools/insert_bn.py. `CustomL2` keeps the kernel even in ordinary training. SE's layers and
the pooling stay in float. None of it has run on an NPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindrepvgg.errors import UserError
from mindrepvgg.models.dead_channels import zero_dead
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.models.variants import BN, DEPLOY, QAT, TRAIN
from mindrepvgg.reparam.copying import copy_with
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.fake_quant import ConvBNBlock, FakeQuantBlock, FakeQuantDense
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.runtime.device import execution_mode, inference_mode


def without_dead_channels(net, batches: Iterable):
    """Make a new network in deploy form that reads no channel that is constant over some batches.

    What reads such a channel has no gradient, so that no training for INT8 makes it smaller: see `dead_channels`.

    Args:
        net: in deploy form, or in train form, which is fused first; it stays as it was.
        batches: as in `to_trainable_deploy`. On them the new network computes what `net` computes.

    Raises:
        UserError: as in `to_trainable_deploy`.
    """
    _check_kind(net.variant)
    deployed = copy_with(net, {}) if net.deploy else to_deploy(net)
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}

    def widen(name, given, _):
        axes = (0, *range(2, given.ndim))
        low[name] = np.minimum(low.get(name, np.inf), given.min(axes))
        high[name] = np.maximum(high.get(name, -np.inf), given.max(axes))

    _watch(deployed, batches, {**rep_blocks(deployed), "linear": deployed.linear}, widen)
    zeroed = zero_dead(
        net.variant.deploy_layout("training for INT8"),
        network_arrays(deployed),
        {name: (low[name], high[name]) for name in low},
    )
    load_arrays(deployed.get_parameters(), zeroed.arrays, "the network without dead channels")
    return deployed


def to_trainable_deploy(net, batches: Iterable | None = None):
    """Make a new network, of one convolution and one BN a block, that computes in inference what `net` computes.

    Args:
        net: a RepVGG in deploy form, or in train form, which is fused first; it stays as it was.
        batches: arrays (N, in_channels, H, W), N and size as they come. Each convolution's mean and variance are taken
            from them, in float64, every image and pixel with the same weight. None: as if they were 0 and 1.

    Returns:
        The network in 'bn' form.

    Raises:
        UserError: a RepVGGplus, whose auxiliary heads the deploy form has not, or a features network.
    """
    _check_kind(net.variant)
    form = form_of(net)
    if form in (BN, QAT):
        raise ValueError(f"the network is in {form} form already")
    deployed = net if net.deploy else to_deploy(net)
    blocks = rep_blocks(deployed)
    moments = {name: _Moments(block.out_channels) for name, block in blocks.items()}
    if batches is not None:
        outputs = {name: block.fused for name, block in blocks.items()}
        _watch(deployed, batches, outputs, lambda name, _, output: moments[name].update(output))
    replaced = {block: ConvBNBlock(block, moments[name].mean, moments[name].variance) for name, block in blocks.items()}
    return _copy_with(deployed, replaced, BN)


def _check_kind(variant):
    if variant.family_layout("training for INT8").features:
        raise UserError("a features network cannot be trained for INT8 by itself: train the network that classifies")
    if variant.aux_heads:
        raise UserError(f"{variant.name} is trained with auxiliary heads, which its deploy form has not")


def to_fake_quantized(net, batches: Iterable | None = None, per_channel=True, bits=8):
    """Make a new network that computes with int8's numbers, to be trained or to foresee an int8 engine's output.

    Args:
        net: in 'bn' form; it stays as it was.
        batches: as in `to_trainable_deploy`; the activations' grids span their extremes at first. None: the grids start
            from nothing.
        per_channel: a scale for each output channel's kernel, or one for a whole kernel.
        bits: of activations and weights, from 2 to 8. Below 8 the numbers are still int8's, of which some are not used.

    Returns:
        The network in 'qat' form.
    """
    if form_of(net) != BN:
        raise ValueError("the network must be in bn form; make one with to_trainable_deploy")
    blocks = rep_blocks(net)
    last = list(blocks)[-1]
    replaced = {
        block: FakeQuantBlock(block, per_channel, quantizes_output=name == last, bits=bits)
        for name, block in blocks.items()
    }
    replaced[net.linear] = FakeQuantDense(net.linear, per_channel, bits)
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


def set_per_channel(net, per_channel: bool):
    """Give the weights of a network in 'qat' form a scale for each output channel or for a whole kernel, in place."""
    for cell in (*rep_blocks(net).values(), net.linear):
        cell.weight_quantizer.per_channel = per_channel


def fold_bn(net):
    """Make a new network in plain deploy form, with BN folded in float64, of one in 'bn' or 'qat' form.

    Returns:
        The network. Of 'qat' form, `metadata['quantization_parameters']` holds what `quantization_parameters` gives,
        and goes into its checkpoint.

    Raises:
        ValueError: the network is in another form.
    """
    form = form_of(net)
    if form not in (BN, QAT):
        raise ValueError("the network has no inserted BN: there is nothing to fold")
    deployed = to_deploy(net)
    deployed.metadata = {key: value for key, value in net.metadata.items() if key != "quantization"}
    if form == QAT:
        deployed.linear = net.linear.plain()
        deployed.metadata["quantization_parameters"] = quantization_parameters(net)
    return deployed


def quantization_parameters(net) -> dict[str, dict]:
    """The scales of a network in 'qat' form by layer, in the network's order and in plain types.

    Returns:
        {'stage0': {'input': {'scale', 'zero_point', 'dtype': 'uint8'}, 'weight': {'scale': [...], 'axis': 0, 'dtype':
        'int8'}}, ..., 'linear': ...}; the last block has an 'output' like its input. A real number is (q - zero_point)
        * scale. Weights are symmetric and reach from -127 to 127; axis None is one scale for the kernel. A bias is
        int32 in units of input scale * weight scale. The weights are those of `fold_bn`.
    """
    if form_of(net) != QAT:
        raise ValueError("the network is not in qat form: it has no scales")
    return {name: cell.grids() for name, cell in (*rep_blocks(net).items(), ("linear", net.linear))}


def form_of(net) -> str:
    """The form of a network, one of `variants.FORMS`, told by its cells."""
    if net.deploy:
        return DEPLOY
    if isinstance(getattr(net, "linear", None), FakeQuantDense):
        return QAT
    return BN if any(isinstance(block, ConvBNBlock) for block in rep_blocks(net).values()) else TRAIN


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
    """A copy of the network with other cells in the place of some, in a form."""
    result = copy_with(net, replaced)
    result.metadata = {**net.metadata, "quantization": form}
    return result.set_train(net.training)
