"""The pictures that ranges are taken from."""

import numpy as np
import pytest
from PIL import Image
from support.int8 import loader_recipe

from mindrepvgg.data.datasets import open_source
from mindrepvgg.deployment.int8.calibration import calibration_source
from mindrepvgg.deployment.int8.prepare import QuantizeOptions
from mindrepvgg.deployment.int8.quantize import quantize_checkpoint
from mindrepvgg.errors import DataError


def test_calibration_pictures_are_spread_and_mixed():
    source, what = calibration_source(loader_recipe(), None, 100, open_source("mnist5k", None, "val"))
    assert what == "training images of mnist5k"
    assert np.bincount(source.labels).tolist() == [10] * 10
    assert len(set(source.labels[:32])) > 7, "the first batch has nearly every digit"
    train = {picture.tobytes() for picture in open_source("mnist5k", None, "train").images}
    assert {picture.tobytes() for picture in source.images} <= train


def test_a_folder_without_labels_calibrates(checkpoint, tmp_path):
    source = open_source("mnist5k", None, "train")
    for index in (*range(6), *range(2000, 2003)):
        folder = tmp_path / "pictures" / ("many" if index < 6 else "few")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.images[index][..., 0]).save(folder / f"{index}.png")
    options = QuantizeOptions(
        weight_bits=7,
        calibration=str(tmp_path / "pictures"),
        calibration_images=6,
        keep_float=(),
        allow_drop=True,
        limit=100,
    )
    found = quantize_checkpoint(checkpoint, tmp_path / "folder.onnx", options)
    assert found.facts["calibration"] == f"6 images of {tmp_path / 'pictures'}"
    assert found.images == 100


def test_the_shares_of_an_image_folder(checkpoint, folders, tmp_path):
    options = QuantizeOptions(weight_bits=7, calibration_images=10, keep_float=(), allow_drop=True)
    overrides = {"dataset": "imagenet", "data_dir": str(folders)}
    found = quantize_checkpoint(checkpoint, tmp_path / "out.onnx", options, overrides=overrides)
    assert found.facts["calibration"] == f"10 training images of {folders.name}"
    assert found.images == 20


@pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["its own", "others"])
def test_a_flat_folder_is_judged_by_what_float32_says(checkpoint, tmp_path, own):
    source = open_source("mnist5k", None, "val")
    for folder, start in (("judged", 0), ("others", 1)):
        (tmp_path / folder).mkdir()
        for index in range(start, 160, 8):
            Image.fromarray(source.images[index][..., 0]).save(tmp_path / folder / f"{index}.png")
    options = QuantizeOptions(
        weight_bits=7, keep_float=(), allow_drop=True, calibration=None if own else str(tmp_path / "others")
    )
    overrides = {"dataset": "folder", "data_dir": str(tmp_path / "judged")}
    found = quantize_checkpoint(checkpoint, tmp_path / "out.onnx", options, overrides=overrides)
    assert found.images == (10 if own else 20)
    assert found.float32.top1 == 100
    assert found.drop == pytest.approx(100 * (1 - found.agreement))
    assert "validation images of judged without labels (float32's classes count as right)" in found.format()
    if own:
        assert found.facts["calibration"] == "10 others of the same folder"
        (tmp_path / "one").mkdir()
        (tmp_path / "judged" / "0.png").rename(tmp_path / "one" / "0.png")
        with pytest.raises(DataError, match="one picture without a label cannot both calibrate and judge"):
            quantize_checkpoint(
                checkpoint, tmp_path / "no.onnx", options, overrides={**overrides, "data_dir": str(tmp_path / "one")}
            )
