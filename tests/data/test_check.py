"""mindrepvgg check-data finds what was broken on purpose in a folder of real photos, and nothing else."""

import collections
import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindrepvgg.data import check
from mindrepvgg.data.check import check_data
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import Source
from mindrepvgg.errors import DataError, UnreadableImageError

PHOTOS = labelled_photos()
pytestmark = pytest.mark.skipif(PHOTOS is None, reason="needs the photos of foolbox (pip install --no-deps foolbox)")


@pytest.fixture
def call(call):
    """A function (*arguments) that runs the command in this process: (exit status, stdout, stderr)."""
    return functools.partial(call, "check-data")


def make_sound(root):
    """20 photos as train (6 cats, 6 dogs) and val (4 of each), beside a text file, which harms nobody."""
    for number, path in enumerate(PHOTOS.files.paths):
        folder = root / ("train" if number < 12 else "val") / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number:02}.jpg")
    (root / "train/cat/notes.TXT").write_text("six cats")
    return root


def make_broken(root):
    """The same with one mistake of each kind."""
    make_sound(root)
    train, val = root / "train", root / "val"
    whole = (train / "cat/00.jpg").read_bytes()
    (train / "cat/half.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "cat/header.jpg").write_bytes(whole[:150])
    (train / "dog/empty.png").touch()
    (val / "dog/text.jpg").write_text("not a picture\n")
    shutil.copy(train / "cat/02.jpg", train / "dog/not_a_dog.jpg")
    shutil.copy(train / "cat/04.jpg", val / "cat/seen.jpg")
    shutil.copy(train / "dog/05.jpg", train / "dog/twice.jpg")
    shutil.copy(train / "dog/05.jpg", train / "dog/a_third_time.jpg")
    Image.open(train / "dog/01.jpg").convert("L").resize((100, 300)).save(val / "dog/gray.jpg", "PNG")
    (train / "bird").mkdir()
    (val / "fish").mkdir()
    shutil.copy(val / "dog/text.jpg", val / "fish/text.png")
    shutil.copy(train / "cat/06.jpg", val / "unsorted.jpg")
    return root


UNREADABLE = {
    "train/cat/half.jpg": "cut short or too large: image file is truncated",
    "train/cat/header.jpg": "damaged, cut short or too large",
    "train/dog/empty.png": "the file is empty",
    "val/dog/text.jpg": "no picture of a known format",
    "val/fish/text.png": "no picture of a known format",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return make_broken(tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def report(broken):
    return check_data(broken, num_parallel_workers=2)


def within(root, entries):
    return [Path(entry["file"]).relative_to(root).as_posix() for entry in entries]


def test_a_sound_data_set_passes(sound, call):
    """Negative control for everything below; what is passed over is told."""
    status, out, err = call(sound)
    assert (status, err) == (0, "")
    sizes = np.array([Image.open(path).size for path in PHOTOS.files.paths[:12]])
    width, height = (
        f"{side.min()} to {side.max()} (median {np.median(side):g})" if np.ptp(side) else str(side[0])
        for side in sizes.T
    )
    assert out.splitlines()[:5] == [
        "train: 12 pictures in 2 classes of 6",
        "  12 JPEG RGB",
        f"  height {height}, width {width}; 0 with a side below 224",
        "  not used, as they are no pictures: 1 .txt",
        "val: 8 pictures in 2 classes of 4",
    ]
    assert out.endswith("nothing bad was found\n")
    report = check_data(sound)
    assert (report.problems, report.unreadable, report.duplicates, report.wrong_suffix) == ([], [], [], [])
    assert report.missing_classes == {}


def test_every_unreadable_file_is_found_with_its_reason(report, broken):
    assert within(broken, report.unreadable) == list(UNREADABLE)
    for (path, reason), entry in zip(UNREADABLE.items(), report.unreadable, strict=True):
        split, name, _ = path.split("/")
        assert (entry["split"], entry["class"]) == (split, name)
        assert reason in entry["reason"]
    assert (report.splits["train"]["unreadable"], report.splits["val"]["unreadable"]) == (3, 2)


def test_duplicates_are_those_with_the_same_bytes(report, broken):
    by_content = collections.defaultdict(set)
    for path in broken.rglob("*"):
        name = path.relative_to(broken).as_posix()
        if path.is_file() and name not in UNREADABLE and name != "val/unsorted.jpg" and path.suffix != ".TXT":
            by_content[hashlib.sha256(path.read_bytes()).digest()].add(name)
    expected = [group for group in by_content.values() if len(group) > 1]
    found = [set(within(broken, group["files"])) for group in report.duplicates]
    assert len(found) == len(expected) == 3
    assert all(group in expected for group in found)
    kinds = {min(within(broken, g["files"])): (g["two_classes"], g["two_splits"]) for g in report.duplicates}
    assert kinds == {
        "train/cat/02.jpg": (True, False),
        "train/cat/04.jpg": (False, True),
        "train/dog/05.jpg": (False, False),
    }


def test_classes_and_files(report, broken):
    train, val = report.splits["train"], report.splits["val"]
    assert train["class_counts"] == {"bird": 0, "cat": 8, "dog": 10}
    assert train["pictures_per_class"] == {"min": 0, "median": 8.0, "max": 10}
    assert (train["empty_classes"], train["classes_without_readable"]) == (["bird"], [])
    assert (val["empty_classes"], val["classes_without_readable"]) == ([], ["fish"])
    assert report.missing_classes == {"train": ["fish"], "val": ["bird"]}
    assert (train["outside_of_classes"], val["outside_of_classes"]) == (0, 1)
    assert train["ignored_files"] == {".txt": 1}
    assert val["kinds"] == {"JPEG RGB": 9, "PNG L": 1}
    assert (val["height"]["min"], val["width"]["min"], val["side_below_224"]) == (300, 100, 1)
    assert within(broken, report.wrong_suffix) == ["val/dog/gray.jpg"]
    assert report.wrong_suffix[0]["format"] == "PNG"
    for split in ("train", "val"):
        with pytest.raises(DataError) as refused:
            open_source("imagenet", broken, split)
        assert str(refused.value) in report.problems


def test_the_number_of_threads_changes_nothing(report, broken, monkeypatch):
    monkeypatch.setattr(check, "_PICTURES_PER_TASK", 3)
    assert check_data(broken, num_parallel_workers=5) == report


def test_the_command(broken, call, tmp_path):
    status, out, err = call(broken, "--out", tmp_path / "report.json", "--bad_list", tmp_path / "bad.txt", "--json")
    assert (status, err) == (1, "")
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text())
    assert json.loads(out)["passed"] is False
    assert (tmp_path / "bad.txt").read_text().splitlines() == [str(broken / name) for name in UNREADABLE]


def test_the_summary(report, broken):
    lines = report.format().splitlines()
    for line in (
        f"  {broken}/train/dog/empty.png: the file is empty",
        "pictures under two classes: 1",
        f"  {broken}/train/cat/02.jpg (train, cat) = {broken}/train/dog/not_a_dog.jpg (train, dog)",
        "pictures in two splits, so that validation sees what was trained on: 1",
        f"  {broken}/train/cat/04.jpg (train, cat) = {broken}/val/cat/seen.jpg (val, cat)",
        "pictures more than once in a class: 1",
        "files of another format than their suffix says (read all the same): 1",
        "  not used, as outside of the class folders: 1 picture",
        "classes missing in val: 1",
        "  classes with no readable picture: 1",
        "the data set needs repair",
    ):
        assert line in lines


def test_after_the_repair_it_passes(tmp_path, call):
    """The list of bad files is what to remove; a picture of both splits alone is no reason to fail."""
    root = make_broken(tmp_path / "data")
    call(root, "--bad_list", tmp_path / "bad.txt")
    for name in (tmp_path / "bad.txt").read_text().splitlines():
        Path(name).unlink()
    (root / "train/bird").rmdir()
    (root / "val/fish").rmdir()
    assert call(root)[0] == 1
    (root / "train/dog/not_a_dog.jpg").unlink()
    status, out, _ = call(root)
    assert status == 0
    assert "pictures in two splits, so that validation sees what was trained on: 1\n" in out


def test_odd_file_names(tmp_path, call):
    """One with a line break is not listed, where it would be two others; bytes that are no text are kept."""
    (tmp_path / "data/cat").mkdir(parents=True)
    names = ["a\nb.jpg", "c.jpg", os.fsdecode(b"\xff.jpg")]
    for name in names:
        (tmp_path / "data/cat" / name).touch()
    status, out, _ = call(tmp_path / "data", "--bad_list", tmp_path / "bad.txt", "--out", tmp_path / "report.json")
    assert status == 1
    found = json.loads((tmp_path / "report.json").read_text())["unreadable"]
    assert [os.path.basename(entry["file"]) for entry in found] == names
    folder = os.fsencode(tmp_path / "data/cat")
    assert (tmp_path / "bad.txt").read_bytes().splitlines() == [folder + b"/c.jpg", folder + b"/\xff.jpg"]
    assert "\\udcff.jpg: the file is empty" in out


class TestLayouts:
    def test_a_folder_without_splits_is_one(self, sound):
        report = check_data(sound / "train")
        assert list(report.splits) == [check.UNDIVIDED]
        assert report.splits[check.UNDIVIDED]["class_counts"] == {"cat": 6, "dog": 6}
        assert report.passed

    def test_val_share_divides_it(self, tmp_path):
        """As training does, so that copies of one picture are in both parts."""
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            for copy in range(4):
                Image.new("RGB", (8, 8), "red" if name == "cat" else "blue").save(tmp_path / name / f"{copy}.png")
        report = check_data(tmp_path, val_share=0.25)
        assert {name: facts["class_counts"] for name, facts in report.splits.items()} == {
            "train": {"cat": 3, "dog": 3},
            "val": {"cat": 1, "dog": 1},
        }
        assert [(len(group["files"]), group["two_splits"]) for group in report.duplicates] == [(4, True)] * 2
        (tmp_path / "dog/notes.txt").touch()
        for copy in range(3):
            (tmp_path / "dog" / f"{copy}.png").unlink()
        report = check_data(tmp_path, val_share=0.25)
        assert list(report.splits) == [check.UNDIVIDED]
        assert "val_share needs two" in report.problems[0]

    def test_validation_pictures_that_nobody_sorted(self, tmp_path, sound):
        shutil.copytree(sound / "train", tmp_path / "train")
        shutil.copytree(sound / "val/cat", tmp_path / "val")
        report = check_data(tmp_path)
        assert report.splits["val"]["outside_of_classes"] == 4
        assert report.splits["train"]["pictures"] == 12
        assert report.problems == [
            f"no class folders in {tmp_path}/val; put the pictures of each class into a folder of its own there"
        ]

    def test_a_missing_validation_folder_is_no_mistake(self, tmp_path, sound):
        shutil.copytree(sound / "train", tmp_path / "train")
        report = check_data(tmp_path)
        assert (list(report.splits), report.passed) == (["train"], True)

    def test_pictures_inside_larger_files(self, tmp_path, monkeypatch):
        """A packed split is read through its source, whatever that is."""
        (tmp_path / "val").mkdir()
        (tmp_path / "val/mindrecord.json").touch()
        encoded = [np.fromfile(PHOTOS.files.paths[0], np.uint8), np.zeros(9, np.uint8)]

        class Packed:
            def __len__(self):
                return 3

            def name(self, index):
                return f"{index} in a shard"

            def read(self, index):
                if index == 2:
                    raise UnreadableImageError("cannot read the shard")
                return encoded[index]

        def opener(dataset, data_dir, split, val_share):
            if split == "train":
                raise DataError("no folder train")
            return Source(dataset, ("cat",), np.zeros(3, np.int32), files=Packed())

        monkeypatch.setattr(check, "open_source", opener)
        report = check_data(tmp_path)
        assert report.splits["val"]["kinds"] == {"JPEG RGB": 1}
        assert [(entry["file"], entry["reason"][:10]) for entry in report.unreadable] == [
            ("1 in a shard", "no picture"),
            ("2 in a shard", "cannot rea"),
        ]
        assert (report.problems, report.wrong_suffix) == ([], [])


class TestInMemory:
    def test_digits_pass(self, call):
        status, out, _ = call("--dataset", "mnist5k")
        assert status == 0
        assert out.startswith("train: 4,000 pictures in 10 classes of 400\n  4000 array L\n  height 28, width 28; 4000")

    def test_the_same_pixels_under_two_labels(self, monkeypatch):
        images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
        images[4], images[5] = images[1], images[2]
        labels = np.array([0, 0, 1, 1, 1, 1], np.int32)

        def opener(dataset, data_dir, split, val_share):
            return Source(dataset, ("a", "b"), labels[::2].copy(), images=images[::2].copy()) if split == "val" else (
                Source(dataset, ("a", "b"), labels.copy(), images=images.copy())
            )  # fmt: skip

        monkeypatch.setattr(check, "open_source", opener)
        report = check_data(None, "cifar10")
        assert report.splits["train"]["kinds"] == {"array RGB": 6}
        groups = [
            (sorted((file["split"], file["file"].split()[1]) for file in g["files"]), g["two_classes"], g["two_splits"])
            for g in report.duplicates
        ]
        assert groups == [
            ([("train", "0"), ("val", "0")], False, True),
            ([("train", "1"), ("train", "4"), ("val", "2")], True, True),
            ([("train", "2"), ("train", "5"), ("val", "1")], False, True),
        ]
        assert not report.passed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "data_dir is not set; give the folder that holds train and val"),
        ("{f}/none", "none does not exist; give the folder"),
        ("{f}/file", "file is a file; give the folder"),
        ("{f}/nothing", "no class folders in {f}/nothing"),
        ("{f}/no_pictures", "no class folders in {f}/no_pictures/train"),
        ("{f} --dataset imagenette", "unknown dataset 'imagenette'"),
        ("{f} --dataset cifar10", "{f}"),
        ("{f} --val_share 1", "val_share (=1.0) must be at least 0 and below 1"),
        ("{f} --num_parallel_workers 0", "num_parallel_workers (=0) must be at least 1"),
        ("{f} --workers 3", "unknown option --workers"),
    ],
)
def test_wrong_use(tmp_path, call, arguments, words):
    """One line, status 2, no report."""
    (tmp_path / "file").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "no_pictures/train").mkdir(parents=True)
    options = ("--out", tmp_path / "report.json", "--bad_list", tmp_path / "bad.txt")
    status, out, err = call(*arguments.format(f=tmp_path).split(), *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words.format(f=tmp_path) in err
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "bad.txt").exists()
