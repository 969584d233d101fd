"""How a block is compared with PyTorch's: what its branches compute, what they fold into, and how it trains."""

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn

from support import array, images, noise, relative_difference, weights
from support.block_pairs import fold_error, noise_for
from support.torch_reference import torch_name

# Over the largest: of sums in float64, of a kernel in float32, of an output in float32, of gradients and statistics.
EXACT, KERNEL, OUTPUT, TRAINED = 1e-12, 1e-6, 1e-5, 1e-4


def fold_errors(block, reference, size=(12, 11)):
    """How far a block is from PyTorch's in float64, over the largest: its exact fold, and both forms; and its deploy
    form, in the current mode.
    """
    x, exact_x = noise_for(block, size)
    with torch.no_grad():
        expected = reference(exact_x)
    deployed = block.deployed()
    outputs = relative_difference(block(x), expected), relative_difference(deployed(x), expected)
    return fold_error(block, reference, exact_x), *outputs, deployed


def check_fold(block, reference, size=(12, 11)):
    """Fold, outputs of both forms, and the differentiable kernel, in the current mode; returns the deploy form."""
    exact, branches, fused, deployed = fold_errors(block, reference, size)
    assert exact < EXACT
    assert branches < OUTPUT
    assert fused < OUTPUT
    check_kernel(block.get_equivalent_kernel_bias(), block)
    for truth, leaf in zip(block.fused_kernel_bias(), ("weight", "bias"), strict=True):
        assert relative_difference(weights(deployed)[f"{block.FUSED}.{leaf}"], truth) < KERNEL
    return deployed


def check_kernel(found, block):
    """The differentiable kernel and bias against the exact ones."""
    for part, exact in zip(found, block.fused_kernel_bias(), strict=True):
        assert part.dtype == ms.float32
        assert relative_difference(part, exact) < KERNEL


class OutputAndKernel(nn.Cell):
    """A block's output and its equivalent kernel and bias, in one graph."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def construct(self, x):
        kernel, bias = self.block.get_equivalent_kernel_bias()
        return self.block(x), kernel, bias


def check_graph(block, reference, size=(12, 11)):
    """Output and differentiable kernel in graph mode."""
    x, exact_x = noise_for(block, size)
    names = list(weights(block))
    y, *found = OutputAndKernel(block)(x)
    with torch.no_grad():
        assert relative_difference(y, reference(exact_x)) < OUTPUT
    check_kernel(found, block)
    assert [name.removeprefix("block.") for name in weights(block)] == names


class CubedMean(nn.Cell):
    """A loss of a block's output."""

    def __init__(self, block):
        super().__init__(auto_prefix=False)
        self.block = block

    def construct(self, x):
        return (self.block(x) ** 3).mean()


def check_training(block, reference, size=(8, 7), steps=3, rate=0.01):
    """A few steps of SGD beside PyTorch's: the loss, each gradient, and the statistics at the end."""
    net = CubedMean(block).set_train()
    reference.train()
    parameters, truth = block.trainable_params(), dict(reference.named_parameters())
    assert len(parameters) == len(truth)
    for step in range(steps):
        x = images(4, block.in_channels, *size, seed=step) + 1
        exact_x = torch.tensor(x, dtype=torch.float64)
        reference.zero_grad()
        expected = (reference(exact_x) ** 3).mean()
        expected.backward()
        loss, gradients = ms.value_and_grad(net, None, parameters)(Tensor(x))
        assert relative_difference(loss, expected) < TRAINED
        largest = max(float(parameter.grad.abs().max()) for parameter in truth.values())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            name = torch_name(parameter.name)
            # The gradient of a kernel that a BN scales away is next to nothing, and its rounding is not.
            least = max(float(truth[name].grad.abs().max()), largest / 100)
            assert np.abs(array(gradient) - array(truth[name].grad)).max() < TRAINED * least, (step, name)
            parameter.set_data(parameter - rate * gradient)
            truth[name].data -= rate * truth[name].grad
    state = reference.state_dict()
    statistics = [p for p in block.get_parameters() if p.name.rpartition(".")[2].startswith("moving_")]
    assert statistics
    for parameter in statistics:
        assert relative_difference(parameter, array(state[torch_name(parameter.name)])) < TRAINED, parameter.name


class KernelPenalty(nn.Cell):
    """A loss of a block's equivalent kernel and bias, each element with its own weight."""

    def __init__(self, block, kernel_weights, bias_weights):
        super().__init__(auto_prefix=False)
        self.block = block
        self.kernel_weights, self.bias_weights = Tensor(kernel_weights), Tensor(bias_weights)

    def construct(self):
        kernel, bias = self.block.get_equivalent_kernel_bias()
        return (self.kernel_weights * kernel * kernel).sum() + (self.bias_weights * bias).sum()


def check_gradient(block, reference):
    """The gradient of a loss of the kernel, in the current mode, against PyTorch's; of a block without padding.

    An input as large as the kernel gives one output: the kernel is what single bright pixels give.
    """
    shape = (block.in_channels, *block.kernel_size)
    pixels = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    bias = reference.branch_sum(torch.zeros_like(pixels[:1])).flatten()
    kernel = (reference.branch_sum(pixels)[:, :, 0, 0] - bias).T.reshape(-1, *shape)
    per_group = block.in_channels // block.groups
    first = torch.arange(len(kernel)) // (len(kernel) // block.groups) * per_group
    kernel = kernel[torch.arange(len(kernel))[:, None], first[:, None] + torch.arange(per_group)]
    chosen = noise(*kernel.shape, seed=1), noise(len(bias), seed=2)
    expected = (torch.from_numpy(chosen[0]) * kernel**2).sum() + (torch.from_numpy(chosen[1]) * bias).sum()
    expected.backward()
    parameters, truth = block.trainable_params(), dict(reference.named_parameters())
    assert len(parameters) == len(truth)
    loss, gradients = ms.value_and_grad(KernelPenalty(block, *chosen), None, parameters)()
    assert relative_difference(loss, expected) < OUTPUT
    for parameter, gradient in zip(parameters, gradients, strict=True):
        name = torch_name(parameter.name)
        assert relative_difference(gradient, truth[name].grad) < TRAINED, name
