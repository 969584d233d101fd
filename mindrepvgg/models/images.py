"""What a network is called with: images, checked before MindSpore answers with a page of its own."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from mindrepvgg.errors import UserError
from mindrepvgg.reparam.precision import computes_in_half
from mindrepvgg.text import printable

_FLOATS = (ms.float32, ms.float16, ms.bfloat16, ms.float64)


def check_images(net: nn.Cell, images):
    """Raise UserError for what `net` cannot take.

    It costs two look-ups a call, and nothing inside a compiled graph, which knows `construct` alone.

    Args:
        net: with the attribute `in_channels`.
        images: what it is called with; a Tensor (N, in_channels, H, W), float32, passes.
    """
    channels = net.in_channels
    expected = f"{type(net).__name__} takes a mindspore.Tensor of images (N, {channels}, H, W) in float32"
    if not isinstance(images, Tensor):
        kind = f"{type(images).__module__}.{type(images).__qualname__}".removeprefix("builtins.")
        hint = "; mindspore.Tensor(x) makes one" if hasattr(images, "__array__") else ""
        raise UserError(f"{expected}, and got a {printable(kind)}{hint}")
    shape = images.shape
    if len(shape) != 4:
        hint = "; a single image gets its batch axis by x.expand_dims(0)" if len(shape) == 3 else ""
        raise UserError(f"{expected}, and got the shape {shape}{hint}")
    if shape[1] != channels and shape[1] > 0:  # the size of an axis that is dynamic is -1
        if shape[3] == channels:
            hint = "; channels come second: x.transpose(0, 3, 1, 2)"
        else:
            hint = f"; give it images of {channels} channels, or make the network with in_channels={shape[1]}"
        raise UserError(f"{expected}, and got the shape {shape}{hint}")
    if 0 in shape[2:]:
        raise UserError(f"{expected}, and got the shape {shape}, which has no pixel")
    if images.dtype != ms.float32:
        if images.dtype not in _FLOATS:
            hint = "; pixels are scaled to 0..1 and normalised by mean and std first, as in training"
            raise UserError(f"{expected}, and got {images.dtype}{hint}")
        if not computes_in_half(net) and images.dtype != next(iter(net.get_parameters())).dtype:
            raise UserError(f"{expected}, and got {images.dtype}; x.astype(mindspore.float32) makes it fit")


class ImageNetwork(nn.Cell):
    """A network that checks the images it is called with. A subclass has the attribute `in_channels`."""

    def __call__(self, *args, **kwargs):
        """Compute, see `construct`; what is no batch of images is refused in one line, a UserError."""
        if args or "x" in kwargs:
            check_images(self, args[0] if args else kwargs["x"])
        return super().__call__(*args, **kwargs)
