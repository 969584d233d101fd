"""MindRecord: what is packed is what MindSpore reads; what is damaged is refused; what was stopped continues."""

import functools
import io
import json
import os
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mindspore.dataset import MindDataset
from mindspore.mindrecord import FileReader, FileWriter
from PIL import Image
from support.loaders import RGB, eval_loader

from mindrepvgg.data import shard
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.decode import decode
from mindrepvgg.data.mindrecord import HEADER_SIZE, INDEX, PROGRESS, RecordFiles, is_record_folder, shard_name
from mindrepvgg.data.pack import pack_folder
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import Source
from mindrepvgg.errors import DataError, UnreadableImageError

ROOT = Path(__file__).parents[2]
CLASSES = ("Füße", "猫 и собака", "n01")
needs_photos = pytest.mark.skipif(labelled_photos() is None, reason="the photos come with the package foolbox")


def picture(path, height, width, seed, mode="RGB"):
    """Write noise, which does not compress: a large file for its size."""
    shape = (height, width) if mode == "L" else (height, width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of three classes: about 3 MB to train on, of PNG and JPEG, and 0.2 MB to validate."""
    root = tmp_path_factory.mktemp("imägenet")
    for split, count in (("train", 40), ("val", 6)):
        for number in range(count):
            suffix = ("png", "jpg", "JPEG")[number % 3]
            name = f"{split}/{CLASSES[number % 3]}/деталь '{number % 2}/写真 {number}.{suffix}"
            picture(root / name, 150 + number, 320 - 4 * number, number, "L" if number % 5 == 1 else "RGB")
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The folder in shards of 1 MB."""
    dst = tmp_path_factory.mktemp("päcked") / "a b"
    pack_folder(folder, dst, shard_size=1, num_parallel_workers=3)
    return dst


@pytest.fixture
def copy(packed, tmp_path):
    """A copy of the training split to damage."""
    return shutil.copytree(packed / "train", tmp_path / "copy")


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def shards(root):
    return sorted(map(str, root.glob("*.mindrecord")))


# ------------------------------------------------------------------------------------------------------- what is packed


@pytest.mark.compat
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_packed_split_is_the_source_bit_for_bit(folder, packed, split):
    source, records = open_source("imagenet", folder, split), RecordFiles(packed / split)
    assert records.class_names == source.class_names == tuple(sorted(CLASSES))
    assert (len(records), records.labels.dtype) == (len(source), np.int32)
    np.testing.assert_array_equal(records.labels, source.labels)
    for index in range(len(source)):
        read = records.read(index)
        assert (read.dtype, read.ndim) == (np.uint8, 1)
        assert read.tobytes() == Path(source.files.paths[index]).read_bytes()
        name, _, shard = records.name(index).partition(" in ")
        assert name == Path(source.files.paths[index]).relative_to(folder).as_posix()
        assert shard in shards(packed / split)


@pytest.mark.compat
def test_every_row_is_what_mindspore_reads(packed):
    """Row by row against MindDataset over all shards, and against FileReader, which gives them in any order."""
    records, files = RecordFiles(packed / "train"), shards(packed / "train")
    assert len(files) >= 3
    rows = MindDataset(files, shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True)
    found = [(str(row["name"]), int(row["label"]), row["image"].tobytes()) for row in rows]
    ours = [
        (records.name(index).partition(" in ")[0], int(records.labels[index]), records.read(index).tobytes())
        for index in range(len(records))
    ]
    assert found == ours
    reader = FileReader(files)
    try:
        theirs = [(row["name"], int(row["label"]), bytes(row["image"])) for row in reader.get_next()]
    finally:
        reader.close()
    assert sorted(theirs) == sorted(ours)


def test_any_order_from_many_threads(packed):
    records = RecordFiles(packed / "train")
    expected = [records.read(index).tobytes() for index in range(len(records))]
    order = np.random.default_rng(0).integers(len(records), size=2000).tolist()
    fresh = RecordFiles(packed / "train")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: (fresh.name(index), fresh.read(index).tobytes()), order))
    assert found == [(records.name(index), expected[index]) for index in order]
    for index in (-1, len(records)):
        with pytest.raises(IndexError, match=f"picture {index} of {len(records)}"):
            records.read(index)


def test_descriptors_are_closed_with_the_reader(copy):
    def open_files():
        return [name for name in os.listdir("/proc/self/fd") if str(copy) in os.path.realpath(f"/proc/self/fd/{name}")]

    records = RecordFiles(copy)
    assert len(open_files()) == len(shards(copy))
    del records
    assert not open_files()
    Path(shards(copy)[1]).write_bytes(b"")
    with pytest.raises(DataError):
        RecordFiles(copy)
    assert not open_files()


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
    path = picture(tmp_path / "src" / "a" / "large.bmp", 2000, 1500, 0)
    assert path.stat().st_size > shard.USUAL_PAGE
    picture(tmp_path / "src" / "b" / "small.png", 8, 8, 1)
    pack_folder(tmp_path / "src", tmp_path / "dst", shard_size=1)
    records = RecordFiles(tmp_path / "dst")
    assert [records.read(index).nbytes for index in range(2)] == [path.stat().st_size, 8 * 8 * 3 + 76]
    assert len(shards(tmp_path / "dst")) == 2


def test_a_name_that_is_not_utf8_is_told_in_escapes(tmp_path):
    path = picture(tmp_path / "src" / "a" / "1.png", 8, 8, 0)
    os.rename(path, os.fsencode(path.parent) + b"/\xff'1.png")
    pack_folder(tmp_path / "src", tmp_path / "dst")
    assert RecordFiles(tmp_path / "dst").name(0).startswith("a/\\xff'1.png in ")


# ------------------------------------------------------------------------------------------------------ what is refused


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


FIRST, SECOND = "00000.mindrecord", "00001.mindrecord"
DAMAGES = {
    "cut": (lambda root: cut(root / SECOND), f"{SECOND} has .* bytes, not .*: cut short or another's"),
    "empty": (lambda root: (root / FIRST).write_bytes(b""), f"{FIRST} has 0 bytes, not "),
    "length": (lambda root: flip(root / FIRST, 7), f"{FIRST} does not begin as its index says: damaged"),
    "header": (lambda root: flip(root / FIRST, 40), f"{FIRST} does not begin as its index says: damaged"),
    "missing": (lambda root: (root / SECOND).unlink(), f"{SECOND} is missing; copy it there or pack the folder again"),
    "no db": (lambda root: (root / f"{FIRST}.db").unlink(), f"{FIRST}.db is missing; copy it there or pack"),
    "db": (lambda root: flip(root / f"{FIRST}.db", 3000), f"{FIRST}.db is not the one its index names: damaged"),
    "index": (lambda root: (root / INDEX).unlink(), f"has no {INDEX}, which says what its shards hold"),
    "cut index": (lambda root: cut(root / INDEX) or cut(root / INDEX), f"{INDEX} is damaged: it is not JSON"),
    "foreign index": (lambda root: (root / INDEX).write_text("[]"), f"{INDEX} is not an index of mindrepvgg pack"),
    "version": (lambda root: edit(root / INDEX, version=2), "is of format version 2, not 1; pack the folder again"),
    "shards": (lambda root: edit(root / INDEX, shards=[{}]), "is damaged: its parts do not fit together"),
    "number": (lambda root: edit(root / INDEX, num_images=3), "is damaged: its parts do not fit together"),
    "classes": (lambda root: edit(root / INDEX, class_names=["a"]), "does not fit 0000.*: rows, places"),
    "half": (lambda root: (root / INDEX).rename(root / PROGRESS), "is not packed to its end; run .* which continues"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_split_is_refused(copy, damage):
    act, message = DAMAGES[damage]
    assert len(RecordFiles(copy)) == 40
    act(copy)
    with pytest.raises(DataError, match=message):
        RecordFiles(copy)
    assert is_record_folder(copy)


@pytest.mark.parametrize("suffixes", [("",), (".db",), ("", ".db")])
def test_shards_of_another_data_set_are_refused(copy, packed, suffixes):
    """The other split's shard, padded to the size the index names: it is told by more than its size."""
    for suffix in suffixes:
        ours = copy / f"{FIRST}{suffix}"
        other = (packed / "val" / ours.name).read_bytes()
        ours.write_bytes(other.ljust(ours.stat().st_size, b"\0")[: ours.stat().st_size])
    with pytest.raises(DataError, match="damaged or another's"):
        RecordFiles(copy)


def test_two_shards_changed_for_each_other_are_refused(copy):
    for suffix in ("", ".db"):
        first, second = (copy / f"{name}{suffix}" for name in (FIRST, SECOND))
        first.rename(copy / "x")
        second.rename(first)
        (copy / "x").rename(second)
    with pytest.raises(DataError, match=f"{FIRST} "):
        RecordFiles(copy)


def test_pages_that_moved_are_noticed_when_reading(copy):
    records = RecordFiles(copy)
    path = Path(shards(copy)[0])
    content = path.read_bytes()
    path.write_bytes(content[:HEADER_SIZE] + content[HEADER_SIZE + 1 :] + b"\0")
    with pytest.raises(DataError, match=r"/写真 \d+\..* in .*00000.mindrecord is damaged: no picture of \d+ bytes"):
        RecordFiles(copy).read(3)
    os.truncate(path, 1000)
    with pytest.raises(DataError, match="is damaged: no picture of"):
        records.read(0)


def test_which_folders_hold_records(folder, packed, tmp_path):
    assert is_record_folder(packed / "val")
    assert not is_record_folder(packed)
    assert not is_record_folder(folder / "train")
    assert not is_record_folder(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------- stopped and taken up again


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
        ({"shard_size": 2}, "packed with shard_size 1, not 2; pack as before"),
        ({"shard_size": 1, "short_side": 99}, "packed with short_side None, not 99, quality None, not 95"),
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
    flip(dst / "train" / SECOND, -100_000)  # inside of a picture
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


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_unreadable_pictures_stop_or_are_left_out(tmp_path):
    for number in range(4):
        picture(tmp_path / "src" / "ab"[number % 2] / f"{number}.png", 16, 16, number)
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
        ((folder / "val", dst / "train"), "packed with shard_size 1, not 512"),
        ((folder / "val", dst), r"holds other things \('train', 'val'\)"),
        ((folder, packed / "val"), "holds another packed data set"),
        ((folder, "/proc/none/x"), "No such file or directory"),
        ((folder, tmp_path / "x", "--quality", 96), r"quality \(=96\) must be in 1 ... 95"),
        ((folder, tmp_path / "x", "--short_side", 0), r"short_side \(=0\) must be at least 1"),
        ((folder, tmp_path / "x", "--shard_size", 5000), r"shard_size \(=5000\) must be in 1 ... 4096, in MB"),
        ((folder, tmp_path / "x", "--num_parallel_workers", 0), r"num_parallel_workers \(=0\) must be at least 1"),
    ):
        status, out, err = call(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("error: ")
        assert re.search(message, err), err
    assert not (tmp_path / "x").exists()


def same_source(packed, files):
    """Whether two sources hold the same bytes, labels and classes in the same order."""
    assert packed.class_names == files.class_names
    np.testing.assert_array_equal(packed.labels, files.labels)
    for index in range(len(files)):
        np.testing.assert_array_equal(packed.files.read(index), files.files.read(index))
    return True


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_dir_may_be_a_packed_folder(folder, packed, split):
    assert same_source(*(open_source("imagenet", root, split, num_classes=3) for root in (packed, folder)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_packed_folder_of_classes_is_divided_like_the_folder_itself(folder, tmp_path, split):
    pack_folder(folder / "train", tmp_path / "packed")
    parts = [open_source("imagenet", root, split, val_share=0.25) for root in (folder / "train", tmp_path / "packed")]
    assert 0 < len(parts[0]) < 40
    assert same_source(parts[1], parts[0])
    assert "写真" in parts[1].name(0)


def test_packed_splits_of_other_classes_are_refused(packed, tmp_path):
    picture(tmp_path / "src" / "val" / "other" / "a.png", 8, 8, 0)
    pack_folder(tmp_path / "src", tmp_path / "dst")
    shutil.copytree(packed / "train", tmp_path / "dst" / "train")
    with pytest.raises(DataError, match=r"the classes of .*val and .*train differ: .* missing, 'other' not in train"):
        open_source("imagenet", tmp_path / "dst", "val")
