"""Pipelines: threads that read, crop, resize, augment and normalise the pictures of a `Source` into batches.

Threads suffice because OpenCV, Pillow and NumPy release the interpreter lock where the time goes. Random numbers come
from a counter-based generator addressed by (seed, epoch, picture), so a batch does not depend on the number of workers
or on the batches before it, and training resumes inside an epoch at no cost.
"""

import collections
import contextlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np

from mindrepvgg.data.crop import CentreCrop
from mindrepvgg.data.decode import decode
from mindrepvgg.data.faults import BadImages
from mindrepvgg.data.source import Source
from mindrepvgg.errors import RecipeError, UnreadableImageError
from mindrepvgg.models.preprocessing import Preprocessing

# Pictures per task: enough to make the cost of a task vanish, few enough to share a batch out evenly.
_PICTURES_PER_TASK = 4


class _Name(NamedTuple):
    """What a message calls a picture; worked out for a message only, because packed names have to be read."""

    source: Source
    number: int

    def __str__(self):
        return self.source.name(self.number)


class Loader:
    """What training and evaluation share: workers, decoding, normalisation.

    Args:
        source: the `Source` to read.
        preprocessing: the `Preprocessing` of the network.
        batch_size: pictures in a batch.
        num_parallel_workers: threads, at most one for each core.
        on_bad_image, bad_image_limit: see `BadImages`; with "error" a picture that cannot be read raises.
        as_uint8: give the pixels as they are, for `data.normalize.Normalize` on the device. They are a quarter of the
            bytes, and the host has less to do.
        rank, rank_size: this process's number among those that share the source, and their number.

    Raises:
        RecipeError: pictures of so many channels are never read.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        num_parallel_workers: int,
        on_bad_image: str = "error",
        bad_image_limit: float = 0.001,
        as_uint8: bool = False,
        rank: int = 0,
        rank_size: int = 1,
    ):
        if preprocessing.in_channels not in (1, 3):
            raise RecipeError(f"in_channels (={preprocessing.in_channels}) must be 1 (gray) or 3 (RGB)")
        if not 0 <= rank < rank_size:
            raise ValueError(f"rank (={rank}) must be in 0 ... rank_size - 1 (={rank_size - 1})")
        self.source = source
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.rank = rank
        self.rank_size = rank_size
        self.bad_images = BadImages(source, on_bad_image, bad_image_limit)
        self.num_workers = min(num_parallel_workers, os.cpu_count() or 1)
        self.as_uint8 = as_uint8
        self._gain, self._bias = preprocessing.gain_and_bias()

    def _finished(self, number, batches):
        """Yield the arrays of the `batches` of a pass, in order, while workers fill the next ones.

        A batch is (number of pictures, fill, finish): fill(rows) makes some of its rows, finish() gives its arrays when
        all are made.
        """
        tasks_per_batch = math.ceil(self.batch_size / _PICTURES_PER_TASK)
        batches_ahead = 1 + math.ceil(self.num_workers / tasks_per_batch)
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="mindrepvgg-data")
        pending = collections.deque()
        self.bad_images.start(number)
        try:
            for count, fill, finish in batches:
                pending.append(([pool.submit(fill, rows) for rows in _shares(count)], finish))
                if len(pending) > batches_ahead:
                    yield self._result(number, *pending.popleft())
            while pending:
                yield self._result(number, *pending.popleft())
        finally:  # also when the iterator is dropped half way, or on Ctrl-C
            pool.shutdown(cancel_futures=True)

    def _result(self, number, tasks, finish):
        """Return a batch's arrays when every task has done its part; raise what a task raised."""
        for task in tasks:
            task.result()
        self.bad_images.check(number)
        return finish()

    def _images(self, make, count):
        """Return an array made by `make` for a batch's images."""
        size, channels = self.preprocessing.image_size, self.preprocessing.in_channels
        if self.as_uint8:
            return make((count, *size, channels), np.uint8)
        return make((count, channels, *size), np.float32)

    def _put(self, picture, image):
        """Write a uint8 picture into image: uint8 (H, W, C), or float32 (C, H, W) normalised."""
        # A gray (H, W) picture broadcasts over the channels.
        if self.as_uint8:
            image[...] = picture if picture.ndim == 3 else picture[..., None]
            return
        np.multiply(picture.transpose(2, 0, 1) if picture.ndim == 3 else picture, self._gain, out=image)
        image += self._bias

    def _picture(self, index):
        """Return picture `index` as uint8: (H, W) when gray, (H, W, 3) RGB otherwise."""
        channels, files = self.preprocessing.in_channels, self.source.files
        if files is not None:
            return decode(files.read(index), _Name(self.source, index), channels)
        images: Any = self.source.images
        picture = images[index]
        if picture.shape[2] == 1:
            return picture[..., 0]
        return picture if channels == 3 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


class EvalLoader(Loader):
    """Batches of every picture once, in source order, for evaluation; iterate over it as often as needed.

    Rank r takes pictures r, r + rank_size, ... `indices`: these; `num_images`: how many they are; `steps`: batches, the
    same on every rank. options: see `Loader`.
    Yields images (batch_size, C, H, W) float32, or (batch_size, H, W, C) uint8, labels (batch_size,) int32 and valid
    (batch_size,) bool. Batches are filled up with zero images of label 0 that are not valid, so that a graph is
    compiled for one shape only. A picture that cannot be read is not valid either, unless on_bad_image is "error".
    Raises DataError when a picture cannot be read, or too many.
    """

    def __init__(self, source: Source, preprocessing: Preprocessing, batch_size: int, **options):
        super().__init__(source, preprocessing, batch_size, **options)
        self._centred = CentreCrop(preprocessing)
        self.indices = np.arange(self.rank, len(source), self.rank_size)
        self.num_images = len(self.indices)
        self.steps = math.ceil(math.ceil(len(source) / self.rank_size) / batch_size)

    def __iter__(self):
        batches = (
            self._batch(self.indices[step * self.batch_size : (step + 1) * self.batch_size])
            for step in range(self.steps)
        )
        with contextlib.closing(self._finished(0, batches)) as finished:
            yield from finished

    @property
    def unreadable(self):
        """The number of this rank's pictures that could not be read in the last pass."""
        return len(self.bad_images.of(0))

    def _batch(self, indices):
        """Return a batch as `_finished` wants it."""
        images = self._images(np.zeros, self.batch_size)
        labels = np.zeros(self.batch_size, np.int32)
        labels[: len(indices)] = self.source.labels[indices]
        valid = np.arange(self.batch_size) < len(indices)

        def fill(rows):
            for row in rows:
                index = int(indices[row])
                try:
                    self._put(self._centred(self._picture(index)), images[row])
                except UnreadableImageError as error:
                    self.bad_images.add(0, index, error)
                    valid[row] = False

        return len(indices), fill, lambda: (images, labels, valid)


def _shares(count):
    """Share rows 0 ... count - 1 out to tasks; rows i and count - 1 - i, which are mixed, go to the same one."""
    half = math.ceil(count / 2)
    for start in range(0, half, _PICTURES_PER_TASK // 2):
        front = range(start, min(start + _PICTURES_PER_TASK // 2, half))
        yield sorted({*front, *(count - 1 - row for row in front)})
