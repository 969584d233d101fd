"""CIFAR-10 for the studies: unpacked once, and asked for where it is missing."""

import zipfile

import pytest
from support import script

cifar10 = script("benchmarks/cifar10")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the pictures are unpacked."""
    folder = tmp_path / "outputs" / "cifar10"
    monkeypatch.setattr(cifar10, "_FOLDER", folder)
    return folder


def test_the_archive_is_unpacked_once(folder, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "cifar10_jpeg.zip", "w") as archive:
        archive.writestr("train/cat/0.jpg", b"picture")
    monkeypatch.setenv("MINDREPVGG_TEST_DATA", str(tmp_path))
    assert cifar10.as_recipe() == {"dataset": "folder", "data_dir": str(folder)}
    assert (folder / "train" / "cat" / "0.jpg").read_bytes() == b"picture"
    monkeypatch.delenv("MINDREPVGG_TEST_DATA")
    assert cifar10.as_recipe()["data_dir"] == str(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["cifar10"], "nothing else is left"


def test_without_the_pictures_it_is_said_what_is_needed(folder, monkeypatch):
    monkeypatch.delenv("MINDREPVGG_TEST_DATA", raising=False)
    with pytest.raises(cifar10.NoPicturesError, match="MINDREPVGG_TEST_DATA must name a folder with cifar10_jpeg"):
        cifar10.as_recipe()
