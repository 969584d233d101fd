"""One training step as one cell, so that graph mode compiles it as one graph."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops


class NetworkWithLoss(nn.Cell):
    """Loss of a batch: cross-entropy, plus `aux_weight` times that of every auxiliary head the network returns.

    images (N, C, H, W), labels (N,) int32 -> scalar.
    """

    def __init__(self, net, label_smoothing=0.0, aux_weight=0.1):
        super().__init__(auto_prefix=False)
        self.net = net
        self.aux_weight = aux_weight
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def construct(self, images, labels):
        outputs = self.net(images)
        if not isinstance(outputs, tuple):
            return self.loss(outputs, labels)
        loss = self.loss(outputs[0], labels)
        for aux in outputs[1:]:
            loss = loss + self.aux_weight * self.loss(aux, labels)
        return loss


class TrainStep(nn.Cell):
    """Forward, loss, gradients and update: images (N, C, H, W), labels (N,) int32 -> the loss before the update."""

    def __init__(self, net_with_loss, optimizer):
        super().__init__(auto_prefix=False)
        self.net_with_loss = net_with_loss
        self.optimizer = optimizer
        self.value_and_grad = ms.value_and_grad(net_with_loss, None, optimizer.parameters)
        self.set_train()

    def construct(self, images, labels):
        loss, gradients = self.value_and_grad(images, labels)
        return ops.depend(loss, self.optimizer(gradients))
