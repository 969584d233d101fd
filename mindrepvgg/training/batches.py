"""Batches on their way to the device: handed over one by one, or fetched by the device itself."""

from __future__ import annotations

from contextlib import closing

import mindspore as ms
import mindspore.dataset as ds
from mindspore import Tensor


def host_batches(loader, epoch, start):
    """Yield the batches of an epoch from number `start` on as tensors."""
    with closing(loader.epoch(epoch, start)) as batches:
        for arrays in batches:
            yield tuple(Tensor(array) for array in arrays)


class DeviceQueue:
    """All batches of a run from a given one on, which MindSpore sends to the device ahead of their use.

    Every epoch gives its first `batches_per_epoch` batches. The device must be one MindSpore can sink data to
    (Ascend); every batch must have the same shape.
    """

    def __init__(self, loader, epoch, start, epochs, batches_per_epoch):
        self._batches_per_epoch = batches_per_epoch
        source = _Run(loader, epoch, start, epochs, batches_per_epoch)
        dataset = ds.GeneratorDataset(source, ["images", "targets"], shuffle=False, num_parallel_workers=1)
        self._fetch = ms.data_sink(_as_they_are, dataset)

    def batches(self, start):
        """Yield the batches of the next epoch, of which `start` are behind us."""
        for _ in range(start, self._batches_per_epoch):
            yield self._fetch()


class _Run:
    """The batches of a run as MindSpore's dataset wants them: an iterable that knows its length."""

    def __init__(self, loader, epoch, start, epochs, batches_per_epoch):
        self.places = [(e, start if e == epoch else 0) for e in range(epoch, epochs)]
        self.loader = loader
        self.batches_per_epoch = batches_per_epoch

    def __len__(self):
        return sum(self.batches_per_epoch - start for _, start in self.places)

    def __iter__(self):
        for epoch, start in self.places:
            with closing(self.loader.epoch(epoch, start)) as batches:
                for _, arrays in zip(range(start, self.batches_per_epoch), batches, strict=False):
                    yield arrays


def _as_they_are(images, targets):
    return images, targets
