"""The loss of one head."""

from __future__ import annotations

from mindspore import nn


def build_loss(name: str = "CE", label_smoothing: float = 0.0) -> nn.Cell:
    """Build the loss of one head.

    Args:
        name: 'CE': cross-entropy, MindSpore's; 'BCE': binary cross-entropy of each class, MindCV's.
        label_smoothing: the share s of the target that is spread evenly: (1 - s) * target + s / classes. Soft targets
            are smoothed as well.

    Returns:
        A cell: logits (N, classes) float32, targets (N,) int32 or (N, classes) float32 -> the mean over the batch.
    """
    if name == "CE":
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    from mindcv.loss import create_loss  # slow to import

    return create_loss("BCE", label_smoothing=label_smoothing)
