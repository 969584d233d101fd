"""The maps of a PyTorch RepVGG's stages, as timm and mmpretrain give them; written for the tests to compare with."""

import torch

from support.torch_reference import Network, copy_weights, torch_name


def reference_of(classifier):
    """PyTorch's network with the weights of one of ours that classifies, in inference."""
    network = Network(classifier.variant, classifier.num_classes, classifier.in_channels, classifier.deploy)
    return copy_weights(classifier, network).eval()


def place(network, strides, dilations):
    """Give the blocks of stages 1 to 4 strides and dilations, in place; a tuple for each stage, block by block."""
    for number in (1, 2, 3, 4):
        names = [name for name in network.stage_names if name.startswith(f"stage{number}")]
        stages = [getattr(network, name) for name in names]
        blocks = [block for stage in stages for block in getattr(stage, "blocks", stage)]
        for block, stride, dilation in zip(blocks, strides[number - 1], dilations[number - 1], strict=True):
            large = block.rbr_reparam if block.deploy else block.rbr_dense.conv
            large.stride, large.dilation, large.padding = (stride,) * 2, (dilation,) * 2, (dilation,) * 2
            if not block.deploy:
                block.rbr_1x1.conv.stride = (stride, stride)
    return network


def maps(network, x):
    """The maps of the stem and of stages 1 to 4, for an array."""
    with torch.set_grad_enabled(network.training):
        found = [network.stage0(torch.tensor(x))]
        for name in network.stage_names:
            after = getattr(network, name)(found[-1])
            if name == "stage3_second":
                found[-1] = after
            else:
                found.append(after)
    return found


def set_to_training(network, frozen_stages=-1, norm_eval=False):
    """Mmpretrain's `train()`: the stem is stage 0 of those that are frozen; with `norm_eval` no BN sees the batch."""
    network.train()
    for number, name in enumerate(("stage0", "stage1", "stage2", "stage3", "stage4")):
        if number <= frozen_stages:
            for module_name, module in network.named_children():
                if module_name.startswith(name):
                    module.eval().requires_grad_(False)
    if norm_eval:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    return network


def training_steps(network, batches, lr, momentum, **frozen):
    """Steps of SGD on the sum of the maps' mean squares, set to training before each; the maps of each step."""
    optimizer, found = None, []
    for x in batches:
        set_to_training(network, **frozen)
        if optimizer is None:
            trained = [p for n, p in network.named_parameters() if p.requires_grad and not n.startswith("linear")]
            optimizer = torch.optim.SGD(trained, lr, momentum)
        outputs = maps(network, x)
        optimizer.zero_grad()
        sum((one**2).mean() for one in outputs).backward()
        optimizer.step()
        found.append([one.detach() for one in outputs])
    return found


def values(network):
    """Name of ours -> array, of every parameter and statistic of the stages."""
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    return lambda name: state[torch_name(name, network.plus)]
