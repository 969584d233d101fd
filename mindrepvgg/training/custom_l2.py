"""The custom L2: a decay of each block's equivalent kernel instead of its branches' kernels."""

from __future__ import annotations

import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from mindrepvgg.errors import RecipeError
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.maps import norm_of

# t3 ** 2 + t1 ** 2 of a channel whose gammas are both zero, which no device should divide by.
_LEAST_NORM = 1e-12


class CustomL2(nn.Cell):
    """weight_decay / 2 * sum over all blocks of |K3 but its centre|^2 + |t3 K3's centre + t1 K1|^2 / (t3^2 + t1^2).

    K3, K1: the kernels of the 3x3 and 1x1 branches; t = gamma / sqrt(moving variance + eps) of each one's BN, for
    which there is no gradient. The kernels must not decay besides: see `is_block_kernel`. () -> scalar float32.
    net: with blocks in train form. Raises RecipeError for a frozen kernel or a block without branches.
    Source: RepVGG, arXiv:2101.03697, and the authors' repvggplus_custom_L2.py: the identity branch takes no part, and
    the division keeps the equivalent centre at the size of an ordinary kernel.
    """

    def __init__(self, net, weight_decay):
        super().__init__(auto_prefix=False)
        blocks = rep_blocks(net).values()
        branches = ("rbr_dense", "rbr_1x1")
        if not all(hasattr(getattr(block, name, None), "bn") for block in blocks for name in branches):
            raise RecipeError(
                "the custom L2 needs RepVGG's 3x3 and 1x1 branches, each with its BN: this network has none"
            )
        dense, pointwise = ([getattr(block, name) for block in blocks] for name in branches)
        if not all(cell.conv.weight.requires_grad for cell in (*dense, *pointwise)):
            raise RecipeError("the custom L2 is a decay of all blocks, some of which are frozen; set freeze_stages 0")
        self.half = weight_decay / 2
        self.kernels = ParameterTuple(cell.conv.weight for cell in dense)
        self.kernels_1x1 = ParameterTuple(cell.conv.weight for cell in pointwise)
        norms, norms_1x1 = ([norm_of(cell.bn) for cell in cells] for cells in (dense, pointwise))
        self.gammas, self.gammas_1x1 = (ParameterTuple(bn.gamma for bn in bns) for bns in (norms, norms_1x1))
        self.variances, self.variances_1x1 = (
            ParameterTuple(bn.moving_variance for bn in bns) for bns in (norms, norms_1x1)
        )
        self.eps = norms[0].eps
        # A mask, as cutting the centre out takes operators of its own in both directions.
        self.centre = Tensor(np.pad(np.ones((1, 1, 1, 1), np.float32), ((0, 0), (0, 0), (1, 1), (1, 1))))

    def construct(self):
        """The penalty, a scalar."""
        total = 0.0
        for i in range(len(self.kernels)):
            kernel, kernel_1x1 = self.kernels[i], self.kernels_1x1[i]
            t3 = self._scale(self.gammas[i], self.variances[i])
            t1 = self._scale(self.gammas_1x1[i], self.variances_1x1[i])
            around = kernel * (1 - self.centre)
            equivalent = (kernel * self.centre).sum((2, 3), keepdims=True) * t3 + kernel_1x1 * t1
            norm = ops.maximum(t3 * t3 + t1 * t1, _LEAST_NORM)
            total = total + (around * around).sum() + (equivalent * equivalent / norm).sum()
        return self.half * total

    def _scale(self, gamma, variance):
        return ops.stop_gradient(gamma / ops.sqrt(variance + self.eps)).reshape((-1, 1, 1, 1))


def is_block_kernel(name) -> bool:
    """Whether a parameter of this name is a kernel that `CustomL2` counts, which then must not decay besides."""
    return name.endswith(("rbr_dense.conv.weight", "rbr_1x1.conv.weight"))
