"""Packing: an image folder into MindRecord files, which `mindrepvgg.data.mindrecord` reads."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image

from mindrepvgg.data.datasets import SPLIT_FOLDERS, open_source
from mindrepvgg.data.decode import decode
from mindrepvgg.data.mindrecord import (
    FORMAT,
    INDEX,
    LENGTH,
    MEGABYTE,
    PROGRESS,
    SUFFIX,
    VERSION,
    is_record_folder,
    parse_index,
)
from mindrepvgg.data.shard import PARTIAL, add_shard, is_whole, page_size_for
from mindrepvgg.errors import DataError, UnreadableImageError, UserError
from mindrepvgg.files import write_json
from mindrepvgg.text import listed, quoted

_POLICIES = ("error", "skip")
_LARGEST_SHARD = 4096  # MB


class _Options(NamedTuple):
    """See `pack_folder`."""

    short_side: int | None
    quality: int
    shard_size: int
    num_parallel_workers: int
    on_bad_image: str

    def check(self):
        """Raise UserError for the first value that cannot be used."""
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"short_side (={self.short_side}) must be at least 1")
        if not 1 <= self.quality <= 95:
            raise UserError(f"quality (={self.quality}) must be in 1 ... 95, as libjpeg means it")
        if not 1 <= self.shard_size <= _LARGEST_SHARD:
            raise UserError(f"shard_size (={self.shard_size}) must be in 1 ... {_LARGEST_SHARD}, in MB")
        if self.num_parallel_workers < 1:
            raise UserError(f"num_parallel_workers (={self.num_parallel_workers}) must be at least 1")
        if self.on_bad_image not in _POLICIES:
            raise UserError(f"on_bad_image (={quoted(self.on_bad_image)}) must be one of: {', '.join(_POLICIES)}")

    @property
    def recorded(self) -> dict:
        """What the index tells of them: all that the files depend on."""
        quality = self.quality if self.short_side else None
        return {"short_side": self.short_side, "quality": quality, "shard_size": self.shard_size}


def _each(iterable, **_):
    return iterable


def pack_folder(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    short_side: int | None = None,
    quality: int = 95,
    shard_size: int = 512,
    num_parallel_workers: int = 1,
    on_bad_image: str = "error",
    overwrite: bool = False,
    watch: Callable = _each,
) -> dict[str, dict]:
    """Pack an image folder, each split it has, into MindRecord shards under `dst`.

    Each shard is read back through MindDataset, every name, label and byte compared, before it counts. A run that was
    stopped continues after the last whole shard when it is started again, to the same files bit for bit. Packing again
    what is packed compares the shards with their checksums, and replaces all from the first damaged one on.

    Args:
        src: the folder that `open_source("folder", src, split)` reads. A folder without train and val is packed into
            dst itself, as the split "". Classes, pictures, their order and labels stay.
        dst: the folder to pack into.
        short_side: pictures with a longer one are resized to it (bicubic over all source pixels, as evaluation
            resizes) and stored as JPEG; the others keep their bytes. None: all keep their bytes.
        quality: of these JPEGs, 1 ... 95.
        shard_size: MB, 1 ... 4096; so much memory is used too.
        num_parallel_workers: threads that decode, at most one for each core.
        on_bad_image: "skip" leaves out pictures that cannot be decoded, and lists them; "error" stops at the first.
        overwrite: begin anew.
        watch: watch(iterable, desc, total, initial) yields the items again, as tqdm does.

    Returns:
        The indices by split.

    Raises:
        DataError: sources or places cannot be used, options are other than before, or the disk is full.
        UserError: a value cannot be used.
    """
    options = _Options(short_side, quality, shard_size, num_parallel_workers, on_bad_image)
    options.check()
    src, dst = Path(os.path.expanduser(src)), Path(os.path.expanduser(dst))
    if dst.exists() and not dst.is_dir():
        raise DataError(f"{dst} is a file; give a folder to pack into")
    if src.is_dir() and dst.resolve().is_relative_to(src.resolve()):
        raise DataError(f"{dst} lies in {src}, whose folders are classes; give a folder outside of it")
    sources = _sources(src)
    _prepare_folders(dst, [dst / split for split in sources], overwrite)
    return {split: _Packer(dst / split, source, src, options, watch).run() for split, source in sources.items()}


def _sources(src):
    """Return the sources of the splits that are there, by split; of a folder that is not divided, under ""."""
    if any(is_record_folder(folder) for folder in (src, src / "train", src / "val")):
        raise DataError(f"{src} is packed already; give a folder of pictures")
    splits = [split for split, names in SPLIT_FOLDERS.items() if any((src / name).is_dir() for name in names)]
    if not splits:
        return {"": open_source("folder", src, "val")}
    return {split: open_source("folder", src, split) for split in splits}


def _prepare_folders(dst, folders, overwrite):
    """Make the folders to pack into; what is not ours is refused, and with `overwrite` what is ours removed."""
    for folder in folders:
        strangers = sorted(path.name for path in folder.iterdir() if not _is_ours(path)) if folder.exists() else []
        if strangers:
            raise DataError(
                f"{folder} holds other things ({listed([repr(name) for name in strangers], 5)}); give a new folder"
            )
    for folder in folders if overwrite else ():
        _remove(folder, keep=())
    other_layout = [dst / "train", dst / "val"] if dst in folders else [dst]
    for folder in filter(is_record_folder, other_layout):
        raise DataError(f"{folder} holds another packed data set; give a new folder")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def _is_ours(path):
    return path.name in (INDEX, PROGRESS) or path.name.endswith((SUFFIX, f"{SUFFIX}.db", PARTIAL))


def _remove(folder, keep):
    """Remove what packing left in a folder but for the files named in `keep`; the index first, which vouches for it."""
    names = (INDEX, PROGRESS, *(path.name for pattern in ("", ".db") for path in folder.glob(f"*{SUFFIX}{pattern}")))
    for name in names:
        if name not in keep:
            (folder / name).unlink(missing_ok=True)
    for path in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Packer:
    """The packing of one split: `run` does what is left of it."""

    def __init__(self, folder, source, src, options, watch):
        self.folder = folder
        self.source = source
        self.options = options
        self.watch = watch
        paths = source.files.paths
        self.names = [_text(path.removeprefix(f"{src}{os.sep}")) for path in paths]
        sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
        # One for all shards: MindDataset takes no others together.
        self.page_size = page_size_for(sizes, bool(options.short_side))
        # Another version may write other bytes.
        versions = {"mindspore": importlib.metadata.version("mindspore")}
        if options.short_side:
            versions["pillow"] = PIL.__version__
        self.index = {
            "format": FORMAT,
            "version": VERSION,
            "options": options.recorded,
            "packed_with": versions,
            "source_sha256": _digest(self.names, sizes, source.labels.tolist()),
            "class_names": [_text(name) for name in source.class_names],
            "num_images": 0,
            "left_out": [],
            "shards": [],
        }

    def run(self):
        """Pack what is not packed yet; return the index."""
        self._take_up()
        shards = self.index["shards"]
        start = shards[-1]["next"] if shards else 0
        if start < len(self.source) or not (self.folder / INDEX).is_file():
            kept = [shard["file"] for shard in shards]
            self._save(PROGRESS)
            _remove(self.folder, {PROGRESS, *kept, *(f"{name}.db" for name in kept)})
            if start < len(self.source):
                self._pack(start)
            self._save(INDEX)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        return self.index

    def _take_up(self):
        """Put the whole shards of a run before into the index."""
        path = next((self.folder / name for name in (INDEX, PROGRESS) if (self.folder / name).is_file()), None)
        if path is None:
            return
        before = parse_index(path)
        for key in ("options", "packed_with"):
            if before.get(key) != self.index[key]:
                raise DataError(
                    f"{self.folder} was packed with {_changes(before.get(key), self.index[key])}; pack as before, "
                    "into another folder, or anew with --overwrite"
                )
        if any(before.get(key) != self.index[key] for key in ("source_sha256", "class_names")):
            raise DataError(
                f"{self.folder} was packed from another folder, or its pictures have changed since; pack into another "
                "folder, or anew with --overwrite"
            )
        watched = self.watch(before["shards"], desc=f"check {self.folder.name}")
        self.index["shards"] = list(itertools.takewhile(lambda shard: is_whole(self.folder, shard), watched))
        self._count(before["left_out"])

    def _count(self, left_out):
        """Bring the index's numbers up to its shards; left_out: (number, what is wrong) of pictures so far."""
        shards = self.index["shards"]
        stop = shards[-1]["next"] if shards else 0
        self.index["left_out"] = [entry for entry in left_out if entry[0] < stop]
        self.index["num_images"] = sum(shard["images"] for shard in shards)
        if left_out and self.options.on_bad_image == "error":
            raise UnreadableImageError(left_out[0][1])

    def _save(self, name):
        write_json(self.folder / name, self.index)

    def _pack(self, start):
        """Write the shards of pictures start, start + 1, ..."""
        limit = self.options.shard_size * MEGABYTE
        rows, size, left_out = [], 0, list(self.index["left_out"])
        stored = _stored_pictures(self.source, start, self.page_size, self.options)
        with contextlib.closing(stored):
            desc = f"pack {self.folder.name}"
            for number, picture in self.watch(stored, desc=desc, total=len(self.source), initial=start):
                if isinstance(picture, UnreadableImageError):
                    if self.options.on_bad_image == "error":
                        raise picture
                    left_out.append([number, str(picture)])
                    continue
                if rows and size + len(picture) > limit:
                    self._add_shard(rows, number, left_out)
                    rows, size = [], 0
                rows.append({"name": self.names[number], "label": int(self.source.labels[number]), "image": picture})
                size += len(picture)
        if not rows:
            raise DataError(f"no picture can be read; the first: {left_out[0][1]}")
        self._add_shard(rows, len(self.source), left_out)

    def _add_shard(self, rows, following, left_out):
        """Write the next shard, and say so in the progress; following: the picture that a next one begins with."""
        shards = self.index["shards"]
        entry = add_shard(self.folder, len(shards), rows, following, self.page_size, like=self.folder / PROGRESS)
        shards.append(entry)
        self._count(left_out)
        self._save(PROGRESS)


def _digest(names, sizes, labels):
    """A digest of the names, file sizes and labels of all pictures."""
    digest = hashlib.sha256()
    for name, size, label in zip(names, sizes, labels, strict=True):
        digest.update(f"{name}\0{size}\0{label}\0".encode())
    return digest.hexdigest()


def _stored_pictures(source, start, page_size, options):
    """Yield the number of pictures start, start + 1, ... and what is stored of each, or why it cannot be."""

    def prepare(number):
        # Every picture is decoded, so that what training could not read is found now.
        name = source.name(number)
        try:
            content = _resized(source.files.read(number), name, options.short_side, options.quality)
        except UnreadableImageError as error:
            return error
        if len(content) + LENGTH.size > page_size:
            return UnreadableImageError(f"{name} needs {len(content)} bytes, more than MindRecord can hold in one page")
        return content

    workers = min(options.num_parallel_workers, os.cpu_count() or 1)
    pool, pending = ThreadPoolExecutor(workers, thread_name_prefix="mindrepvgg-pack"), collections.deque()
    try:
        for number in range(start, len(source)):
            pending.append((number, pool.submit(prepare, number)))
            if len(pending) > 2 * workers:
                number, task = pending.popleft()
                yield number, task.result()
        for number, task in pending:
            yield number, task.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _text(name):
    """Return a file's name as text that UTF-8 can hold; bytes it cannot are written as hexadecimal escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _changes(before, now):
    def shown(value):
        return "not given" if value is None else value

    changed = [key for key in now if before.get(key) != now[key]]
    return ", ".join(f"{key} {shown(before.get(key))} (now {shown(now[key])})" for key in changed)


def _resized(encoded, name, short_side, quality):
    """Return the bytes to store for an encoded picture, its own where it is not to be resized.

    Raises UnreadableImageError when it cannot be decoded.
    """
    picture = decode(encoded, name, 3)
    height, width = picture.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return encoded.tobytes()
    # As evaluation has it: the long side is rounded down.
    size = (short_side, height * short_side // width) if width <= height else (width * short_side // height, short_side)
    if _is_gray(encoded):
        picture = decode(encoded, name, 1)
    stored = io.BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).save(stored, "JPEG", quality=quality)
    return stored.getvalue()


def _is_gray(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return image.mode == "L"
