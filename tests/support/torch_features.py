"""The maps of a PyTorch RepVGG's stages, as timm and mmpretrain give them; written for the tests to compare with."""

import torch

from support.torch_reference import Network, copy_weights


def reference_of(classifier):
    """PyTorch's network with the weights of one of ours that classifies, in inference."""
    network = Network(classifier.variant, classifier.num_classes, classifier.in_channels, classifier.deploy)
    return copy_weights(classifier, network).eval()


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
