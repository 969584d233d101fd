"""The loss of one head."""

from __future__ import annotations

from mindspore import nn


def build_loss(name="CE", label_smoothing=0.0):
    """A cell: logits (N, classes) float32, targets (N,) int32 or (N, classes) float32 -> the batch's mean, a scalar.

    name: 'CE', cross-entropy (MindSpore's), or 'BCE', binary cross-entropy of each class (MindCV's).
    label_smoothing: share s of the target spread evenly: (1 - s) * target + s / classes; of soft targets as well.
    """
    if name == "CE":
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    from mindcv.loss import create_loss  # slow to import

    return create_loss("BCE", label_smoothing=label_smoothing)
