"""The first operation of a network: pixels become numbers around zero, on the device."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindrepvgg.models.preprocessing import Preprocessing


class Normalize(nn.Cell):
    """(pixel / 255 - mean) / std: uint8 (N, H, W, C) to float32 (N, C, H, W).

    Floats (N, C, H, W) are normalised already and passed on.
    """

    def __init__(self, preprocessing: Preprocessing):
        super().__init__(auto_prefix=False)
        gain, bias = preprocessing.gain_and_bias()
        self.gain, self.bias = Tensor(gain[None]), Tensor(bias[None])

    def construct(self, images):
        """Normalise uint8 images (N, H, W, C) to float32 (N, C, H, W); float images are ready and pass."""
        if images.dtype != ms.uint8:
            return images
        # Cast before transposing: every device transposes floats.
        return ops.transpose(ops.cast(images, ms.float32), (0, 3, 1, 2)) * self.gain + self.bias
