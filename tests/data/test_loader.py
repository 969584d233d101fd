"""Validation batches, files that cannot be read, and the threads of every loader."""

import math
import os
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.loaders import (
    GRAY,
    RESUME,
    RGB,
    eval_loader,
    file_source,
    flat,
    memory_source,
    normalised,
    pixels,
    train_loader,
)

from mindrepvgg.data.source import ImageFiles
from mindrepvgg.errors import DataError, RecipeError

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
