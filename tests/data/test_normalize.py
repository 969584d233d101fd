import numpy as np
import pytest
from mindspore import Tensor
from support.loaders import RGB, eval_loader, preprocessing, train_loader

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.normalize import Normalize
from mindrepvgg.data.source import Source

MEAN, STD = RGB["mean"], RGB["std"]
PREPARED = preprocessing(**RGB)
CROPPED = {"scale": (0.3, 1), "ratio": (0.7, 1.4), "hflip": 0.5}


def source(channels=3):
    images = np.random.default_rng(0).integers(256, size=(10, 40, 36, channels), dtype=np.uint8)
    return Source("test", ("a", "b"), np.arange(10, dtype=np.int32) % 2, images=images)


def test_pixels_are_normalised_by_the_formula(mode):
    pixels = np.random.default_rng(0).integers(256, size=(2, 5, 7, 3), dtype=np.uint8)
    got = Normalize(PREPARED)(Tensor(pixels)).asnumpy()
    expected = (pixels.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert got.dtype == np.float32


def test_what_is_normalised_already_stays_as_it_is(mode):
    images = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(Normalize(PREPARED)(Tensor(images)).asnumpy(), images)


@pytest.mark.parametrize("channels", [3, 1])
def test_training_sees_the_same_images_whoever_normalises_them(channels):
    loaders = [
        train_loader(source(channels), 4, (24, 28), auto_augment="randaug", as_uint8=as_uint8, **CROPPED, **RGB)
        for as_uint8 in (False, True)
    ]
    normalize = Normalize(PREPARED)
    for (images, labels), (pixels, same_labels) in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 24, 28, 3))
        np.testing.assert_allclose(normalize(Tensor(pixels)).asnumpy(), images, atol=1e-6)
        np.testing.assert_array_equal(labels, same_labels)


def test_evaluation_sees_the_same_images_whoever_normalises_them():
    loaders = [eval_loader(source(), 4, (24, 28), crop_pct=0.9, as_uint8=as_uint8, **RGB) for as_uint8 in (False, True)]
    for (images, *rest), (pixels, *same) in zip(*loaders, strict=True):
        got = Normalize(PREPARED)(Tensor(pixels)).asnumpy()
        np.testing.assert_allclose(got[rest[1]], images[rest[1]], atol=1e-6)
        assert all((a == b).all() for a, b in zip(rest, same, strict=True))


@pytest.mark.parametrize("change", [{"re_prob": 0.1}, {"mixup": 0.2}, {"cutmix": 1.0}])
def test_pixels_cannot_be_erased_or_mixed(change):
    assert not Augmentation(**CROPPED, **change).keeps_pixels
    with pytest.raises(ValueError, match="as_uint8 is not possible with random erasing, mixup or cutmix"):
        train_loader(source(), 4, (24, 28), as_uint8=True, **CROPPED, **RGB, **change)
