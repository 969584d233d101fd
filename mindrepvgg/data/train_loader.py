"""The training loader: threads that read, crop, augment, mix and normalise pictures into batches."""

import contextlib
import itertools
import math

import cv2
import numpy as np

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.crop import OPENCV_KERNELS, padded_crop, random_resized_crop, resize_fast
from mindrepvgg.data.image_operations import color_jitter, random_erasing
from mindrepvgg.data.loader import Loader
from mindrepvgg.data.mix import draw_mix, mix_pair, soft_targets
from mindrepvgg.data.policies import build_policy
from mindrepvgg.data.source import Source
from mindrepvgg.errors import DataError, RecipeError, UnreadableImageError
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.text import counted

_ORDER, _AUGMENTATION, _MIXING = 0, 1, 2  # independent random streams

# Added to a picture's repeat where it stands in for another, so that it is not there twice with the same augmentation.
_STAND_IN = 1 << 20


class TrainLoader(Loader):
    """Shuffled, augmented training batches; a pure function of (seed, epoch, rank) and the arguments.

    Augmentation (`Augmentation`): a random crop, of the network's image size at last, flips, then a policy or
    colour jitter, normalisation, random erasing; at last the batch is mixed.
    num_classes: of soft targets; None: the source's. options: see `Loader`; `as_uint8` is not possible with erasing or
    mixing, which work on normalised values.
    Every epoch is a permutation of the source, or without shuffle its own order. Each step takes the next
    batch_size * rank_size pictures of it, and rank r the r-th part of these. So the pictures of a step do not depend on
    the number of ranks. With aug_repeats R a step has as many pictures, but they are the next R-th part only, each of
    them R times, one round after the other (cut off where R does not divide); an epoch has as many steps and does not
    reach the other pictures. How a batch is mixed is drawn for each rank.
    drop_remainder: leave out the pictures that do not fill a step; otherwise the last step is smaller, and filled up
    from the start of the permutation to a multiple of rank_size.
    OpenCV becomes single-threaded in this process: its own threads would compete with the workers. Another version of
    NumPy or OpenCV may give other numbers.
    Raises DataError when no step can be filled, RecipeError for values that cannot be used.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_remainder: bool = True,
        num_classes: int | None = None,
        **options,
    ):
        super().__init__(source, preprocessing, batch_size, **options)
        if self.as_uint8 and not augmentation.keeps_pixels:
            raise ValueError("as_uint8 is not possible with random erasing, mixup or cutmix")
        self.augmentation = augmentation
        self.shuffle = shuffle
        self.seed = seed
        self.num_classes = source.num_classes if num_classes is None else num_classes
        if self.num_classes < source.num_classes:
            raise RecipeError(
                f"num_classes (={num_classes}) must be at least the data's {counted(source.num_classes, 'class')}"
            )
        self._policy = augmentation.auto_augment and build_policy(
            augmentation.auto_augment,
            [round(255 * value) for value in preprocessing.mean],
            OPENCV_KERNELS[preprocessing.interpolation],
        )
        rank_size = self.rank_size
        self._pictures_per_step = batch_size * rank_size
        count = len(source)
        if drop_remainder and count < self._pictures_per_step:
            ranks = f" times rank_size (={rank_size})" if rank_size > 1 else ""
            raise DataError(
                f"batch_size (={batch_size}){ranks} is larger than the {counted(count, 'training picture')}; "
                f"use a batch_size of at most {count // rank_size}"
            )
        if drop_remainder:
            self._pictures_per_epoch = count - count % self._pictures_per_step
        else:
            self._pictures_per_epoch = math.ceil(count / rank_size) * rank_size
        cv2.setNumThreads(1)

    @property
    def steps_per_epoch(self):
        """The number of batches of an epoch, the same on every rank."""
        return math.ceil(self._pictures_per_epoch / self._pictures_per_step)

    def order(self, epoch):
        """Return the source indices of an epoch in the order of use, all ranks together."""
        permutation = self._permutation(epoch)
        return np.concatenate([self._views(permutation, step)[0] for step in range(self.steps_per_epoch)])

    def epoch(self, epoch, start_step=0):
        """Return an iterator over steps start_step, start_step + 1, ... of an epoch (counted from 0).

        Yields images (N, C, H, W) float32, or (N, H, W, C) uint8, and labels (N,) int32; with mixup or cutmix soft
        targets (N, num_classes) float32 instead, for every batch, mixed or not, and without label smoothing, which is
        the loss's.
        Raises DataError when a picture cannot be read, or under another `on_bad_image` too many.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"start_step (={start_step}) must be in 0 ... steps_per_epoch (={self.steps_per_epoch})")
        return self._steps(epoch, start_step)

    def _steps(self, epoch, start_step):
        permutation = self._permutation(epoch)
        batches = (
            self._batch(epoch, step, *self._views(permutation, step))
            for step in range(start_step, self.steps_per_epoch)
        )
        with contextlib.closing(self._finished(epoch, batches)) as finished:
            yield from finished

    def _permutation(self, epoch):
        count = len(self.source)
        return self._random(_ORDER, epoch, 0).permutation(count) if self.shuffle else np.arange(count)

    def _views(self, permutation, step):
        """Return the source index of each picture of a step, all ranks together, and how often it was there before."""
        start = step * self._pictures_per_step
        views = np.arange(min(self._pictures_per_step, self._pictures_per_epoch - start))
        repeats = max(self.augmentation.aug_repeats, 1)
        pictures = math.ceil(len(views) / repeats)
        positions = step * math.ceil(self._pictures_per_step / repeats) + views % pictures
        return permutation[positions % len(permutation)], views // pictures

    def _batch(self, epoch, step, indices, repeats):
        """Return the rank's batch of a step as `_finished` wants it; indices, repeats: of all ranks."""
        indices, repeats = (np.array_split(array, self.rank_size)[self.rank] for array in (indices, repeats))
        images = self._images(np.empty, len(indices))
        labels, mix = self.source.labels[indices], None
        if self.augmentation.mixes:
            mix = draw_mix(
                self.augmentation.mixup,
                self.augmentation.cutmix,
                self.augmentation.cutmix_prob,
                self.preprocessing.image_size,
                self._random(_MIXING, epoch, step, self.rank),
            )

        def fill(rows):
            for row in rows:
                index = int(indices[row])
                try:
                    self._write(images[row], epoch, index, int(repeats[row]))
                except UnreadableImageError as error:
                    self.bad_images.add(epoch, index, error)
                    labels[row] = self._write_stand_in(images[row], epoch, row, indices, int(repeats[row]))
            if mix:
                for row in rows:
                    if row < len(images) // 2:
                        mix_pair(images[row], images[-1 - row], mix)

        def finish():
            return images, soft_targets(labels, self.num_classes, mix) if self.augmentation.mixes else labels

        return len(indices), fill, finish

    def _write_stand_in(self, image, epoch, row, indices, repeat):
        """Write another picture in place of row `row`'s, which cannot be read, into image; return its label.

        Which one follows from the batch's `indices` alone, whatever the workers have done by now.
        """
        label = self.source.labels[indices[row]]
        if self.bad_images.policy == "skip":
            candidates, what = indices, f"the {len(indices)} pictures of a batch"
        else:
            candidates = np.flatnonzero(self.source.labels == label)
            what = f"class {self.source.class_names[label]!r}"
        start = int(np.flatnonzero(candidates == indices[row])[0])
        for index in map(int, dict.fromkeys(itertools.chain(candidates[start + 1 :], candidates[:start]))):
            try:
                self._write(image, epoch, index, repeat + _STAND_IN)
            except UnreadableImageError as error:
                self.bad_images.add(epoch, index, error)
            else:
                return self.source.labels[index]
        raise DataError(
            f"no picture of {what} can be read, {self.source.name(indices[row])} the first; "
            "mindrepvgg check-data finds all that are damaged"
        )

    def _write(self, image, epoch, index, repeat):
        """Write picture `index` as training sees it in an epoch, for the `repeat`-th time in a step, into image."""
        augmentation, preprocessing = self.augmentation, self.preprocessing
        picture = self._picture(index)
        rng = self._random(_AUGMENTATION, epoch, index, repeat)
        padding = augmentation.crop_padding
        if not padding:
            height, width = picture.shape[:2]
            top, left, height, width = random_resized_crop(height, width, augmentation.scale, augmentation.ratio, rng)
            picture = picture[top : top + height, left : left + width]
        picture = resize_fast(picture, preprocessing.image_size, preprocessing.interpolation)
        if padding:
            picture = padded_crop(picture, preprocessing.image_size, padding, rng)
        if rng.random() < augmentation.hflip:
            picture = cv2.flip(picture, 1)
        if rng.random() < augmentation.vflip:
            picture = cv2.flip(picture, 0)
        if self._policy:
            picture = self._policy(picture, rng)
        elif augmentation.color_jitter:
            picture = color_jitter(picture, augmentation.color_jitter, rng)
        self._put(picture, image)
        if rng.random() < augmentation.re_prob:
            random_erasing(image, augmentation.re_scale, augmentation.re_ratio, augmentation.re_value, rng)

    def _random(self, stream, epoch, index, part=0):
        """Return the generator that belongs to (seed, stream, epoch, index, part) and to nothing else."""
        # The generator itself counts up the lowest word, never as far as the next part.
        return np.random.Generator(np.random.Philox(key=self.seed, counter=(part << 32, stream, epoch, index)))
