"""The linear maps of cells: each, convolved by PyTorch in float64, is what the cell itself computes."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import images, randomise_bn, relative_difference
from support.linear_maps import convolved

from mindrepvgg.reparam.layers import GROUPED, batch_norm, conv2d
from mindrepvgg.reparam.maps import Exact, check_convolution, differentiable, map_of

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("pynative_mode")]


CELLS = {
    "plain": lambda: conv2d(8, 12, 3),
    "all arguments": lambda: conv2d(8, 12, (3, 5), (2, 1), (1, 0, 2, 3), (1, 2), 4, bias=True),
    "a border cut off": lambda: conv2d(8, 12, 3, 1, (-1, 2, 0, -2), bias=True),
    "mindspores_own_valid": lambda: nn.Conv2d(8, 12, (2, 3), 2, pad_mode="valid"),
    "mindspores_own_same": lambda: nn.Conv2d(8, 12, (2, 5), pad_mode="same", dilation=2, has_bias=True),
    "with BN": lambda: nn.SequentialCell(conv2d(8, 12, 3, groups=2, bias=True), batch_norm(12, eps=0.1)),
    "a sequence": lambda: nn.SequentialCell(
        nn.SequentialCell(conv2d(8, 6, 1), nn.Identity()), conv2d(6, 12, 3), batch_norm(12), conv2d(12, 4, 1)
    ),
}


@pytest.mark.parametrize("kind", CELLS)
def test_the_map_of_a_cell_computes_what_the_cell_does(kind):
    cell, x = randomise_bn(CELLS[kind]()).set_train(False), images(2, 8, 12, 14)
    computed, x = cell(Tensor(x)), torch.tensor(x, dtype=torch.float64)
    for read, tolerance in ((Exact(), 1e-6), (differentiable, 1e-5)):
        assert relative_difference(convolved(map_of(cell, read), x), computed) < tolerance


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (nn.ReLU, "what ReLU computes is not known as a convolution"),
        (lambda: nn.SequentialCell(conv2d(8, 8, 1), nn.Tanh()), "what Tanh computes is not known as a convolution"),
        (nn.SequentialCell, "a sequence without a convolution is not known as one"),
        (
            lambda: nn.SequentialCell(batch_norm(8), conv2d(8, 8, 1)),
            "a BN with nothing before it says nothing of its groups",
        ),
        pytest.param(
            lambda: nn.Conv2d(8, 8, 3, 2, pad_mode="same"),
            "a strided convolution of pad_mode 'same' pads by its input's size",
            id="mindspores_own_strided",
        ),
        (
            lambda: nn.SequentialCell(conv2d(8, 8, 3), conv2d(8, 8, 3)),
            r"a kernel \(3, 3\) and then \(3, 3\) are not one",
        ),
        (lambda: nn.SequentialCell(conv2d(8, 8, 1), batch_norm(8), conv2d(8, 8, 3)), "zeros are padded between"),
        (lambda: nn.SequentialCell(conv2d(8, 8, 1), batch_norm(4)), "a BN of 4 channels follows 8 outputs"),
    ],
)
def test_what_is_no_convolution_is_refused(cell, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        map_of(cell(), Exact())


def test_arrays_are_wide_vectors_and_raw_kernels_that_nobody_may_change():
    conv, bn, read = conv2d(8, 4, 3), batch_norm(4, eps=0.1), Exact()
    kernel, gamma = read(conv, "weight"), read(bn, "gamma")
    assert (kernel.dtype, gamma.dtype) == (np.float32, np.float64)
    assert not kernel.flags.writeable
    assert not gamma.flags.writeable
    assert read(bn, "eps") == 0.1
    assert read((4, 2, (1, 1), 1.0), "identity").shape == (4, 2, 1, 1)
    read.rows = slice(1, 3)
    np.testing.assert_array_equal(read(conv, "weight"), kernel[1:3])
    assert read(bn, "gamma").shape == (2,)
    assert read((4, 2, (1, 1), 1.0), "identity").shape == (2, 2, 1, 1)
    assert differentiable((4, 2, (1, 1), 1.0), "identity").dtype == ms.float32
    assert differentiable(conv, "weight") is conv.weight


def test_a_negative_variance_is_damage():
    bn = batch_norm(4)
    bn.moving_variance.set_data(Tensor([1, -0.5, 1, 1], ms.float32))
    with pytest.raises(ValueError, match=r"variance is negative \(-0.5\): damaged statistics"):
        Exact()(bn, "moving_variance")


@pytest.mark.parametrize("grouped", GROUPED)
@pytest.mark.parametrize("padding", [1, (2, 0), (-1, 2, 0, -2)])
def test_a_convolution_that_computes_otherwise_than_it_says_is_found(padding, grouped):
    conv = conv2d(8, 8, 3, padding=padding, groups=2, grouped=grouped)
    check_convolution(conv)
    for attribute, value in (("padding", (1, 1, 0, 0)), ("stride", (2, 1)), ("dilation", (1, 2))):
        before = getattr(conv, attribute)
        setattr(conv, attribute, value)
        with pytest.raises(ValueError, match=r"^a convolution computes with .*, and its attributes say "):
            check_convolution(conv)
        setattr(conv, attribute, before)
    check_convolution(conv)
