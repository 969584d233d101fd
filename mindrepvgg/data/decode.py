"""Encoded pictures into pixels, as torchvision's `ImageFolder` reads them: Pillow's convert("RGB") of the first frame.

Nearly every data set is made of JPEGs. OpenCV decodes them to the same pixels in less time, without holding the
interpreter lock. Pillow decodes everything else: CMYK, 16 bits, palettes, alpha, animations, other formats. The
orientation tag is not applied. MindSpore's decoder is not used: on a JPEG cut inside its header it ends or hangs the
whole process.
"""

import io
import os
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mindrepvgg.errors import UnreadableImageError
from mindrepvgg.files import read_regular
from mindrepvgg.text import printable

_REMEDY = "replace or remove it"
LARGEST_FILE = 1 << 30  # bytes; no picture that the decoders accept has more

_MARKERS_WITHOUT_SIZE = {0x01, *range(0xD0, 0xD9)}
_START_OF_SCAN = 0xDA
_APP14 = 0xEE
# Start of a frame, of all kinds of JPEG; the other four in this range are tables.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1}

# A file of a kilobyte may tell of a gigabyte of pixels. With these limits decoding takes less than one GiB.
_MOST_PIXELS = 80_000_000
_MOST_SEQUENTIAL = 120_000_000  # of a usual JPEG that is not progressive
_MOST_HEAVY = 50_000_000  # where the decoder itself holds the picture several times over
_HEAVY = {"WEBP", "AVIF", "JPEG2000", "JPEG"}
# Of larger pictures, so many pixels are converted at a time: Pillow would copy the whole three times.
_PART = 2**24


def read_file(path: str | os.PathLike) -> np.ndarray:
    """Return a file's bytes as a uint8 array. Raises UnreadableImageError."""
    return np.frombuffer(read_regular(path, "a picture", UnreadableImageError, LARGEST_FILE), np.uint8)


def decode(encoded: np.ndarray, name: object, in_channels: int) -> np.ndarray:
    """Decode a picture.

    Args:
        encoded: the file's bytes, uint8.
        name: what a message calls the picture; str() is taken of it only when there is a message.
        in_channels: 1 or 3. One channel of a colour JPEG is its own luma, of other files Pillow's convert("L").

    Returns:
        uint8: (H, W) for one channel, (H, W, 3) RGB for three.

    Raises:
        UnreadableImageError: this is no picture, or it is damaged, cut short or too large.
    """
    if _is_usual_jpeg(encoded):
        picture = _decode_jpeg(encoded, in_channels)
    else:
        picture = _decode_other(encoded, in_channels)
    if picture is None:
        raise UnreadableImageError(f"{name} is not a readable picture ({what_is_wrong(encoded)}); {_REMEDY}")
    return picture


def told_pixels(encoded: bytes) -> int:
    """Width times height that a picture's header tells, without decoding it; 0 where that cannot be read.

    Of numbers for which Pillow opens no picture, the smallest stands for all.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return 2 * (Image.MAX_IMAGE_PIXELS or 0) + 1
    except Exception:  # Pillow's readers of damaged files raise whatever they stumble on
        return 0


def what_is_wrong(encoded: np.ndarray) -> str:
    """Why a picture cannot be decoded, in Pillow's words where it has some."""
    if not len(encoded):
        return "the file is empty"
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(encoded)) as image:
            warnings.simplefilter("ignore")
            if is_too_large(image):
                return f"too large: {image.width} x {image.height} pixels"
            image.load()
    except UnidentifiedImageError:
        return "no picture of a known format, or damaged at its very beginning"
    except Exception as error:  # Pillow's readers of damaged files raise whatever they stumble on
        return f"damaged, cut short or too large: {printable(error)}"
    return "damaged, cut short or too large"


def _decode_jpeg(encoded, in_channels):
    kind = cv2.IMREAD_GRAYSCALE if in_channels == 1 else cv2.IMREAD_COLOR
    try:
        picture = cv2.imdecode(encoded, kind | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # a header that OpenCV does not like
        return None
    if picture is None or in_channels == 1:
        return picture
    # In place: a new array of a whole photo costs as much as half its decoding where memory is fresh.
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)


def _decode_other(encoded, in_channels):
    try:
        with warnings.catch_warnings():
            # Odd metadata and palettes are the file's business. A picture near Pillow's limit is read, beyond it not.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                return None if is_too_large(image) else _converted(image, "L" if in_channels == 1 else "RGB")
    except Exception:  # Pillow's readers of damaged files raise whatever they stumble on
        return None


def is_too_large(image: Image.Image) -> bool:
    """Whether a picture that Pillow has opened has more pixels than are decoded."""
    return image.width * image.height > (_MOST_HEAVY if image.format in _HEAVY else _MOST_PIXELS)


def _converted(image, mode):
    """The pixels of `image.convert(mode)`."""
    width, height = image.size
    if width * height <= _PART:
        return np.asarray(image.convert(mode))
    pixels = np.empty((height, width, 3)[: 2 if mode == "L" else 3], np.uint8)
    rows = max(_PART // width, 1)
    for top in range(0, height, rows):
        pixels[top : top + rows] = image.crop((0, top, width, min(top + rows, height))).convert(mode)
    return pixels


def _is_usual_jpeg(encoded):
    """Whether bytes are a JPEG of 8 bits in gray or YCbCr, not too large, by its header; false if that is damaged."""
    size, place = len(encoded), 2
    encoded = memoryview(encoded)  # whose items are plain numbers, in a tenth of the time
    if size < 4 or encoded[0] != 0xFF or encoded[1] != 0xD8:
        return False
    while place + 4 <= size:
        if encoded[place] != 0xFF:
            return False
        marker = encoded[place + 1]
        if marker == 0xFF or marker in _MARKERS_WITHOUT_SIZE:
            place += 1 if marker == 0xFF else 2
            continue
        length = encoded[place + 2] << 8 | encoded[place + 3]
        if marker in _FRAMES:
            # precision, height (2), width (2), number of components
            if place + 10 > size or encoded[place + 4] != 8 or encoded[place + 9] not in (1, 3):
                return False
            height, width = struct.unpack(">HH", encoded[place + 5 : place + 9])
            return height * width <= (_MOST_SEQUENTIAL if marker in _SEQUENTIAL else _MOST_PIXELS)
        if marker == _START_OF_SCAN or length < 2:
            return False
        adobe = marker == _APP14 and length >= 14 and encoded[place + 4 : place + 9] == b"Adobe"
        if adobe and (place + 16 > size or encoded[place + 15] != 1):  # colours that are not YCbCr
            return False
        place += 2 + length
    return False
