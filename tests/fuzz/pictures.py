"""Damaged and hostile pictures of every format that training may meet."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fuzz.cases import Case, mixed, mutated, sizes
from mindrepvgg.data.check import check_data
from mindrepvgg.data.crop import CentreCrop
from mindrepvgg.data.decode import decode, read_file
from mindrepvgg.models.preprocessing import Preprocessing

_CROPS = {
    channels: CentreCrop(Preprocessing(image_size=(224, 224), mean=(0,), std=(1,), in_channels=channels))
    for channels in (1, 3)
}


def _prepare(path, channels):
    _CROPS[channels](decode(read_file(path), path, channels))


DOORS = {
    "3 channels": lambda path: _prepare(path, 3),
    "1 channel": lambda path: _prepare(path, 1),
    "data": lambda path: check_data("data").format(),
}


@functools.cache
def pictures() -> dict[str, bytes]:
    """The same noise in many formats and modes, by name."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    made = {
        "rgb.jpg": (noise, {}),
        "progressive.jpg": (noise, {"progressive": True}),
        "cmyk.jpg": (noise.convert("CMYK"), {}),
        "gray.jpg": (noise.convert("L"), {}),
        "exif.jpg": (noise, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        "rgb.png": (noise, {}),
        "gray.png": (noise.convert("L"), {}),
        "alpha.png": (noise.convert("RGBA"), {}),
        "palette.png": (noise.convert("P"), {"transparency": 3}),
        "bits.png": (noise.convert("1"), {}),
        "deep.png": (Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20)), {}),
        "moving.png": (noise, {"save_all": True, "append_images": [noise.rotate(90)]}),
        "moving.gif": (noise.convert("P"), {"save_all": True, "append_images": [noise.convert("P").rotate(90)]}),
        "lossy.webp": (noise, {}),
        "lossless.webp": (noise.convert("RGBA"), {"lossless": True}),
        "raw.tif": (noise, {}),
        "lzw.tif": (noise, {"compression": "tiff_lzw"}),
        "jpeg.tif": (noise, {"compression": "jpeg"}),
        "x.bmp": (noise, {}),
        "x.ppm": (noise, {}),
        "x.tga": (noise, {}),
        "x.ico": (noise, {"sizes": [(16, 16)]}),
        "x.jp2": (noise, {}),
        "x.pcx": (noise, {}),
        "x.dds": (noise, {}),
        "x.avif": (noise, {}),
    }
    content = {}
    for name, (image, options) in made.items():
        stream = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
        try:
            image.save(stream, kind, **options)
        except (OSError, KeyError):  # an encoder that this Pillow was built without
            continue
        content[name] = stream.getvalue()
    return content


@st.composite
def _other_size(draw):
    """A picture whose header tells another size, its checksum mended."""
    name = draw(
        st.sampled_from(
            ["rgb.jpg", "progressive.jpg", "gray.jpg", "cmyk.jpg", "rgb.png", "alpha.png", "x.bmp", "moving.gif"]
        )
    )
    content = bytearray(pictures()[name])
    side = st.sampled_from([1, 20, 4096, 8192, 10_000, 13_000, 16_384, 20_000, 30_000, 65_500, 65_535]) | sizes()
    height, width = draw(side), draw(side)
    if name.endswith(".png"):
        content[16:24] = struct.pack(">II", width % 2**32, height % 2**32)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif name.endswith(".jpg"):
        place = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[place + 5 : place + 9] = struct.pack(">HH", height % 2**16, width % 2**16)
    elif name.endswith(".bmp"):
        content[18:26] = struct.pack("<II", width % 2**32, height % 2**32)
    else:
        content[6:10] = struct.pack("<HH", width % 2**16, height % 2**16)
    return bytes(content)


@functools.cache
def _uniform(mode, size):
    """A whole picture of one colour: many pixels in few bytes."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def cases():
    """Mutated files, other sizes, and now and then a large picture that is whole."""
    modes = st.sampled_from(["1", "L", "P", "RGB", "RGBA"])
    large = st.builds(_uniform, modes, st.sampled_from([(side, side) for side in (3000, 8000, 10_000, 13_000)]))
    long = st.builds(_uniform, modes, st.sampled_from([(1, 70_000), (5000, 1), (7, 900), (100_000, 3)]))
    content = mixed((60, mutated(list(pictures().values()))), (20, _other_size()), (1, large), (2, long))
    door = st.sampled_from(["3 channels", "3 channels", "1 channel"])
    file = st.builds(lambda door, data: Case(door, "x.png", {"x.png": data}), door, content)
    whole = pictures()["rgb.jpg"]
    data = content.map(lambda data: Case("data", "", {"data/train/a/x.png": data, "data/train/b/y.jpg": whole}))
    return mixed((9, file), (1, data))
