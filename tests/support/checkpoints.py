"""Small networks for checkpoints, and how a checkpoint is refused."""

import numpy as np
import pytest
from mindspore import Tensor

from mindrepvgg import create_model, load_checkpoint
from mindrepvgg.errors import CheckpointError
from support import SMALL, randomise_bn

# Smaller still than support's: most tests build several.
SHAPES = {**SMALL, "plain": {"num_blocks": (1, 1, 2, 1), "widths": (8, 8, 8, 16, 32)}}


def small(kind="plain", num_classes=3, in_channels=1, deploy=False, seed=0):
    """A small network; every value depends on the seed alone."""
    net = create_model("repvgg", num_classes, in_channels, deploy, **SHAPES[kind])
    rng = np.random.default_rng(seed)
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), parameter.dtype))
    return randomise_bn(net, seed)


def assert_equal_weights(found, expected):
    """The same names, types, shapes and bits."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def refusal(path, *args, **options):
    """The text of the CheckpointError that loading gives."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, *args, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    return text
