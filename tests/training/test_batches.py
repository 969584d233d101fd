"""Batches that the device fetches itself are those that the host would hand over."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.batches import DeviceQueue, host_batches


@pytest.fixture(scope="module")
def loader():
    """Digits in four batches an epoch."""
    recipe = load_recipe(None, {"model": "repvgg_nano", "dataset": "mnist5k", "num_classes": 10})
    return TrainLoader(
        open_source("mnist5k", None, "train", 10),
        Preprocessing(image_size=(8, 8), mean=(0.5,), std=(0.5,), in_channels=1),
        Augmentation.of(recipe),
        batch_size=1000,
        seed=1,
        num_parallel_workers=1,
    )


class TestDeviceQueue:
    @pytest.fixture(autouse=True)
    def _stand_in(self, monkeypatch):
        """What a device does, without one: MindSpore's own iterator over the dataset, endless epochs."""

        def data_sink(function, dataset):
            assert dataset.get_dataset_size() > 0
            rows = dataset.create_tuple_iterator(num_epochs=1)
            return lambda: function(*next(rows))

        monkeypatch.setattr(ms, "data_sink", data_sink)

    @pytest.mark.parametrize(("epoch", "start"), [(0, 0), (1, 3), (2, 1)])
    @pytest.mark.parametrize("batches_per_epoch", [4, 3])
    def test_the_batches_are_the_hosts(self, loader, epoch, start, batches_per_epoch):
        start = min(start, batches_per_epoch)
        queue = DeviceQueue(loader, epoch, start, 3, batches_per_epoch)
        for now in range(epoch, 3):
            first = start if now == epoch else 0
            found = [tuple(x.asnumpy() for x in batch) for batch in queue.batches(first)]
            expected = [tuple(x.asnumpy() for x in batch) for batch in host_batches(loader, now, first)]
            expected = expected[: batches_per_epoch - first]
            assert len(found) == batches_per_epoch - first
            for batch, other in zip(found, expected, strict=True):
                for array, truth in zip(batch, other, strict=True):
                    assert array.dtype == truth.dtype
                    np.testing.assert_array_equal(array, truth)
        with pytest.raises(StopIteration):
            queue._fetch()


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has an Ascend device")
def test_a_cpu_takes_no_queue(loader):
    """Negative control for the stand-in, which is not what runs there."""
    with pytest.raises(ValueError, match=r"(?i)ascend"):
        next(DeviceQueue(loader, 0, 0, 1, 4).batches(0))
