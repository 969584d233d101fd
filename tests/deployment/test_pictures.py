"""The pictures that a file is compared on."""

import pytest
from support.exports import make

from mindrepvgg.deployment.graph import GraphOptions
from mindrepvgg.deployment.pictures import Pictures

pytestmark = pytest.mark.usefixtures("few_photos")


@pytest.mark.parametrize("batch_size", [None, 1, 7, 32])
def test_batches_are_of_every_kind(batch_size):
    """Whole batches where the batch is fixed, other sizes where the size is not."""
    pictures = Pictures(make("nano"), {"image_resize": [16, 24]})
    fixed = [len(x) for x in pictures.batches(GraphOptions(batch_size, (16, 24)))]
    assert set(fixed) == ({batch_size} if batch_size else {8, 4, 1})
    shapes = {x.shape[1:3] for x in pictures.batches(GraphOptions(batch_size))}
    assert shapes == {(16, 24), (12, 24), (16, 18)}


def test_without_pictures_it_is_noise(monkeypatch):
    monkeypatch.setattr("mindrepvgg.deployment.pictures.labelled_photos", lambda: None)
    pictures = Pictures(make("plain"), {"image_resize": [16, 24]})
    assert pictures.origin == "8 images of seeded noise"
    assert pictures.pixels.shape == (8, 16, 24, 3)
