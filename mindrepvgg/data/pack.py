"""Packing: an image folder into MindRecord files, which `mindrepvgg.data.mindrecord` reads."""

import collections
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
from PIL import Image

from mindrepvgg.data.datasets import SPLIT_FOLDERS, open_source
from mindrepvgg.data.decode import decode
from mindrepvgg.data.mindrecord import (
    FORMAT,
    HEADER_SIZE,
    INDEX,
    LENGTH,
    MEGABYTE,
    PROGRESS,
    SUFFIX,
    VERSION,
    database_of,
    is_record_folder,
    open_file,
    parse_index,
    read_header,
    sha256_of,
    shard_name,
)
from mindrepvgg.errors import DataError, UnreadableImageError, UserError
from mindrepvgg.files import write_json
from mindrepvgg.text import listed

_PARTIAL = ".partial"  # ends the names of work folders and unfinished files
_POLICIES = ("error", "skip")

_SCHEMA = {"name": {"type": "string"}, "label": {"type": "int32"}, "image": {"type": "bytes"}}
_LARGEST_SHARD = 4096  # MB
_SMALLEST_PAGE, _USUAL_PAGE = 64 << 10, 8 << 20
_LARGEST_PAGE = 256 << 20  # MindSpore's own limit
# What a row takes beside its picture: in its page and in the .db the name, and less than this.
_ROW_OVERHEAD = 256
_SPARE = 16 << 20  # MindSpore writes nothing where less than 10 MB would stay free
_ROWS_PER_WRITE = 256


def _each(iterable, **_):
    return iterable


def pack_folder(
    src,
    dst,
    *,
    short_side=None,
    quality=95,
    shard_size=512,
    num_parallel_workers=1,
    on_bad_image="error",
    overwrite=False,
    watch=_each,
):
    """Pack an image folder, each split it has, into MindRecord shards under `dst`; return the indices by split.

    src: the folder `open_source("imagenet", src, split)` reads; one without train and val is packed into dst itself
    and stands under the split "". Classes, pictures, their order and labels stay.
    short_side: pictures with a longer one are resized to it (bicubic over all source pixels, as evaluation resizes)
    and stored as JPEG of `quality` (1 ... 95); the others, and all without it, keep their bytes. shard_size: MB
    (1 ... 4096), also of memory. on_bad_image: "skip" leaves out pictures that cannot be decoded, and lists them;
    "error" stops at the first. watch(iterable, desc, total, initial): yields the items again, as tqdm does.
    Each shard is read back through MindDataset, every name, label and byte compared, before it counts. A run that was
    stopped continues after the last whole shard when started again, to the same files bit for bit; packing again what
    is packed compares the shards with their checksums, and replaces from the first damaged one on. overwrite: begin
    anew.
    Raises DataError for sources and places that cannot be used, options other than before, and a full disk, UserError
    for values that cannot be used.
    """
    _check_options(short_side, quality, shard_size, num_parallel_workers, on_bad_image)
    src, dst = Path(src).expanduser(), Path(dst).expanduser()
    if dst.exists() and not dst.is_dir():
        raise DataError(f"{dst} is a file; give a folder to pack into")
    if src.is_dir() and dst.resolve().is_relative_to(src.resolve()):
        raise DataError(f"{dst} lies in {src}, whose folders are classes; give a folder outside of it")
    sources = _sources(src)
    _prepare_folders(dst, [dst / split for split in sources], overwrite)
    options = {"short_side": short_side, "quality": quality if short_side else None, "shard_size": shard_size}
    return {
        split: _Packer(dst / split, source, src, options, num_parallel_workers, on_bad_image, watch).run()
        for split, source in sources.items()
    }


def _check_options(short_side, quality, shard_size, num_parallel_workers, on_bad_image):
    """Raise UserError for the first value that cannot be used."""
    if short_side is not None and short_side < 1:
        raise UserError(f"short_side (={short_side}) must be at least 1")
    if not 1 <= quality <= 95:
        raise UserError(f"quality (={quality}) must be in 1 ... 95, as libjpeg means it")
    if not 1 <= shard_size <= _LARGEST_SHARD:
        raise UserError(f"shard_size (={shard_size}) must be in 1 ... {_LARGEST_SHARD}, in MB")
    if num_parallel_workers < 1:
        raise UserError(f"num_parallel_workers (={num_parallel_workers}) must be at least 1")
    if on_bad_image not in _POLICIES:
        raise UserError(f"on_bad_image (={on_bad_image!r}) must be one of: {', '.join(_POLICIES)}")


def _sources(src):
    """Return the sources of the splits that are there, by split; of a folder that is not divided, under ""."""
    if any(is_record_folder(folder) for folder in (src, src / "train", src / "val")):
        raise DataError(f"{src} is packed already; give a folder of pictures")
    splits = [split for split, names in SPLIT_FOLDERS.items() if any((src / name).is_dir() for name in names)]
    if not splits:
        return {"": open_source("imagenet", src, "val")}
    return {split: open_source("imagenet", src, split) for split in splits}


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
    return path.name in (INDEX, PROGRESS) or path.name.endswith((SUFFIX, f"{SUFFIX}.db", _PARTIAL))


def _remove(folder, keep):
    """Remove what packing left in a folder but for the files named in `keep`; the index first, which vouches for it."""
    names = (INDEX, PROGRESS, *(path.name for pattern in ("", ".db") for path in folder.glob(f"*{SUFFIX}{pattern}")))
    for name in names:
        if name not in keep:
            (folder / name).unlink(missing_ok=True)
    for path in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Packer:
    """The packing of one split: `run` does what is left of it."""

    def __init__(self, folder, source, src, options, num_workers, on_bad_image, watch):
        self.folder = folder
        self.source = source
        self.options = options
        self.num_workers = num_workers
        self.on_bad_image = on_bad_image
        self.watch = watch
        self.names = [_text(path.removeprefix(f"{src}{os.sep}")) for path in source.files.paths]
        self.sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in source.files.paths]
        # One for all shards: MindDataset takes no others together.
        self.page_size = _page_size(self.sizes, bool(options["short_side"]))
        # Another version may write other bytes.
        versions = {"mindspore": importlib.metadata.version("mindspore")}
        if options["short_side"]:
            versions["pillow"] = PIL.__version__
        self.index = {
            "format": FORMAT,
            "version": VERSION,
            "options": options,
            "packed_with": versions,
            "source_sha256": self._source_sha256(),
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
        whole = itertools.takewhile(self._is_whole, self.watch(before["shards"], desc=self._description("check")))
        self.index["shards"] = list(whole)
        self._count(before["left_out"])

    def _is_whole(self, shard):
        """Whether a shard and its .db are there as they were written."""
        path = self.folder / shard["file"]
        files = (path, shard["sha256"]), (database_of(path), shard["db_sha256"])
        return all(file.is_file() and sha256_of(file) == digest for file, digest in files)

    def _count(self, left_out):
        """Bring the index's numbers up to its shards; left_out: (number, what is wrong) of pictures so far."""
        shards = self.index["shards"]
        stop = shards[-1]["next"] if shards else 0
        self.index["left_out"] = [entry for entry in left_out if entry[0] < stop]
        self.index["num_images"] = sum(shard["images"] for shard in shards)
        if left_out and self.on_bad_image == "error":
            raise UnreadableImageError(left_out[0][1])

    def _save(self, name):
        write_json(self.folder / name, self.index)

    def _description(self, what):
        return f"{what} {self.folder.name}"

    def _source_sha256(self):
        """Return a digest of the names, labels and file sizes of all pictures."""
        digest = hashlib.sha256()
        for name, size, label in zip(self.names, self.sizes, self.source.labels.tolist(), strict=True):
            digest.update(f"{name}\0{size}\0{label}\0".encode())
        return digest.hexdigest()

    def _pack(self, start):
        """Write the shards of pictures start, start + 1, ..."""
        limit = self.options["shard_size"] * MEGABYTE
        rows, size, left_out = [], 0, list(self.index["left_out"])
        with contextlib.closing(self._prepared(start)) as prepared:
            watched = self.watch(prepared, desc=self._description("pack"), total=len(self.source), initial=start)
            for number, picture in watched:
                if isinstance(picture, UnreadableImageError):
                    if self.on_bad_image == "error":
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

    def _prepared(self, start):
        """Yield the number and the bytes to store, or UnreadableImageError, of pictures start, start + 1, ..."""
        pool, pending = ThreadPoolExecutor(self.num_workers, thread_name_prefix="mindrepvgg-pack"), collections.deque()
        try:
            for number in range(start, len(self.source)):
                pending.append((number, pool.submit(self._prepare, number)))
                if len(pending) > 2 * self.num_workers:
                    number, task = pending.popleft()
                    yield number, task.result()
            while pending:
                number, task = pending.popleft()
                yield number, task.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, number):
        """Return the bytes of a picture as they are stored, or the UnreadableImageError that tells why there are none.

        Every picture is decoded, so that what training would stumble on is found now.
        """
        name = self.source.name(number)
        try:
            encoded = self.source.files.read(number)
            content = _resized(encoded, name, self.options["short_side"], self.options["quality"])
        except UnreadableImageError as error:
            return error
        if len(content) + LENGTH.size > self.page_size:
            return UnreadableImageError(f"{name} needs {len(content)} bytes, more than MindRecord can hold in one page")
        return content

    def _add_shard(self, rows, following, left_out):
        """Write rows as the next shard, put it in its place when it is proven, and say so in the progress."""
        path = self.folder / shard_name(len(self.index["shards"]))
        with tempfile.TemporaryDirectory(suffix=_PARTIAL, dir=self.folder) as work:
            written = Path(work, path.name)
            try:
                _write_shard(written, rows, self.page_size)
                same = _is_read_back(written, rows)
            except (RuntimeError, OSError) as error:  # MindSpore's errors are RuntimeErrors
                raise DataError(f"cannot write {path}: {_reason(error)}") from error
            if not same:
                raise DataError(f"{path} is read back otherwise than it was written; check the disk")
            entry = _entry(written, len(rows), following)
            for file in (written, database_of(written)):
                shutil.copymode(self.folder / PROGRESS, file)  # MindSpore's are the owner's alone
                os.replace(file, path.with_name(file.name))
        self.index["shards"].append(entry)
        self._count(left_out)
        self._save(PROGRESS)


def _text(name):
    """Return a file's name as text that UTF-8 can hold; bytes it cannot are written as hexadecimal escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _changes(before, now):
    return ", ".join(f"{key} {before.get(key)}, not {now[key]}" for key in now if before.get(key) != now[key])


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


def _write_shard(path, rows, page_size):
    """Write a shard and its .db. Raises OSError or MindSpore's RuntimeError where the disk has no room or refuses."""
    from mindspore.mindrecord import FileWriter

    pictures = sum(len(row["image"]) for row in rows)
    names = sum(len(row["name"].encode()) for row in rows)
    _reserve(path.parent, HEADER_SIZE + pictures + 2 * names + _ROW_OVERHEAD * len(rows) + 2 * page_size + _SPARE)
    writer = FileWriter(str(path))
    writer.set_header_size(HEADER_SIZE)
    writer.set_page_size(page_size)
    writer.add_schema(_SCHEMA, "pictures of an image folder")
    writer.add_index(["name", "label"])
    for start in range(0, len(rows), _ROWS_PER_WRITE):
        writer.write_raw_data(rows[start : start + _ROWS_PER_WRITE])
    writer.commit()
    for file in (path, database_of(path)):
        _sync(file)


def _page_size(sizes, resized):
    """Return the page size for pictures of these file sizes: a power of two.

    The largest file must fit, and what is resized may be larger than its file was. A small data set gets small pages,
    because the page with the labels stays empty for the most part.
    """
    least = _USUAL_PAGE if resized else min(LENGTH.size * len(sizes) + sum(sizes), _USUAL_PAGE)
    wanted = max(LENGTH.size + max(sizes), least, _SMALLEST_PAGE)
    return min(1 << (wanted - 1).bit_length(), _LARGEST_PAGE)


def _reserve(folder, size):
    """Raise OSError unless a file of `size` bytes can be made in a folder.

    MindSpore does not notice a disk that fills while it writes pages, and can crash when it fills later.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({size / MEGABYTE:.0f} MB are needed)") from error


def _sync(path):
    """Flush a file to the disk, and forget what memory holds of it, so that it is read back from there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_read_back(path, rows):
    """Whether MindSpore reads from a shard the rows that were written, in order. Raises RuntimeError as it does."""
    from mindspore.dataset import MindDataset

    found = MindDataset([str(path)], columns_list=["name", "label", "image"], shuffle=False)
    pairs = itertools.zip_longest(found.create_tuple_iterator(num_epochs=1, output_numpy=True), rows)
    return all(None not in pair and _is_row(*pair) for pair in pairs)


def _is_row(read, row):
    """Whether a row of MindDataset's, (name, label, image), is the one that was written."""
    name, label, image = read
    return (str(name), int(label), image.tobytes()) == (row["name"], row["label"], row["image"])


def _reason(error):
    """Return what an error of the system or of MindSpore says, of MindSpore's the line that tells."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.startswith("[ERROR]")]
    return lines[0].removeprefix("[ERROR]").strip() if lines else str(error)


def _entry(path, images, following):
    """Return what the index tells of a shard."""
    descriptor = open_file(path)
    try:
        header = read_header(descriptor)
    finally:
        os.close(descriptor)
    return {
        "file": path.name,
        "images": images,
        "next": following,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "header_sha256": hashlib.sha256(header).hexdigest(),
        "db_sha256": sha256_of(database_of(path)),
    }
