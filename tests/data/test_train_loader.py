"""Training batches: what is done to pictures, their order, ranks, targets, and how an epoch is resumed."""

import hashlib
import itertools
import os
import random
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.loaders import GRAY, RESUME, RGB, file_source, flat, memory_source, normalised, pixels, train_loader

from mindrepvgg.data.source import Source
from mindrepvgg.errors import DataError

STANDARD = {"scale": (0.08, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}
EVERYTHING = {**STANDARD, "vflip": 0.5, "auto_augment": "randaug-n3", "re_prob": 0.5, "re_value": 9, "mixup": 0.8,
              "cutmix": 1, "cutmix_prob": 0.7, "aug_repeats": 3}  # fmt: skip


def labels_of(batches):
    return [batch[1].tolist() for batch in batches]


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


def test_with_padding_the_resized_picture_is_shifted_and_not_cropped():
    source = Source("test", ("a",), np.zeros(20, np.int32), images=np.full((20, 64, 48, 3), 255, np.uint8))
    ((images, _),) = train_loader(source, 20, (32, 32), **RGB, scale=(0.1, 0.1), crop_padding=3).epoch(0)
    seen = pixels(images, RGB)[..., 0] > 254
    assert seen[:, 3:-3, 3:-3].all()
    sides = {(*(~window.any(1)).nonzero()[0], *(~window.any(0)).nonzero()[0]) for window in seen}
    assert len(sides) > 10


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
