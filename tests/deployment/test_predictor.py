"""Pictures in memory are predicted as files are."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support import FROZEN

from mindrepvgg import api
from mindrepvgg.deployment.predictor import Predictor
from mindrepvgg.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of several sizes and formats, and one that is cut."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, kind in enumerate(("png", "jpg", "bmp", "png", "jpg", "jpg")):
        pixels = rng.integers(40 * number, 40 * number + 56, (6, 8, 3), np.uint8)  # dark to bright
        Image.fromarray(pixels).resize((60 + 9 * number, 90)).save(folder / f"{number}.{kind}")
    paths = sorted(folder.iterdir())
    paths[-1].write_bytes(paths[-1].read_bytes()[:500])
    return paths


@pytest.fixture(scope="module")
def expected(files):
    return list(api.predict(FROZEN / "float32.onnx", files, topk=5))


def indices(predictions):
    return [[index for _, index, _ in found.top] for found in predictions]


def test_pictures_in_memory_have_the_classes_that_predict_tells(files, expected):
    found = Predictor(FROZEN / "float32.onnx", topk=5)([(str(path), path.read_bytes()) for path in files])
    assert len({tuple(top) for top in indices(expected)}) > 2, "or any answer would do"
    assert indices(found) == indices(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.file, one.error) == (other.file, other.error)
        np.testing.assert_allclose([row[2] for row in one.top], [row[2] for row in other.top], rtol=1e-5)
    assert [one.error is None for one in found] == [True] * 5 + [False]


def test_threads_share_it(files, expected):
    predict = Predictor(FROZEN / "float32.onnx", topk=5, num_threads=1)
    ones = [[(str(path), path.read_bytes())] for path in files]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert indices(found for [found] in pool.map(predict, ones)) == indices(expected)


def test_a_checkpoint_is_to_be_exported_first():
    with pytest.raises(UserError, match=r"^net\.ckpt is no exported file"):
        Predictor("net.ckpt")
