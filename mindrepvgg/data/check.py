"""What is wrong with a data set: unreadable pictures, duplicates, classes without pictures.

Every picture is decoded as training decodes it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import itertools
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mindrepvgg.data.check_report import USUAL_SIDE, DataReport
from mindrepvgg.data.datasets import IMAGE_SUFFIXES, SPLIT_FOLDERS, class_folders, folder_title, open_source
from mindrepvgg.data.decode import decode, what_is_wrong
from mindrepvgg.data.mindrecord import is_record_folder
from mindrepvgg.data.source import SPLITS, ImageFiles, Source
from mindrepvgg.errors import DataError, UnreadableImageError
from mindrepvgg.recipe.choices import DATASET_ALIASES

UNDIVIDED = "all"  # what the one split of a folder without train and val is called

_PICTURES_PER_TASK = 32

# A JPEG with further pictures behind the first, as many cameras write under the name .jpg.
_SAME_FORMAT = {"MPO": "JPEG"}


class _Seen(NamedTuple):
    """One readable picture: SHA-256 of its bytes (of its pixels, for a set in memory), size, Pillow's mode, format."""

    digest: bytes
    height: int
    width: int
    mode: str
    format: str | None


@dataclasses.dataclass
class _Split:
    """A split as it lies there, with all that `open_source` would refuse or pass over."""

    source: Source
    problems: list[str] = dataclasses.field(default_factory=list)
    # Files that are no pictures, by suffix.
    ignored: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    outside: int = 0  # pictures that lie in no class folder

    def place(self, index):
        """Where picture `index` is, for the report, but for the split."""
        source = self.source
        return {"file": source.name(index), "class": source.class_names[source.labels[index]]}


def check_data(data_dir, dataset="folder", val_share=0.0, num_parallel_workers=1, show_progress=False) -> DataReport:
    """Look at every picture of a data set's splits.

    Where `open_source` stops at the first mistake of an image folder, the mistake is noted here and the rest is looked
    at. Of a picture its name and some bytes are kept, never its pixels.

    Args:
        data_dir, dataset, val_share: see `open_source`. A folder without train and val is one split, `UNDIVIDED`,
            unless val_share divides it.
        num_parallel_workers: threads that decode, at most one for each core.
        show_progress: draw a progress bar on a terminal.

    Raises:
        DataError: there is nothing to look at.
        RecipeError: an impossible val_share.
    """
    dataset = DATASET_ALIASES.get(dataset, dataset)
    splits, problems = _splits(data_dir, dataset, val_share)
    unreadable, wrong_suffix, facts, digests = [], [], {}, {}
    hidden = not (show_progress and sys.stderr.isatty())
    total = sum(len(split.source) for split in splits.values())
    with tqdm(total=total, unit="image", desc="check", leave=False, disable=hidden) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata are the file's business
        for name, split in splits.items():
            tally = _Tally(split)
            for index, seen in _look_at_all(split.source, num_parallel_workers):
                tally.add(index, seen)
                bar.update()
            facts[name], digests[name] = tally.facts(), tally.digests
            problems += split.problems
            unreadable += [{"split": name, **entry} for entry in tally.unreadable]
            wrong_suffix += [{"split": name, **entry} for entry in tally.wrong_suffix]
    return DataReport(
        data_dir=str(data_dir or ""),
        dataset=dataset,
        splits=facts,
        problems=list(dict.fromkeys(problems)),
        unreadable=unreadable,
        duplicates=_duplicates(splits, digests),
        wrong_suffix=wrong_suffix,
        missing_classes=_missing_classes(splits),
    )


# ------------------------------------------------------------------------------------------------------------- splits


def _splits(data_dir, dataset, val_share):
    """The splits by name, and what `open_source` refuses of those that are there."""
    opened, refused = {}, {}
    for split in SPLITS:
        try:
            opened[split] = open_source(dataset, data_dir, split, val_share=val_share)
        except DataError as error:
            refused[split] = error
    if not opened and not (data_dir and os.path.isdir(os.path.expanduser(data_dir))):
        raise next(iter(refused.values()))
    if dataset != "folder":
        if not opened:
            raise next(iter(refused.values()))
        return {name: _Split(source) for name, source in opened.items()}, [str(error) for error in refused.values()]
    root = Path(os.path.expanduser(data_dir))
    folders = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    if not any(folders.values()):
        if val_share and not refused:
            splits = {name: _Split(source) for name, source in opened.items()}
            if not is_record_folder(root):
                # What lies beside the pictures belongs to neither split; it is told once.
                splits["train"] = dataclasses.replace(_folder_split(root), source=opened["train"])
            return splits, []
        folders = {UNDIVIDED: root}
        # Without val_share such a folder has no "train", which is no mistake.
        errors = [error for split, error in refused.items() if val_share or split == "val"]
        refused = {UNDIVIDED: errors[0]} if errors else {}
    splits, problems = {}, []
    for name, folder in folders.items():
        if folder is None:
            continue
        if name in refused:
            problems.append(str(refused[name]))
        if not is_record_folder(folder):
            splits[name] = _folder_split(folder)
        elif name not in refused:
            splits[name] = _Split(opened["val" if name == UNDIVIDED else name])
    if not any(len(split.source) or split.outside for split in splits.values()):
        raise DataError(problems[0])
    return splits, problems


def _folder_split(folder):
    """A folder of class folders as it is, empty ones too."""
    problems, ignored = [], collections.Counter()
    here = _files(folder, problems, ignored, depth=1)
    try:
        class_names = tuple(class_folders(folder))
    except OSError:  # which `_files` has noted
        class_names = ()
    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = _files(folder / name, problems, ignored)
        paths += found
        labels += [label] * len(found)
    source = Source(folder_title(folder), class_names, np.array(labels, np.int32), files=ImageFiles(paths))
    return _Split(source, problems, ignored, len(here))


def _files(folder, problems, ignored, depth=None):
    """The sorted pictures under a folder, by suffix, links followed; the others are counted by theirs in `ignored`."""

    def fail(error):
        problems.append(f"cannot list {error.filename}: {error.strerror}")

    pictures = []
    for parent, _, names in itertools.islice(os.walk(folder, followlinks=True, onerror=fail), depth):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                pictures.append(os.path.join(parent, name))
            else:
                ignored[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    return sorted(pictures)


def _missing_classes(splits):
    """For each split the classes that another split has and it has not; pictures or none."""
    every = set().union(*(split.source.class_names for split in splits.values()))
    missing = {name: sorted(every - set(split.source.class_names)) for name, split in splits.items()}
    return {name: names for name, names in missing.items() if names}


# ----------------------------------------------------------------------------------------------------------- pictures


def _look_at_all(source, num_workers):
    """Yield (index, `_Seen` or the reason why not) of all pictures, in order, from threads."""
    look = _look_at_file if source.images is None else _look_at_array
    starts = range(0, len(source), _PICTURES_PER_TASK)

    def task(start):
        indices = range(start, min(start + _PICTURES_PER_TASK, len(source)))
        return [(index, look(source, index)) for index in indices]

    pool = ThreadPoolExecutor(min(num_workers, os.cpu_count() or 1), thread_name_prefix="mindrepvgg-check")
    try:
        for found in pool.map(task, starts):
            yield from found
    finally:  # also on Ctrl-C
        pool.shutdown(cancel_futures=True)


def _look_at_file(source, index):
    try:
        encoded = source.files.read(index)
    except DataError as error:
        return str(error).removeprefix(f"{source.name(index)} ")
    try:
        height, width = decode(encoded, source.name(index), in_channels=3).shape[:2]
    except UnreadableImageError:
        return what_is_wrong(encoded)
    try:
        with Image.open(io.BytesIO(encoded)) as image:  # its header only
            mode, kind = image.mode, image.format
    # A JPEG larger than Pillow's limit, or odd in a way that OpenCV does not mind.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        mode, kind = "of unknown mode", "JPEG"
    return _Seen(hashlib.sha256(encoded).digest(), height, width, mode, kind)


def _look_at_array(source, index):
    picture = source.images[index]
    height, width, channels = picture.shape
    mode = "L" if channels == 1 else "RGB"
    return _Seen(hashlib.sha256(np.ascontiguousarray(picture)).digest(), height, width, mode, "array")


class _Tally:
    """Counts the pictures of a split.

    digests: (N, 32) uint8, all zero for what cannot be read.
    """

    def __init__(self, split: _Split):
        self._split = split
        count = len(split.source)
        self.digests = np.zeros((count, hashlib.sha256().digest_size), np.uint8)
        self._sizes = np.zeros((count, 2), np.int32)
        self._kinds = collections.Counter()
        self.unreadable, self.wrong_suffix = [], []

    def add(self, index, seen):
        """Count a picture; seen: a `_Seen`, or the reason why it cannot be read."""
        if isinstance(seen, str):
            self.unreadable.append({**self._split.place(index), "reason": seen})
            return
        self.digests[index] = np.frombuffer(seen.digest, np.uint8)
        self._sizes[index] = seen.height, seen.width
        self._kinds[f"{seen.format} {seen.mode}"] += 1
        if isinstance(self._split.source.files, ImageFiles):
            suffix = os.path.splitext(self._split.source.files.paths[index])[1].lower()
            expected = Image.registered_extensions().get(suffix)
            if expected != _SAME_FORMAT.get(seen.format, seen.format):
                self.wrong_suffix.append({**self._split.place(index), "format": seen.format})

    def facts(self):
        """The split's figures, in plain types."""
        split, source = self._split, self._split.source
        readable = self._sizes[:, 0] > 0
        counts = np.bincount(source.labels, minlength=source.num_classes)
        good = np.bincount(source.labels[readable], minlength=source.num_classes)
        by_class = dict(zip(source.class_names, counts.tolist(), strict=True))
        return {
            "pictures": len(source),
            "unreadable": len(self.unreadable),
            "classes": source.num_classes,
            "pictures_per_class": _spread(counts),
            "class_counts": by_class,
            "empty_classes": [name for name, count in by_class.items() if not count],
            "classes_without_readable": [
                name for name, count, left in zip(by_class, counts, good, strict=True) if count and not left
            ],
            "outside_of_classes": split.outside,
            "ignored_files": dict(split.ignored.most_common()),
            "kinds": dict(self._kinds.most_common()),
            "height": _spread(self._sizes[readable, 0]),
            "width": _spread(self._sizes[readable, 1]),
            f"side_below_{USUAL_SIDE}": int((self._sizes[readable].min(axis=1, initial=1 << 30) < USUAL_SIDE).sum()),
        }


def _spread(values):
    """The smallest, median and largest; None of nothing."""
    if not len(values):
        return None
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _duplicates(splits, digests):
    """The groups of readable pictures that have the same bytes, by the first picture of each."""
    every = np.concatenate([digests[name] for name in splits])
    names, starts_of_splits = list(splits), np.cumsum([0, *map(len, digests.values())])

    def file(number):
        split = np.searchsorted(starts_of_splits, number, side="right") - 1
        return {"split": names[split], **splits[names[split]].place(number - starts_of_splits[split])}

    readable = np.flatnonzero(every.any(axis=1))
    order = readable[np.lexsort(every[readable].view(np.uint64).T)]  # stable: the pictures of a group stay in order
    begins = np.ones(len(order), bool)
    begins[1:] = (every[order[1:]] != every[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=len(order))
    groups = [order[start : start + size] for start, size in zip(starts, sizes, strict=True) if size > 1]
    found = []
    for group in sorted(groups, key=lambda group: group[0]):
        files = [file(number) for number in group]
        found.append(
            {
                "two_classes": len({file["class"] for file in files}) > 1,
                "two_splits": len({file["split"] for file in files}) > 1,
                "files": files,
            }
        )
    return found
