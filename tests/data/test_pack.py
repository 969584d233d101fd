"""Packing: pictures keep their bytes or are resized as by Pillow; what was stopped continues; failures are told."""

import functools
import io
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter
from PIL import Image
from support.loaders import RGB, eval_loader
from support.pictures import contents, flip, noise_picture, shards

from mindrepvgg.data import shard
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.decode import decode
from mindrepvgg.data.mindrecord import INDEX, PROGRESS, RecordFiles, shard_name
from mindrepvgg.data.pack import pack_folder
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import Source
from mindrepvgg.errors import DataError, UnreadableImageError

needs_photos = pytest.mark.skipif(labelled_photos() is None, reason="the photos come with the package foolbox")


@needs_photos
def test_photos_give_the_same_batches_bit_for_bit(tmp_path):
    photos = labelled_photos()
    for number, path in enumerate(photos.files.paths):
        target = tmp_path / "src" / f"class{number % 4}" / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    index = pack_folder(tmp_path / "src", tmp_path / "dst")[""]
    assert index["num_images"] == 20
    records = RecordFiles(tmp_path / "dst")  # the folder is not divided into splits, nor are its shards
    sources = (
        open_source("imagenet", tmp_path / "src", "val"),
        Source("imagenet", records.class_names, records.labels, files=records),
    )
    loaders = [eval_loader(source, 8, (64, 64), crop_pct=0.875, **RGB) for source in sources]
    for batches in zip(*loaders, strict=True):
        for ours, expected in zip(*batches, strict=True):
            assert ours.tobytes() == expected.tobytes()


def test_resized_pictures_are_pillows(folder, tmp_path):
    """A longer short side becomes 165, in gray or in colour; what is not longer stays as it is."""
    pack_folder(folder, tmp_path / "dst", short_side=165, quality=90)
    source, records = open_source("imagenet", folder, "train"), RecordFiles(tmp_path / "dst" / "train")
    np.testing.assert_array_equal(records.labels, source.labels)
    resized = set()
    for index, path in enumerate(source.files.paths):
        with Image.open(path) as image:
            width, height = image.size
            stored = io.BytesIO()
            size = (165, height * 165 // width) if width < height else (width * 165 // height, 165)
            image.resize(size, Image.Resampling.BICUBIC).save(stored, "JPEG", quality=90)
            larger = min(width, height) > 165
            expected = stored.getvalue() if larger else Path(path).read_bytes()
        assert records.read(index).tobytes() == expected, path
        assert not larger or min(decode(records.read(index), path, 3).shape[:2]) == 165
        resized.add((larger, image.mode, Path(path).suffix))
    assert len(resized) == 12, "every kind of picture has to be there"


def test_a_picture_larger_than_a_usual_page(tmp_path):
    path = noise_picture(tmp_path / "src" / "a" / "large.bmp", 2000, 1500, 0)
    assert path.stat().st_size > shard.USUAL_PAGE
    noise_picture(tmp_path / "src" / "b" / "small.png", 8, 8, 1)
    pack_folder(tmp_path / "src", tmp_path / "dst", shard_size=1)
    records = RecordFiles(tmp_path / "dst")
    assert [records.read(index).nbytes for index in range(2)] == [path.stat().st_size, 8 * 8 * 3 + 76]
    assert len(shards(tmp_path / "dst")) == 2


def test_a_name_that_is_not_utf8_is_told_in_escapes(tmp_path):
    path = noise_picture(tmp_path / "src" / "a" / "1.png", 8, 8, 0)
    os.rename(path, os.fsencode(path.parent) + b"/\xff'1.png")
    pack_folder(tmp_path / "src", tmp_path / "dst")
    assert RecordFiles(tmp_path / "dst").name(0).startswith("a/\\xff'1.png in ")


# Stopped and taken up again


class Stop(Exception):
    """Ends a run where a test wants it."""


@pytest.fixture
def writing(monkeypatch):
    """The list of the shards that are written; with writing.stop = N the run stops in the midst of number N of it."""

    class Writing(list):
        stop = None

    written, write = Writing(), shard.write_shard

    def stopping(path, rows, page_size):
        if len(written) == written.stop:
            path.write_bytes(b"half a shard")
            raise Stop
        written.append(path.name)
        write(path, rows, page_size)

    monkeypatch.setattr(shard, "write_shard", stopping)
    return written


@pytest.mark.parametrize("options", [{}, {"short_side": 200}])
def test_a_stopped_run_continues_to_the_same_files(folder, tmp_path, writing, options):
    whole, dst = tmp_path / "whole", tmp_path / "dst"
    options = {"shard_size": 1, **options}
    pack_folder(folder, whole, num_parallel_workers=2, **options)
    count = len(shards(whole / "train"))
    assert count >= 2
    writing.clear()
    writing.stop = count - 1
    with pytest.raises(Stop):
        pack_folder(folder, dst, **options)
    assert len(shards(dst / "train")) == count - 1
    with pytest.raises(DataError, match="is not packed to its end"):
        RecordFiles(dst / "train")
    # What a killed process leaves: a work folder, and a shard that is in its place but not in the progress.
    (dst / "train" / "tmpx.partial").mkdir()
    (dst / "train" / shard_name(count - 1)).write_bytes(b"?")
    writing.clear()
    writing.stop = None
    pack_folder(folder, dst, **options)
    assert writing[0] == shard_name(count - 1)
    assert contents(dst) == contents(whole)


def test_other_options_or_another_source_are_not_mixed(folder, tmp_path, writing, packed):
    dst = tmp_path / "dst"
    writing.stop = 1
    with pytest.raises(Stop):
        pack_folder(folder, dst, shard_size=1)
    writing.stop = None
    before = contents(dst)
    for options, message in (
        ({"shard_size": 2}, r"packed with shard_size 1 \(now 2\); pack as before"),
        (
            {"shard_size": 1, "short_side": 99},
            r"packed with short_side not given \(now 99\), quality not given \(now 95\)",
        ),
    ):
        with pytest.raises(DataError, match=message):
            pack_folder(folder, dst, **options)
    other = shutil.copytree(folder, tmp_path / "other")
    assert contents(dst) == before
    next(other.rglob("*.png")).write_bytes(b"longer or shorter")
    with pytest.raises(DataError, match="packed from another folder, or its pictures have changed since"):
        pack_folder(other, dst, shard_size=1)
    assert contents(dst) == before
    moved = shutil.copytree(folder, tmp_path / "moved")  # where it lies does not matter
    pack_folder(moved, dst, shard_size=1)
    assert contents(dst) == contents(packed)


def test_packing_again_checks_and_mends(folder, packed, tmp_path, writing):
    dst = shutil.copytree(packed, tmp_path / "dst")
    pack_folder(folder, dst, shard_size=1)
    (dst / "val" / INDEX).rename(dst / "val" / PROGRESS)  # stopped before the very last step
    pack_folder(folder, dst, shard_size=1)
    assert not writing
    assert contents(dst) == contents(packed)
    flip(dst / "train" / shard_name(1), -100_000)  # inside of a picture
    pack_folder(folder, dst, shard_size=1)
    assert writing == [Path(shard).name for shard in shards(dst / "train")[1:]]
    assert contents(dst) == contents(packed)
    writing.clear()
    (dst / "train" / INDEX).write_text("{")
    with pytest.raises(DataError, match=f"{INDEX} is damaged: it is not JSON; .* --overwrite"):
        pack_folder(folder, dst, shard_size=1)
    pack_folder(folder, dst, shard_size=1, overwrite=True)
    assert len(writing) == len([*dst.rglob("*.mindrecord")])
    assert contents(dst) == contents(packed)


# What goes wrong


def test_unreadable_pictures_stop_or_are_left_out(tmp_path):
    for number in range(4):
        noise_picture(tmp_path / "src" / "ab"[number % 2] / f"{number}.png", 16, 16, number)
    cut_short = tmp_path / "src" / "a" / "2.png"
    cut_short.write_bytes(cut_short.read_bytes()[:300])
    dst = tmp_path / "dst"
    with pytest.raises(UnreadableImageError, match=r"a/2\.png is not a readable picture"):
        pack_folder(tmp_path / "src", dst)
    with pytest.raises(DataError, match="is not packed to its end"):
        RecordFiles(dst)
    index = pack_folder(tmp_path / "src", dst, on_bad_image="skip")[""]  # it continues
    assert [number for number, _ in index["left_out"]] == [1]
    assert "a/2.png is not a readable picture" in index["left_out"][0][1]
    records = RecordFiles(dst)
    assert [records.name(number).split()[0] for number in range(3)] == ["a/0.png", "b/1.png", "b/3.png"]
    np.testing.assert_array_equal(records.labels, [0, 1, 1])
    with pytest.raises(UnreadableImageError, match=r"a/2\.png"):
        pack_folder(tmp_path / "src", dst)
    for path in (tmp_path / "src").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no picture can be read; the first: "):
        pack_folder(tmp_path / "src", dst, on_bad_image="skip", overwrite=True)
    assert not shards(dst)


def test_a_disk_without_room_is_one_error_and_leaves_no_shard(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*00000.mindrecord: File too large \(\d+ MB are needed\)"):
            pack_folder(folder, tmp_path / "dst")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "dst").rglob("*") if path.is_file()] == [PROGRESS]
    pack_folder(folder, tmp_path / "dst")
    assert len(RecordFiles(tmp_path / "dst" / "train")) == 40


def test_what_mindspore_does_not_write_is_noticed(folder, tmp_path, monkeypatch):
    def lose_a_row(self, rows, parallel_writer=False):
        return write(self, rows[1:], parallel_writer)

    def lose_a_byte(self, rows, parallel_writer=False):
        return write(self, [{**row, "image": row["image"][:-1] + b"?"} for row in rows], parallel_writer)

    write = FileWriter.write_raw_data
    for writing in (lose_a_row, lose_a_byte):
        monkeypatch.setattr(FileWriter, "write_raw_data", writing)
        with pytest.raises(DataError, match=r"00000.mindrecord is not read back as it was written; check the disk"):
            pack_folder(folder, tmp_path / "dst")
        assert not shards(tmp_path / "dst" / "train")


def test_mindspores_own_error_is_its_line_that_tells(folder, tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("Exception thrown.\n---\n[ERROR] No free disk to be used.\n---\n- C++ Call Stack:\nx.cc(1)")

    monkeypatch.setattr(FileWriter, "commit", refuse)
    with pytest.raises(DataError, match=r"cannot write .*00000.mindrecord: No free disk to be used\.$"):
        pack_folder(folder, tmp_path / "dst")


@pytest.mark.compat
def test_the_command_packs_and_answers_in_one_line(folder, packed, tmp_path, call):
    call = functools.partial(call, "pack")
    dst = tmp_path / "dst"
    status, out, err = call(folder, dst, "--shard_size", 1, "--num_parallel_workers", 2)
    assert (status, err) == (0, "")
    assert out.startswith(f"{dst / 'train'}: 40 pictures of 3 classes in 3 files, ")
    assert out.count("read back and compared\n") == 2
    assert contents(dst) == contents(packed)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    file = next(folder.rglob("*.png"))
    for arguments, message in (
        ((folder, folder / "packed"), "lies in .*, whose folders are classes; give a folder outside of it"),
        ((folder, folder), "whose folders are classes"),
        ((file, tmp_path / "x"), "is a file; give the folder that holds train and val"),
        ((folder, file), "is a file; give a folder to pack into"),
        ((dst, tmp_path / "x"), "is packed already; give a folder of pictures"),
        ((folder / "val", tmp_path / "full"), r"holds other things \('notes.txt'\); give a new folder"),
        ((folder / "val", dst / "train"), r"packed with shard_size 1 \(now 512\)"),
        ((folder / "val", dst), r"holds other things \('train', 'val'\)"),
        ((folder, packed / "val"), "holds another packed data set"),
        ((folder, "/proc/none/x"), "No such file or directory"),
        ((folder, tmp_path / "x", "--quality", 96), r"quality \(=96\) must be in 1 ... 95"),
        ((folder, tmp_path / "x", "--short_side", 0), r"short_side \(=0\) must be at least 1"),
        ((folder, tmp_path / "x", "--shard_size", 5000), r"shard_size \(=5000\) must be in 1 ... 4096, in MB"),
        (
            (folder, tmp_path / "x", "--num_parallel_workers", 0),
            r"num_parallel_workers \(=0\) must be at least 1",
        ),
    ):
        status, out, err = call(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("error: ")
        assert re.search(message, err), err
    assert not (tmp_path / "x").exists()
