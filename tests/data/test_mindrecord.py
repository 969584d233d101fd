"""MindRecord: what is packed is what MindSpore reads; what is damaged is refused."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mindspore.dataset import MindDataset
from mindspore.mindrecord import FileReader
from support.pictures import CLASSES, flip, noise_picture, shards

from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.mindrecord import HEADER_SIZE, INDEX, PROGRESS, RecordFiles, is_record_folder
from mindrepvgg.data.pack import pack_folder
from mindrepvgg.errors import DataError


@pytest.fixture
def copy(packed, tmp_path):
    """A copy of the training split to damage."""
    return shutil.copytree(packed / "train", tmp_path / "copy")


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


# What is refused


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


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


# A packed folder as data_dir


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
    noise_picture(tmp_path / "src" / "val" / "other" / "a.png", 8, 8, 0)
    pack_folder(tmp_path / "src", tmp_path / "dst")
    shutil.copytree(packed / "train", tmp_path / "dst" / "train")
    with pytest.raises(DataError, match=r"the classes of .*val and .*train differ: .* missing, 'other' not in train"):
        open_source("imagenet", tmp_path / "dst", "val")
