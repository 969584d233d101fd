"""Distillation: a network that is fine-tuned also learns what the float network says of each picture."""

from __future__ import annotations

import copy

from mindspore import nn, ops

from mindrepvgg.reparam.deploy import to_deploy


class Distillation(nn.Cell):
    """The loss with a share of the divergence from a teacher: (1 - share) * loss + share * mean KL(teacher, network).

    images as the network takes them, logits (N, classes) float32, loss scalar -> scalar. Nothing of the teacher is
    trained.

    Args:
        teacher: a network in train or deploy form; it stays as it is, and is run fused.
        share: of the divergence, from 0 to 1.
    """

    def __init__(self, teacher, share):
        super().__init__(auto_prefix=False)
        teacher = copy.deepcopy(teacher) if teacher.deploy else to_deploy(teacher)
        for parameter in teacher.get_parameters():
            parameter.requires_grad = False
            parameter.name = f"teacher.{parameter.name}"  # a graph takes no two parameters of one name
        self.teacher, self.share = teacher, share

    def construct(self, images, logits, loss):
        """The loss of a batch."""
        known = ops.stop_gradient(self.teacher(images).astype(logits.dtype))
        certain = ops.log_softmax(known, -1)
        apart = ops.exp(certain) * (certain - ops.log_softmax(logits, -1))
        return (1 - self.share) * loss + self.share * apart.sum(-1).mean()
