import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mindrepvgg.data import decode as decode_module
from mindrepvgg.data.decode import _is_usual_jpeg, decode, read_file, told_pixels
from mindrepvgg.errors import DataError, UnreadableImageError

GRADIENT = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)


@pytest.fixture(scope="module")
def picture(photos):
    """A small real picture."""
    return Image.open(photos[0]).convert("RGB").resize((60, 40))


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return np.frombuffer(stream.getvalue(), np.uint8)


def with_alpha(picture):
    result = picture.copy()
    result.putalpha(Image.linear_gradient("L").resize(picture.size))
    return result


def frames(picture):
    """The picture, and what follows it in an animation."""
    return {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return {"exif": tags}


def as_torchvision(data, mode="RGB"):
    """What ImageFolder's default loader makes of it."""
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


CASES = {
    "jpeg": lambda p: encoded(p, "JPEG"),
    "progressive jpeg": lambda p: encoded(p, "JPEG", progressive=True),
    "jpeg without chroma subsampling": lambda p: encoded(p, "JPEG", subsampling=0),
    "gray jpeg": lambda p: encoded(p.convert("L"), "JPEG"),
    "CMYK jpeg": lambda p: encoded(p.convert("CMYK"), "JPEG"),
    "RGB jpeg": lambda p: encoded(p, "JPEG", keep_rgb=True),
    "turned jpeg": lambda p: encoded(p, "JPEG", **exif(6)),
    "mirrored jpeg": lambda p: encoded(p, "JPEG", **exif(2)),
    "turned png": lambda p: encoded(p, "PNG", **exif(8)),
    "png": lambda p: encoded(p, "PNG"),
    "gray png": lambda p: encoded(p.convert("L"), "PNG"),
    "png with alpha": lambda p: encoded(with_alpha(p), "PNG"),
    "gray png with alpha": lambda p: encoded(with_alpha(p).convert("LA"), "PNG"),
    "palette png": lambda p: encoded(p.convert("P"), "PNG"),
    "palette png with a transparent colour": lambda p: encoded(p.convert("P"), "PNG", transparency=3),
    "black and white png": lambda p: encoded(p.convert("1"), "PNG"),
    "16-bit gray png": lambda _: encoded(Image.fromarray(GRADIENT), "PNG"),
    "16-bit colour png": lambda _: np.asarray(cv2.imencode(".png", np.dstack([GRADIENT] * 3))[1]).ravel(),
    "16-bit tiff": lambda _: encoded(Image.fromarray(GRADIENT), "TIFF"),
    "float tiff": lambda p: encoded(p.convert("F"), "TIFF"),
    "CMYK tiff": lambda p: encoded(p.convert("CMYK"), "TIFF"),
    "tiff of several pages": lambda p: encoded(p, "TIFF", **frames(p)),
    "animated png": lambda p: encoded(p, "PNG", **frames(p)),
    "animated webp": lambda p: encoded(p, "WEBP", lossless=True, **frames(p)),
    "animated gif": lambda p: encoded(p, "GIF", **frames(p)),
    "webp": lambda p: encoded(p, "WEBP"),
    "webp with alpha": lambda p: encoded(with_alpha(p), "WEBP"),
    "bmp": lambda p: encoded(p, "BMP"),
    "ppm": lambda p: encoded(p, "PPM"),
    "one pixel": lambda p: encoded(p.resize((1, 1)), "JPEG"),
}


@pytest.mark.parametrize("case", CASES)
def test_colour_is_what_torchvision_reads(case, picture):
    data = CASES[case](picture)
    got = decode(data, case, 3)
    assert (got.dtype, got.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(got, as_torchvision(data))


def test_photos_are_what_torchvision_reads(photos):
    for path in photos:
        data = read_file(path)
        assert _is_usual_jpeg(data), "Pillow would take twice the time"
        np.testing.assert_array_equal(decode(data, path, 3), as_torchvision(data))


@pytest.mark.parametrize("case", CASES)
def test_gray_is_a_jpegs_own_luma_and_else_pillows(case, picture):
    data = CASES[case](picture)
    expected = Image.open(io.BytesIO(data))
    if _is_usual_jpeg(data):
        expected.draft("L", expected.size)  # the luma as it is stored
    np.testing.assert_array_equal(decode(data, case, 1), np.asarray(expected.convert("L")))


@pytest.mark.parametrize("name", ["蜻蜓.jpg", "стрекоза.png", "mañana ☀.webp", "a\nb.jpg"])
def test_names_may_be_in_any_script(name, picture, tmp_path):
    path = tmp_path / name
    picture.save(path)
    data = read_file(path)
    np.testing.assert_array_equal(decode(data, path, 3), as_torchvision(data))


def test_cut_files_are_refused_wherever_pillow_refuses_them(photos):
    """Also inside the header, where MindSpore's decoder ends the process or never returns."""
    data = read_file(photos[0])
    for size in (*range(0, 700, 3), *range(700, len(data), len(data) // 25)):
        with pytest.raises(UnreadableImageError, match=r"^a\.jpg is not a readable picture \(.+\); replace or remove"):
            decode(data[:size], "a.jpg", 3)
        with pytest.raises(OSError):  # noqa: PT011 - UnidentifiedImageError, or truncated
            as_torchvision(data[:size])


@pytest.mark.parametrize("case", ["png", "16-bit gray png", "CMYK tiff", "webp", "bmp", "gray png with alpha", "ppm"])
def test_other_cut_files_are_refused(case, picture):
    data = CASES[case](picture)
    for share in (0.02, 0.3, 0.6):
        with pytest.raises(DataError, match="not a readable picture"):
            decode(data[: int(share * len(data))], "x", 3)


def test_damaged_bytes_never_raise_anything_else(picture):
    rng = np.random.default_rng(0)
    refused = 0
    for case in CASES:
        data = CASES[case](picture)
        for _ in range(12):
            damaged = data.copy()
            damaged[rng.integers(len(data), size=4)] = rng.integers(256, size=4)
            try:
                got = decode(damaged, case, 3)
            except UnreadableImageError:
                refused += 1
            else:
                assert got.ndim == 3
    assert refused >= 20, "or nothing was damaged"


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", b"\xff\xd8\xff\xff\xff\xff"])
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(UnreadableImageError, match=r"^note\.txt is not a readable picture"):
        decode(np.frombuffer(content, np.uint8), "note.txt", 3)


def test_a_picture_of_absurd_size_is_refused(picture):
    data = encoded(picture, "BMP").copy()
    data[18:26] = np.frombuffer(struct.pack("<ii", 60000, 60000), np.uint8)
    with pytest.raises(UnreadableImageError, match="too large"):
        decode(data, "x.bmp", 3)


def test_a_dds_file_of_an_unknown_kind_is_refused(picture):
    """Pillow raises NotImplementedError."""
    data = encoded(picture, "DDS").copy()
    data[80:84] = 0
    with pytest.raises(UnreadableImageError, match="not a readable picture"):
        decode(data, "x.dds", 3)


def claiming(picture, kind, height, width):
    """A small file whose header tells another size."""
    if kind == "PNG":
        data = bytearray(encoded(picture, kind))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return np.frombuffer(bytes(data), np.uint8)
    data = bytearray(encoded(picture, "JPEG", progressive=kind == "progressive"))
    place = data.find(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return np.frombuffer(bytes(data), np.uint8)


@pytest.mark.parametrize(
    ("kind", "side"), [("JPEG", 12_300), ("JPEG", 30_000), ("progressive", 9_000), ("PNG", 9_000), ("PNG", 13_000)]
)
def test_a_small_file_takes_no_gigabyte(picture, kind, side):
    data = claiming(picture, kind, side, side)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="too large"):
        decode(data, "x", 3)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_what_a_header_tells_is_read_without_decoding(picture):
    assert told_pixels(encoded(picture, "JPEG").tobytes()) == picture.width * picture.height
    assert told_pixels(claiming(picture, "PNG", 9_000, 10_000).tobytes()) == 9 * 10**7
    assert told_pixels(claiming(picture, "PNG", 60_000, 50_000).tobytes()) > 10**8
    assert told_pixels(encoded(picture, "PNG").tobytes()[:20]) == told_pixels(b"text") == told_pixels(b"") == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
@pytest.mark.parametrize("into", ["L", "RGB"])
def test_a_large_picture_is_converted_in_parts_to_the_same_pixels(picture, mode, into, monkeypatch):
    image = Image.fromarray(GRADIENT) if mode in ("I;16", "I", "F") else picture
    image = image if image.mode == mode else image.convert(mode)
    whole = decode_module._converted(image, into)
    monkeypatch.setattr(decode_module, "_PART", 60 * 7)
    np.testing.assert_array_equal(decode_module._converted(image, into), whole)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg does not exist, expected a picture"):
        read_file(tmp_path / "gone.jpg")
