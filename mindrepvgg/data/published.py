"""Data sets in the files they are published as, read into arrays: MNIST's IDX files, CIFAR's binary and Python ones.

The readers of `mindspore.dataset` (2.10) are not used. They accept labels that are no class, and CIFAR-10 with a
missing batch. They read neither .gz, as MNIST is published, nor the Python version of CIFAR.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrepvgg.errors import CheckpointError, DataError
from mindrepvgg.files import open_regular
from mindrepvgg.weights.pickles import AGAIN, is_pickle_file, read_pickle_file

_IDX_PREFIXES = {"train": "train", "val": "t10k"}
_IDX_UINT8 = 8
_MNIST_SIDES = (28, 28)

_CIFAR_PLANES = (3, 32, 32)
_CIFAR_PIXELS = math.prod(_CIFAR_PLANES)

_TAKE_BINARY = "or take the data set's binary version"
_BINARY = f"{AGAIN}, {_TAKE_BINARY}"


# Bytes, unpacked: CIFAR-100's training images are the largest file of all, with less than 160 million.
_LARGEST_FILE = 1 << 28


class _Cifar(NamedTuple):
    """How one of the two sets is laid out.

    folders: the archives' own, binary and Python; batches: files of each split, without the binary ones' .bin.
    names: files with the class names, binary and Python; names_key, labels_key: the Python files' keys.
    label_bytes: in front of a binary record's pixels, of which the last is the label.
    """

    num_classes: int
    folders: tuple[str, str]
    batches: dict[str, tuple[str, ...]]
    names: tuple[str, str]
    names_key: str
    labels_key: str
    label_bytes: int


_CIFARS = {
    "cifar10": _Cifar(
        num_classes=10,
        folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
        batches={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)},
        names=("batches.meta.txt", "batches.meta"),
        names_key="label_names",
        labels_key="labels",
        label_bytes=1,
    ),
    "cifar100": _Cifar(
        num_classes=100,
        folders=("cifar-100-binary", "cifar-100-python"),
        batches={"train": ("train",), "val": ("test",)},
        names=("fine_label_names.txt", "meta"),
        names_key="fine_label_names",
        labels_key="fine_labels",
        label_bytes=2,
    ),
}


def read_mnist(folders: Sequence[Path], split: str, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Read a split in MNIST's form, each file plain or .gz.

    Args:
        folders: where the files may lie, in the order of looking.
        split: "train" or "val".
        num_classes: labels must be below it.

    Returns:
        Images (N, 28, 28, 1) uint8 and labels (N,) int32.

    Raises:
        DataError: files are missing, damaged or of another form, or do not fit together.

    Source: yann.lecun.com/exdb/mnist, "File formats for the MNIST database".
    """
    prefix = _IDX_PREFIXES[split]
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    images_path, labels_path = _locate([(folder, names) for folder in folders], suffixes=("", ".gz"))
    images, labels = _read_idx(images_path, _MNIST_SIDES), _read_idx(labels_path, ())
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} pictures and {labels_path} {len(labels)} labels; "
            "there must be as many: take both from one release"
        )
    _check_labels(labels.tolist(), num_classes, labels_path)
    return images[..., None], labels.astype(np.int32)


def read_cifar(dataset: str, root: Path, split: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Read a split of CIFAR. Nothing that a file of the Python version names is run.

    Args:
        dataset: "cifar10", or "cifar100" with its fine labels.
        root: the folder with the files, or with the folder that their archive makes. Where the binary and the Python
            version are there, the binary one is read.
        split: "train" or "val".

    Returns:
        The class names, images (N, 32, 32, 3) uint8 RGB and labels (N,) int32.

    Raises:
        DataError: files are missing, damaged, or of another form.

    Source: cs.toronto.edu/~kriz/cifar.html.
    """
    cifar = _CIFARS[dataset]
    batches = cifar.batches[split]
    binary = (*(f"{batch}.bin" for batch in batches), cifar.names[0])
    python = (*batches, cifar.names[1])
    paths = _locate(
        [
            *((folder, binary) for folder in (root, root / cifar.folders[0])),
            *((folder, python) for folder in (root, root / cifar.folders[1])),
        ]
    )
    *batch_paths, names_path = paths
    if names_path.name == cifar.names[0]:
        read_names, read_batch = _binary_names, _binary_batch
    else:
        read_names, read_batch = _python_names, _python_batch
    class_names = read_names(names_path, cifar)
    if len(class_names) != cifar.num_classes:
        raise DataError(f"{names_path} holds {len(class_names)} class names, not {cifar.num_classes}; {AGAIN}")
    images, labels = [], []
    for path in batch_paths:
        pixels, batch_labels = read_batch(path, cifar)
        _check_labels(batch_labels, cifar.num_classes, path)
        images.append(pixels.reshape(-1, *_CIFAR_PLANES).transpose(0, 2, 3, 1))
        labels.extend(batch_labels)
    return class_names, np.ascontiguousarray(np.concatenate(images)), np.array(labels, np.int32)


def _locate(layouts, suffixes=("",)):
    """Return the paths of a layout's files, of the first layout that has them all.

    layouts: (folder, file names) each; suffixes: what a name may end in on top.
    """
    nearest = None
    for folder, names in layouts:
        paths = [
            next((path for suffix in suffixes if os.path.isfile(path := folder / f"{name}{suffix}")), None)
            for name in names
        ]
        missing = [name for name, path in zip(names, paths, strict=True) if path is None]
        if not missing:
            return paths
        if len(missing) < len(names) and (nearest is None or len(missing) < len(nearest[1])):
            nearest = folder, missing
    ending = "".join(f" (or {suffix})" for suffix in suffixes if suffix)
    if nearest:
        folder, missing = nearest
        raise DataError(f"{folder} lacks {', '.join(missing)}{ending}, which the data set needs; copy it there")
    wanted = {}
    for folder, names in layouts:
        wanted.setdefault(", ".join(names), []).append(str(folder))
    looked = "; nor ".join(f"{names}{ending} in {' or '.join(folders)}" for names, folders in wanted.items())
    raise DataError(f"the data set's files are not there: neither {looked}" if len(wanted) > 1 else f"no {looked}")


def _read_idx(path, item_shape):
    """Return the array (N, *item_shape) uint8 of an IDX file."""
    content = _content(path)
    dimensions = 1 + len(item_shape)
    magic, header_size = bytes([0, 0, _IDX_UINT8, dimensions]), 4 + 4 * dimensions
    if content[:4] != magic:
        begins = content[:4].hex() or "nothing"
        raise DataError(
            f"{path} begins with {begins}, not with {magic.hex()}, the magic number of an IDX file of bytes in "
            f"{dimensions} dimension{'s' * (dimensions > 1)}; {AGAIN}"
        )
    if len(content) < header_size:
        raise DataError(f"{path} is cut short: its header alone needs {header_size} bytes, not {len(content)}; {AGAIN}")
    count, *shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if tuple(shape) != item_shape:
        raise DataError(f"{path} holds pictures of {'x'.join(map(str, shape))} pixels, not of 28x28; check what it is")
    expected = header_size + count * math.prod(item_shape)
    if len(content) != expected:
        raise DataError(
            f"{path} is cut short or damaged: {len(content)} bytes, where its header's {count} items need {expected}; "
            f"{AGAIN}"
        )
    if not count:
        raise DataError(f"{path} holds nothing: its header counts 0 items; {AGAIN}")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(count, *item_shape)


def _content(path):
    """Return a file's bytes, unpacked where its name ends in .gz."""
    try:
        with open_regular(path, "a file of the data set", DataError, _LARGEST_FILE) as file:
            content = (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file).read(_LARGEST_FILE + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is not a gzip file, or a damaged one ({error}); {AGAIN}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise DataError(f"{path} unpacks to more than any file of these data sets; {AGAIN}")
    return content


def _binary_names(path, _cifar):
    try:
        return tuple(filter(None, map(str.strip, _content(path).decode("utf-8").splitlines())))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text, where one class name a line was expected; {AGAIN}") from error


def _binary_batch(path, cifar):
    content = _content(path)
    record = cifar.label_bytes + _CIFAR_PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{path} is cut short or damaged: {len(content)} bytes are not a multiple of {record}, "
            f"{cifar.label_bytes} for labels and {_CIFAR_PIXELS} for pixels; {AGAIN}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, cifar.label_bytes :], records[:, cifar.label_bytes - 1].tolist()


def _python_names(path, cifar):
    names = _pickled(path).get(cifar.names_key)
    if type(names) is not list or not all(type(name) is str for name in names):
        raise DataError(f"{path} has no list of class names under {cifar.names_key!r}; {_BINARY}")
    return tuple(names)


def _python_batch(path, cifar):
    batch = _pickled(path)
    pixels, labels = batch.get("data"), batch.get(cifar.labels_key)
    fits = (
        type(pixels) is np.ndarray
        and pixels.dtype == np.uint8
        and pixels.shape[1:] == (_CIFAR_PIXELS,)
        and len(pixels)
        and type(labels) is list
        and all(type(label) is int for label in labels)
    )
    if not fits:
        raise DataError(
            f"{path} is no batch of CIFAR's: it needs 'data', uint8 of (N, {_CIFAR_PIXELS}), and "
            f"{cifar.labels_key!r}, a list of N whole numbers; {_BINARY}"
        )
    if len(pixels) != len(labels):
        raise DataError(f"{path} holds {len(pixels)} pictures and {len(labels)} labels, not as many; {_BINARY}")
    return pixels, labels


def _pickled(path):
    """Return the dict a file of the Python version holds."""
    if not is_pickle_file(path):
        raise DataError(f"{path} is not a pickle, as a file of the Python version is; {_BINARY}")
    try:
        content = read_pickle_file(path)
    except CheckpointError as error:
        raise DataError(f"{error}, {_TAKE_BINARY}") from error
    if type(content) is not dict:
        raise DataError(f"{path} holds a {type(content).__name__}, not a dict as CIFAR's files do; {_BINARY}")
    return content


def _check_labels(labels, num_classes, path):
    wrong = next((index for index, label in enumerate(labels) if not 0 <= label < num_classes), None)
    if wrong is not None:
        raise DataError(
            f"{path} gives picture {wrong} (counted from 0) the label {labels[wrong]}; the {num_classes} classes are "
            f"0 ... {num_classes - 1}; {AGAIN}"
        )
