"""The picture of folding: its kernels are those of the block, by arithmetic of the test's own."""

import io

import numpy as np
import pytest
from mindspore import nn
from PIL import Image
from support import SMALL, randomise_bn

from mindrepvgg import RepVGGBlock, create_model, to_deploy
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.fold_picture import fold_of

pytestmark = pytest.mark.compat


def scale(bn):
    gamma, variance = (array.asnumpy().astype(np.float64) for array in (bn.gamma, bn.moving_variance))
    return (gamma / np.sqrt(variance + 1e-5)).reshape(-1, 1, 1, 1)


def test_the_kernels_of_a_block(figures):
    net = randomise_bn(create_model("repvgg", 10, 3, **SMALL["plain"]))
    fold = fold_of(net)
    block = dict(net.cells_and_names())[fold.path]
    assert list(fold.branches) == ["conv 3×3, BN", "conv 1×1, BN", "identity: BN alone"]
    dense, point, identity = fold.branches.values()
    weights = [branch.conv.weight.asnumpy().astype(np.float64) for branch in (block.rbr_dense, block.rbr_1x1)]
    np.testing.assert_allclose(dense, weights[0] * scale(block.rbr_dense.bn), rtol=1e-12)
    placed = np.zeros_like(dense)
    placed[:, :, 1:2, 1:2] = weights[1] * scale(block.rbr_1x1.bn)
    np.testing.assert_allclose(point, placed, rtol=1e-12)
    placed = np.zeros_like(dense)
    placed[np.arange(len(dense)), np.arange(len(dense)), 1, 1] = scale(block.rbr_identity).ravel()
    np.testing.assert_allclose(identity, placed, rtol=1e-12)
    deployed = dict(to_deploy(net).cells_and_names())[fold.path]
    np.testing.assert_array_equal(fold.kernel, deployed.fused.weight.asnumpy())

    stream = io.BytesIO()
    fold.draw(stream, "net")
    assert Image.open(stream).format == "PNG"
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert titles == [*fold.branches, "folded: one convolution"]
    words = [text.get_text() for text in figures[0].texts]
    assert words[0] == "Three branches become one convolution"
    assert [word for word in words if word in "+="] == ["+", "+", "="] * 2
    numbers = [float(text.get_text()) for text in figures[0].axes[0].texts]
    channel = int(words[2].split()[-1])
    np.testing.assert_allclose(np.reshape(numbers, (3, 3)), dense[channel, channel], atol=0.006)


def test_a_block_of_its_own_and_one_by_its_path():
    block = randomise_bn(RepVGGBlock(4, 8, stride=2))
    fold = fold_of(block)
    assert fold.path == ""
    assert list(fold.branches) == ["conv 3×3, BN", "conv 1×1, BN"], "there is no identity"
    net = randomise_bn(create_model("repvgg", 10, 3, **SMALL["plain"]))
    assert fold_of(net, "stage0").path == "stage0"


def test_where_there_is_no_block_with_branches():
    net = create_model("repvgg", 10, 3, deploy=True, **SMALL["plain"])
    for cell, path in ((net, None), (nn.ReLU(), None), (create_model("repvgg", 10, 3, **SMALL["plain"]), "stage9")):
        with pytest.raises(UserError, match="with branches that add up"):
            fold_of(cell, path)
