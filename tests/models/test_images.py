"""A network answers in one line to what are no images, in both modes; inside a compiled graph nothing is checked."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import images, relative_difference

from mindrepvgg import create_model
from mindrepvgg.errors import UserError
from mindrepvgg.models import images as models_images
from mindrepvgg.reparam.precision import set_precision

pytestmark = pytest.mark.compat

SHAPE = (2, 3, 32, 32)


def tiny():
    return create_model("repvgg", 10, num_blocks=(1, 1, 1, 1), widths=(4,) * 5, deploy=True).set_train(False)


TAKES = "RepVGG takes a mindspore.Tensor of images (N, 3, H, W) in float32, and got "
REFUSED = {
    "numpy": (np.zeros(SHAPE, np.float32), "a numpy.ndarray; mindspore.Tensor(x) makes one"),
    "list": ([[1.0]], "a list"),
    "nothing": (None, "a NoneType"),
    "channels last": (
        np.zeros((2, 32, 32, 3), np.float32),
        "the shape (2, 32, 32, 3); channels come second: x.transpose(0, 3, 1, 2)",
    ),
    "gray": (
        np.zeros((2, 1, 32, 32), np.float32),
        "the shape (2, 1, 32, 32); give it images of 3 channels, or make the network with in_channels=1",
    ),
    "single": (
        np.zeros((3, 32, 32), np.float32),
        "the shape (3, 32, 32); a single image gets its batch axis by x.expand_dims(0)",
    ),
    "flat": (np.zeros((2, 3072), np.float32), "the shape (2, 3072)"),
    "no pixel": (np.zeros((2, 3, 0, 32), np.float32), "the shape (2, 3, 0, 32), which has no pixel"),
    "uint8": (
        np.zeros(SHAPE, np.uint8),
        "UInt8; pixels are scaled to 0..1 and normalised by mean and std first, as in training",
    ),
    "float16": (np.zeros(SHAPE, np.float16), "Float16; x.astype(mindspore.float32) makes it fit"),
    "float64": (np.zeros(SHAPE, np.float64), "Float64; x.astype(mindspore.float32) makes it fit"),
}


@pytest.mark.parametrize("by_name", [False, True], ids=["by place", "by name"])
def test_what_is_no_batch_of_images_is_refused_in_one_line(mode, by_name):
    net = tiny()
    for name, (given, text) in REFUSED.items():
        given = Tensor(given) if isinstance(given, np.ndarray) and name != "numpy" else given
        with pytest.raises(UserError) as caught:
            net(x=given) if by_name else net(given)
        assert str(caught.value) == TAKES + text


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_half_precision_takes_every_float(pynative_mode, level):
    net, x = set_precision(tiny(), level), Tensor(images())
    for kind in (ms.float16, ms.float64):
        assert relative_difference(net(x.astype(kind)), net(x)) < 1e-2
    with pytest.raises(UserError, match="and got Int32; pixels"):
        net(x.astype(ms.int32))


class Around(nn.Cell):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, x):
        return self.net(x * 1.0)


def test_nothing_is_checked_inside_a_graph(graph_mode, monkeypatch):
    net, x = tiny(), Tensor(images())

    calls = []
    monkeypatch.setattr(models_images, "check_images", lambda *_: calls.append(1))
    outer = Around(net)(x)
    assert calls == []
    np.testing.assert_array_equal(net(x).asnumpy(), outer.asnumpy())
    assert calls == [1]
