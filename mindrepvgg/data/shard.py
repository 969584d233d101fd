"""Writing one MindRecord shard: it gets its place only when MindSpore has read back all that was written."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mindrepvgg.data.mindrecord import (
    HEADER_SIZE,
    LENGTH,
    database_of,
    open_file,
    read_header,
    sha256_of,
    shard_name,
)
from mindrepvgg.errors import DataError
from mindrepvgg.files import MEGABYTE

PARTIAL = ".partial"  # ends the names of work folders and unfinished files

_SCHEMA = {"name": {"type": "string"}, "label": {"type": "int32"}, "image": {"type": "bytes"}}
_SMALLEST_PAGE, USUAL_PAGE = 64 << 10, 8 << 20
_LARGEST_PAGE = 256 << 20  # MindSpore's own limit
# A row takes less than this beside its picture, in its page and in the .db, and the name.
_ROW_OVERHEAD = 256
_SPARE = 16 << 20  # MindSpore writes nothing where less than 10 MB would stay free
_ROWS_PER_WRITE = 256


def page_size_for(sizes: Sequence[int], resized: bool) -> int:
    """Choose the page size of a split's shards: a power of two.

    The largest picture must fit. A small data set gets small pages, because the page with the labels stays nearly
    empty.

    Args:
        sizes: bytes of each picture's file.
        resized: pictures are stored anew, and may then be larger than their files.

    Returns:
        Bytes.
    """
    least = USUAL_PAGE if resized else min(LENGTH.size * len(sizes) + sum(sizes), USUAL_PAGE)
    wanted = max(LENGTH.size + max(sizes), least, _SMALLEST_PAGE)
    return min(1 << (wanted - 1).bit_length(), _LARGEST_PAGE)


def add_shard(folder: Path, number: int, rows: Sequence[dict], following: int, page_size: int, like: Path) -> dict:
    """Write rows as a shard, read it back, and only then put it in its place.

    Args:
        folder: the packed split's.
        number: the shard's, counted from 0.
        rows: a dict for each picture: name, label, and image, the bytes of its file.
        following: the source's picture that the next shard begins with.
        page_size: see `page_size_for`.
        like: a file whose permissions the shard gets.

    Returns:
        What the index tells of the shard.

    Raises:
        DataError: the disk is full or refuses, or what is read back is not what was written.
    """
    path = folder / shard_name(number)
    with tempfile.TemporaryDirectory(suffix=PARTIAL, dir=folder) as work:
        written = Path(work, path.name)
        try:
            write_shard(written, rows, page_size)
            same = _is_read_back(written, rows)
        except (RuntimeError, OSError) as error:  # MindSpore's errors are RuntimeErrors
            raise DataError(f"cannot write {path}: {_reason(error)}") from error
        if not same:
            raise DataError(f"{path} is not read back as it was written; check the disk")
        entry = _entry(written, len(rows), following)
        for file in (written, database_of(written)):
            shutil.copymode(like, file)  # MindSpore's files are for their owner alone
            os.replace(file, path.with_name(file.name))
    return entry


def is_whole(folder: Path, shard: dict) -> bool:
    """Whether a shard and its .db are there as they were written; shard: the index's entry."""
    path = folder / shard["file"]
    files = (path, shard["sha256"]), (database_of(path), shard["db_sha256"])
    return all(file.is_file() and sha256_of(file) == digest for file, digest in files)


def write_shard(path: Path, rows: Sequence[dict], page_size: int):
    """Write a shard and its .db. Raises OSError or MindSpore's RuntimeError where the disk is full or refuses."""
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
    """Flush a file to the disk and drop it from memory, so that it is read back from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_read_back(path, rows):
    """Whether MindSpore reads from a shard the rows that were written, in order. Raises MindSpore's RuntimeError."""
    from mindspore.dataset import MindDataset

    found = MindDataset([str(path)], columns_list=["name", "label", "image"], shuffle=False)
    pairs = itertools.zip_longest(found.create_tuple_iterator(num_epochs=1, output_numpy=True), rows)
    return all(None not in pair and _is_row(*pair) for pair in pairs)


def _is_row(read, row):
    """Whether a row of MindDataset's, (name, label, image), is the one that was written."""
    name, label, image = read
    return (str(name), int(label), image.tobytes()) == (row["name"], row["label"], row["image"])


def _reason(error):
    """What an error says in one line; of MindSpore's many lines, the one that tells."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.startswith("[ERROR]")]
    return lines[0].removeprefix("[ERROR]").strip() if lines else str(error)


def _entry(path, images, following):
    with open_file(path) as file:
        header = read_header(file.fileno())
    return {
        "file": path.name,
        "images": images,
        "next": following,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "header_sha256": hashlib.sha256(header).hexdigest(),
        "db_sha256": sha256_of(database_of(path)),
    }
