"""Parts of a source: every class keeps its share, and files keep their names."""

import numpy as np
import pytest

from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import ImageFiles, Source, spread


class TestSpread:
    """A few pictures of a source, of all its classes."""

    @staticmethod
    def source_of(labels):
        labels = np.array(labels, np.int32)
        images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
        return Source("mnist5k", tuple("abcdefg"), labels, images=images)

    @pytest.mark.parametrize("order", ["sorted", "cyclic", "random"])
    @pytest.mark.parametrize("limit", [1, 6, 7, 14, 20, 139])
    def test_every_class_keeps_its_share(self, order, limit):
        labels = np.repeat(np.arange(7), 20)
        if order == "cyclic":  # a plain step of 7 through it would find one class alone
            labels = labels.reshape(7, 20).T.ravel()
        elif order == "random":
            labels = np.random.default_rng(0).permutation(labels)
        source = self.source_of(labels)
        few = spread(source, limit)
        chosen = few.images.ravel().tolist()
        assert len(few) == len(set(chosen)) == limit
        assert chosen == sorted(chosen), "in the source's order"
        np.testing.assert_array_equal(few.labels, labels[chosen])
        assert np.abs(np.bincount(few.labels, minlength=7) - limit / 7).max() < 1
        assert few.class_names == source.class_names

    def test_classes_of_unequal_sizes(self):
        few = spread(self.source_of([0] * 50 + [3] * 30 + [6] * 20), 10)
        assert np.bincount(few.labels).tolist() == [5, 0, 0, 3, 0, 0, 2]

    def test_they_are_spread_within_a_class_too(self):
        assert spread(self.source_of([0] * 100), 4).images.ravel().tolist() == [12, 37, 62, 87]

    @pytest.mark.parametrize("limit", [None, 23, 24, 10**9])
    def test_all_of_them(self, limit):
        source = self.source_of([0] * 23)
        assert spread(source, limit) is source

    def test_files_keep_their_names(self):
        labels = np.arange(23, dtype=np.int32) % 7
        files = ImageFiles([f"{number}.jpg" for number in range(23)])
        few = spread(Source("photos", tuple("abcdefg"), labels, files=files), 3)
        places = [int(few.name(index).removesuffix(".jpg")) for index in range(3)]
        assert len(few.files) == 3
        np.testing.assert_array_equal(few.labels, labels[places])

    def test_real_photos(self):
        photos = labelled_photos()
        if photos is None:
            pytest.skip("the photos are in the package foolbox, which is not installed")
        few = spread(photos, 5)
        assert len(few.files) == len(few) == 5
        for index, label in enumerate(few.labels):
            assert few.name(index).endswith(f"_{label}.jpg")
            assert (
                few.files.read(index).tobytes()
                == photos.files.read(photos.files.paths.index(few.name(index))).tobytes()
            )
