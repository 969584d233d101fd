"""BN statistics taken anew over many batches, for the network as it is after its last update."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.reparam.layers import NORMS
from mindrepvgg.runtime.ranks import Ranks


def precise_bn(net: nn.Cell, batches: Iterable, ranks: Ranks):
    """Replace every BN's moving statistics by the mean and the variance over all given training batches.

    Moving statistics lag behind: they mix the last hundred batches, and the weights changed from one to the next. Here
    a layer's mean is the mean over the batches. Its variance is the mean of the variances within the batches plus the
    variance between them. The layers below normalise by the batch, as in training. Frozen BN stays as it is.

    Args:
        net: the network.
        batches: images (N, C, H, W), this rank's share of them.
        ranks: the processes that have the other shares.

    Source: arXiv:2105.07576, section 3.
    """
    norms = [cell for _, cell in net.cells_and_names() if isinstance(cell, NORMS) and cell.use_batch_statistics is None]
    sums = [np.zeros((2, cell.moving_mean.size)) for cell in norms]
    count = 0
    was_training = net.training
    net.set_train(True)
    for images in batches:
        for cell in norms:
            cell.moving_mean.set_data(Tensor(np.zeros(cell.moving_mean.shape, np.float32)))
            cell.moving_variance.set_data(Tensor(np.zeros(cell.moving_variance.shape, np.float32)))
        net(Tensor(images))
        count += 1
        for cell, total in zip(norms, sums, strict=True):
            # From zero, a batch brings the statistics to this share of its own. MindSpore's BN keeps that share.
            mean = cell.moving_mean.asnumpy().astype(np.float64) / cell.momentum
            total += mean, cell.moving_variance.asnumpy() / cell.momentum + mean**2
    net.set_train(was_training)
    count = ranks.gather(np.float64(count)).sum()
    for cell, total in zip(norms, sums, strict=True):
        mean, square = ranks.gather(total).sum(axis=0) / count
        cell.moving_mean.set_data(Tensor(mean.astype(np.float32)))
        cell.moving_variance.set_data(Tensor((square - mean**2).astype(np.float32)))
