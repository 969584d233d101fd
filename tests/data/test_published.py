"""Published files: MNIST and CIFAR are read exactly, and damaged ones are refused in one line."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from mindrepvgg.data import datasets
from mindrepvgg.data.datasets import open_source
from mindrepvgg.errors import DataError


def random_pixels(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


def idx(array):
    """An IDX file of bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


MNIST_IMAGES = random_pixels(6, 28, 28)
MNIST_LABELS = np.array([3, 0, 9, 1, 3, 7], np.uint8)
MNIST_FILES = {
    "train-images-idx3-ubyte": idx(MNIST_IMAGES[:4]),
    "train-labels-idx1-ubyte": idx(MNIST_LABELS[:4]),
    "t10k-images-idx3-ubyte": idx(MNIST_IMAGES[4:]),
    "t10k-labels-idx1-ubyte": idx(MNIST_LABELS[4:]),
}


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(dataset, data_dir, split="train"):
    """The one line a data set is refused with."""
    with pytest.raises(DataError) as caught:
        open_source(dataset, data_dir, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestMnist:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize(
        ("dataset", "place"),
        [
            *(("mnist", place) for place in (".", "raw", "MNIST/raw")),
            *(("fashion_mnist", place) for place in (".", "raw", "FashionMNIST/raw")),
        ],
    )
    def test_both_splits_are_read(self, tmp_path, dataset, place, packed):
        files = {f"{name}.gz": gzip.compress(content) for name, content in MNIST_FILES.items()}
        write_files(tmp_path / place, files if packed else MNIST_FILES)
        for split, part in (("train", slice(4)), ("val", slice(4, None))):
            source = open_source(dataset, tmp_path, split, 10)
            assert source.title == dataset
            np.testing.assert_array_equal(source.images, MNIST_IMAGES[part, :, :, None])
            np.testing.assert_array_equal(source.labels, MNIST_LABELS[part])
            assert (source.images.dtype, source.labels.dtype) == (np.uint8, np.int32)

    def test_the_classes_have_the_published_names(self, tmp_path):
        write_files(tmp_path, MNIST_FILES)
        assert open_source("mnist", tmp_path, "val").class_names == tuple("0123456789")
        names = open_source("fashion_mnist", str(tmp_path), "val").class_names
        assert (len(names), names[0], names[1], names[9]) == (10, "T-shirt/top", "Trouser", "Ankle boot")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"train-images-idx3-ubyte": b"\x1f\x8b\x08\x08" + bytes(20)},
                "train-images-idx3-ubyte begins with 1f8b0808, not with 00000803, the magic number of an IDX file of ",
            ),
            ({"train-labels-idx1-ubyte": b""}, "train-labels-idx1-ubyte begins with nothing, not with 00000801, "),
            ({"train-images-idx3-ubyte": MNIST_FILES["train-labels-idx1-ubyte"]}, "begins with 00000801, not with "),
            (
                {"train-images-idx3-ubyte": b"\0\0\x08\x03\0\0"},
                "is cut short: its header alone needs 16 bytes, not 6; ",
            ),
            (
                {"train-images-idx3-ubyte": MNIST_FILES["train-images-idx3-ubyte"][:-1]},
                "is cut short or damaged: 3151 bytes, where its header's 4 items need 3152; ",
            ),
            (
                {"train-labels-idx1-ubyte": MNIST_FILES["train-labels-idx1-ubyte"] + b"\0"},
                "is cut short or damaged: 13 bytes, where its header's 4 items need 12; ",
            ),
            (
                {"train-images-idx3-ubyte": struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)},
                "header's 4294967295 items need",
            ),
            (
                {"train-images-idx3-ubyte": idx(random_pixels(4, 32, 30))},
                "holds pictures of 32x30 pixels, not of 28x28; ",
            ),
            ({"train-images-idx3-ubyte": idx(random_pixels(0, 28, 28))}, "holds nothing: its header counts 0 items; "),
            (
                {"train-labels-idx1-ubyte": MNIST_FILES["t10k-labels-idx1-ubyte"]},
                "train-labels-idx1-ubyte 2 labels; there must be as many: take both from one release",
            ),
            (
                {"train-labels-idx1-ubyte": idx(np.array([0, 9, 10, 1], np.uint8))},
                "train-labels-idx1-ubyte gives picture 2 (counted from 0) the label 10; the 10 classes are 0 ... 9; ",
            ),
        ],
    )
    def test_a_damaged_file_is_told_in_one_line(self, tmp_path, changes, message):
        write_files(tmp_path, {**MNIST_FILES, **changes})
        assert message in refusal("mnist", tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            MNIST_FILES["train-images-idx3-ubyte"],
            b"",
            gzip.compress(MNIST_FILES["train-images-idx3-ubyte"])[:-9],
            gzip.compress(MNIST_FILES["train-images-idx3-ubyte"])[:-8] + bytes(8),
            gzip.compress(bytes(100))[:10] + b"\xff" * 40,
        ],
        ids=["plain", "empty", "cut", "checksum", "damaged"],
    )
    def test_what_is_no_gzip_is_told(self, tmp_path, content):
        files = {name: content for name, content in MNIST_FILES.items() if name != "train-images-idx3-ubyte"}
        write_files(tmp_path, {**files, "train-images-idx3-ubyte.gz": content})
        message = refusal("mnist", tmp_path)
        assert "train-images-idx3-ubyte.gz " in message
        assert "is not a gzip file, or a damaged one (" in message or (not content and "begins with nothing" in message)

    def test_missing_files_are_listed_with_the_folders(self, tmp_path):
        assert refusal("mnist", tmp_path, "val") == (
            f"no t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (or .gz) in {tmp_path} or {tmp_path / 'raw'} or "
            f"{tmp_path / 'MNIST' / 'raw'}"
        )
        write_files(tmp_path / "raw", {"t10k-images-idx3-ubyte": b""})
        message = f"{tmp_path / 'raw'} lacks t10k-labels-idx1-ubyte (or .gz), which the data set needs; copy it there"
        assert refusal("mnist", tmp_path, "val") == message

    def test_fashion_mnist_is_debians_where_no_folder_is_given(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets, "_FASHION_FOLDER", tmp_path / "package")
        assert "package: apt-get install dataset-fashion-mnist, or give " in refusal("fashion_mnist", "")
        write_files(tmp_path / "package", MNIST_FILES)
        assert len(open_source("fashion_mnist", "", "train")) == 4
        assert "none does not exist; give the folder of " in refusal("fashion_mnist", tmp_path / "none")

    @pytest.mark.skipif(not datasets._FASHION_FOLDER.is_dir(), reason="needs apt-get install dataset-fashion-mnist")
    @pytest.mark.parametrize(("split", "per_class"), [("train", 6000), ("val", 1000)])
    def test_the_real_fashion_mnist(self, split, per_class):
        source = open_source("fashion_mnist", "", split)
        assert source.images.shape == (10 * per_class, 28, 28, 1)
        assert np.bincount(source.labels).tolist() == [per_class] * 10
        assert source.images.mean() / 255 == pytest.approx(0.2860, abs=1e-3)


CIFAR_LABELS = {"cifar10": [3, 9, 0, 5, 1, 2], "cifar100": [99, 0, 57, 4, 11, 98]}
CIFAR_IMAGES = random_pixels(6, 3, 32, 32)
CIFAR_NAMES = {"cifar10": [f"class {i}" for i in range(10)], "cifar100": [f"class {i}" for i in range(100)]}
CIFAR_TRAIN = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
CIFAR_PLACES = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}


def short_text(text):
    return b"U" + bytes([len(text)]) + text.encode("ascii")


def pickled(values):
    """A dict as Python 2 and NumPy 1 pickled it: lists of small numbers or of text, and arrays of bytes."""
    items = []
    for key, value in values.items():
        items.append(short_text(key))
        if isinstance(value, np.ndarray):
            raw = value.tobytes()
            items.append(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR(K\x01")
            items.append(b"(" + b"".join(b"J" + struct.pack("<i", side) for side in value.shape) + b"t")
            items.append(b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")
            items.append(b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb")
        else:
            entries = (short_text(item) if isinstance(item, str) else b"K" + bytes([item]) for item in value)
            items.append(b"](" + b"".join(entries) + b"e")
    return b"\x80\x02}(" + b"".join(items) + b"u."


def cifar_batch(dataset, version, images, labels):
    if version == "binary":
        coarse = b"" if dataset == "cifar10" else b"\x13"
        return b"".join(coarse + bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
    key = "labels" if dataset == "cifar10" else "fine_labels"
    return pickled({key: labels, "data": images.reshape(-1, 3072), "filenames": ["x.png"] * len(labels)})


def cifar_files(dataset, version):
    """Four pictures to train on, spread over the batches, and two to validate on."""
    suffix = ".bin" if version == "binary" else ""
    names, labels = CIFAR_TRAIN[dataset], CIFAR_LABELS[dataset]
    parts = (
        [slice(0, 4)] if dataset == "cifar100" else [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(0, 1)]
    )
    files = {
        f"{name}{suffix}": cifar_batch(dataset, version, CIFAR_IMAGES[part], labels[part])
        for name, part in zip(names, parts, strict=True)
    }
    test = "test_batch" if dataset == "cifar10" else "test"
    files[f"{test}{suffix}"] = cifar_batch(dataset, version, CIFAR_IMAGES[4:], labels[4:])
    if version == "binary":
        name = "batches.meta.txt" if dataset == "cifar10" else "fine_label_names.txt"
        files[name] = "".join(f"{name}\n" for name in [*CIFAR_NAMES[dataset], ""]).encode()
    elif dataset == "cifar10":
        files["batches.meta"] = pickled({"label_names": CIFAR_NAMES[dataset]})
    else:
        files["meta"] = pickled({"coarse_label_names": ["x"], "fine_label_names": CIFAR_NAMES[dataset]})
    return files


class TestCifar:
    @pytest.mark.parametrize("inside", [False, True])
    @pytest.mark.parametrize(("dataset", "version"), CIFAR_PLACES)
    def test_both_splits_are_read(self, tmp_path, dataset, version, inside):
        write_files(tmp_path / CIFAR_PLACES[dataset, version] if inside else tmp_path, cifar_files(dataset, version))
        train = [0, 1, 2, 3, 0] if dataset == "cifar10" else [0, 1, 2, 3]
        for split, part in (("train", train), ("val", [4, 5])):
            source = open_source(dataset, tmp_path, split, len(CIFAR_NAMES[dataset]))
            assert source.class_names == tuple(CIFAR_NAMES[dataset])
            assert (source.title, source.images.dtype, source.labels.dtype) == (dataset, np.uint8, np.int32)
            assert source.images.shape == (len(part), 32, 32, 3)
            assert source.images.flags.c_contiguous
            for channel in range(3):
                np.testing.assert_array_equal(source.images[..., channel], CIFAR_IMAGES[part][:, channel])
            np.testing.assert_array_equal(source.labels, np.array(CIFAR_LABELS[dataset])[part])

    def test_the_binary_version_goes_first(self, tmp_path):
        write_files(tmp_path / "cifar-10-batches-py", dict.fromkeys(cifar_files("cifar10", "python"), b"unread"))
        write_files(tmp_path / "cifar-10-batches-bin", cifar_files("cifar10", "binary"))
        assert len(open_source("cifar10", tmp_path, "val")) == 2

    @pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
    def test_a_pickle_written_today_is_read_too(self, tmp_path, protocol):
        files = cifar_files("cifar10", "python")
        batch = {"data": CIFAR_IMAGES[4:].reshape(-1, 3072), "labels": [1, 2]}
        write_files(tmp_path, {**files, "test_batch": pickle.dumps(batch, protocol)})
        np.testing.assert_array_equal(open_source("cifar10", tmp_path, "val").images[..., 2], CIFAR_IMAGES[4:, 2])

    def test_what_a_pickle_names_is_not_run(self, tmp_path):
        made = tmp_path / "made"
        hostile = b"\x80\x02}(U\x04datacos\nmkdir\n(" + short_text(str(made)) + b"tRu."
        assert pickle.loads(hostile) == {"data": None}
        made.rmdir()
        write_files(tmp_path, {**cifar_files("cifar10", "python"), "test_batch": hostile})
        assert "test_batch is no batch of CIFAR's: it needs 'data', uint8 of " in refusal("cifar10", tmp_path, "val")
        assert not made.exists()

    @pytest.mark.parametrize(
        ("dataset", "version", "name", "content", "message"),
        [
            (
                "cifar10",
                "binary",
                "test_batch.bin",
                bytes(3072),
                "3072 bytes are not a multiple of 3073, 1 for labels and",
            ),
            ("cifar10", "binary", "test_batch.bin", b"", "test_batch.bin is cut short or damaged: 0 bytes are not a "),
            ("cifar100", "binary", "test.bin", bytes(3073), "3073 bytes are not a multiple of 3074, 2 for labels and"),
            (
                *("cifar10", "binary", "test_batch.bin", bytes(3073) + b"\x0a" + bytes(3072)),
                "test_batch.bin gives picture 1 (counted from 0) the label 10; the 10 classes are 0 ... 9; ",
            ),
            (
                "cifar100",
                "binary",
                "test.bin",
                b"\0\x64" + bytes(3072),
                "the label 100; the 100 classes are 0 ... 99; ",
            ),
            ("cifar10", "binary", "batches.meta.txt", b"a\nb\n\n", "batches.meta.txt holds 2 class names, not 10; "),
            (
                "cifar10",
                "binary",
                "batches.meta.txt",
                b"\xff\xfe",
                "batches.meta.txt is not text, where one class name ",
            ),
            (
                "cifar10",
                "python",
                "test_batch",
                b"<html>",
                "test_batch is not a pickle, as a file of the Python version",
            ),
            (
                "cifar10",
                "python",
                "test_batch",
                b"",
                "test_batch is not a pickle, as a file of the Python version is; ",
            ),
            (
                *("cifar10", "python", "test_batch", cifar_files("cifar10", "python")["test_batch"][:-3000]),
                "or take the data set's binary version",
            ),
            (
                "cifar10",
                "python",
                "test_batch",
                pickle.dumps([1]),
                "test_batch holds a list, not a dict as CIFAR's files",
            ),
            (
                "cifar10",
                "python",
                "test_batch",
                pickled({"labels": [1]}),
                "needs 'data', uint8 of (N, 3072), and 'labels'",
            ),
            (
                *("cifar10", "python", "test_batch", pickled({"data": random_pixels(2, 3071), "labels": [1, 2]})),
                "is no batch of CIFAR's: ",
            ),
            (
                *("cifar10", "python", "test_batch", pickled({"data": random_pixels(2, 3072), "labels": ["a", "b"]})),
                "is no batch of CIFAR's: ",
            ),
            (
                *("cifar10", "python", "test_batch", pickled({"data": random_pixels(2, 3072), "labels": [1]})),
                "test_batch holds 2 pictures and 1 labels, not as many; ",
            ),
            (
                *("cifar10", "python", "test_batch", pickled({"data": random_pixels(2, 3072), "labels": [1, 10]})),
                "gives picture 1 (counted from 0) the label 10; ",
            ),
            (
                *("cifar100", "python", "test", cifar_files("cifar10", "python")["test_batch"]),
                "and 'fine_labels', a list of N whole numbers; ",
            ),
            (
                "cifar100",
                "python",
                "meta",
                pickled({"names": ["a"]}),
                "no list of class names under 'fine_label_names'; ",
            ),
            ("cifar10", "python", "batches.meta", pickled({"label_names": [1]}), "no list of class names under "),
            ("cifar10", "python", "batches.meta", pickled({"label_names": ["a"]}), "holds 1 class names, not 10; "),
        ],
    )
    def test_a_damaged_file_is_told_in_one_line(self, tmp_path, dataset, version, name, content, message):
        write_files(tmp_path, {**cifar_files(dataset, version), name: content})
        told = refusal(dataset, tmp_path, "val")
        assert message in told
        assert told.startswith(str(tmp_path / name))

    def test_missing_files_are_listed_with_the_folders(self, tmp_path):
        assert refusal("cifar100", tmp_path) == (
            f"the data set's files are not there: neither train.bin, fine_label_names.txt in {tmp_path} or "
            f"{tmp_path / 'cifar-100-binary'}; nor train, meta in {tmp_path} or {tmp_path / 'cifar-100-python'}"
        )

    def test_the_files_missing_from_a_part_are_named(self, tmp_path):
        files = cifar_files("cifar10", "binary")
        del files["data_batch_3.bin"]
        folder = write_files(tmp_path / "cifar-10-batches-bin", files)
        assert (
            refusal("cifar10", tmp_path) == f"{folder} lacks data_batch_3.bin, which the data set needs; copy it there"
        )


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_the_folder_of_published_files_must_be_one(tmp_path, dataset):
    (tmp_path / "file").touch()
    assert "does not exist; give the folder of " in refusal(dataset, tmp_path / "gone")
    assert "file is a file; give the folder of " in refusal(dataset, tmp_path / "file")
    if dataset != "fashion_mnist":
        assert "data_dir is not set; give the folder of " in refusal(dataset, "")
