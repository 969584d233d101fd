"""Other projects' cells that fold into one convolution: MindCV's and MindYOLO's. None of these projects is imported."""

from __future__ import annotations

from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.maps import fold_norm, identity, map_of, sequence_map


def repvgg_block(cell):
    """MindCV's RepVGGBlock: 3x3, 1x1 and identity, with BN; SE and ReLU follow. None in deploy form."""
    if cell.rbr_reparam is not None:
        return None

    def linear_map(read):
        return _three_branches(cell, read)

    return linear_map, ("se", "nonlinearity"), "rbr_reparam"


def rep_conv(cell):
    """MindYOLO's RepConv: 3x3, 1x1 and, in YOLOv7 alone, identity, with BN; an activation follows."""

    def linear_map(read):
        return _three_branches(cell, read)

    return linear_map, ("act",), "rbr_reparam"


def _three_branches(cell, read):
    total = algebra.add(map_of(cell.rbr_dense, read), map_of(cell.rbr_1x1, read))
    if cell.rbr_identity is None:
        return total
    straight = identity(cell.in_channels, total[5], read)
    return algebra.add(total, fold_norm(straight, cell.rbr_identity, read))


def conv_norm_act(cell):
    """MindYOLO's ConvNormAct and what derives from it: a convolution with BN; an activation follows."""

    def linear_map(read):
        return sequence_map((cell.conv, cell.bn), read)

    return linear_map, ("act",), "conv"


def repvgg_dw(cell):
    """MindYOLO's RepVGGDW: 7x7 and 3x3 depthwise, with BN; SiLU follows."""

    def linear_map(read):
        large, small = (sequence_map((part.conv, part.bn, part.act), read) for part in (cell.conv, cell.conv1))
        return algebra.add(large, small)

    return linear_map, ("act",), "conv"


KNOWN = {
    "mindcv.models.repvgg.RepVGGBlock": repvgg_block,
    "mindyolo.models.layers.conv.ConvNormAct": conv_norm_act,
    "mindyolo.models.layers.conv.RepConv": rep_conv,
    "mindyolo.models.layers.bottleneck.RepVGGDW": repvgg_dw,
}
