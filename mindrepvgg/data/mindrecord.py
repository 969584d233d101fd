"""MindRecord: image folders that `mindrepvgg.data.pack` put into a few large files, read picture by picture.

A packed split is a folder of shards, each with the .db file MindSpore makes beside it, and an index, written last, that
says what they hold. MindSpore's own reader (`MindDataset`) reads the shards too. `RecordFiles` needs no MindSpore and
addresses pictures by number, which that reader's pipeline cannot: a shard's .db tells where each picture lies.

Layout of a shard (MindSpore's shard_writer.cc, header version 3.0), all numbers little-endian: 8 bytes with the length
of a JSON header, the header, zeros up to header_size; then pages of page_size. A picture lies in page PAGE_ID_BLOB from
PAGE_OFFSET_BLOB to PAGE_OFFSET_BLOB_END, as 8 bytes with its length and its bytes: that is all, because the schema has
one field of bytes only.
"""

import bisect
import contextlib
import hashlib
import json
import os
import sqlite3
import struct
import weakref
from pathlib import Path

import numpy as np

from mindrepvgg.errors import DataError
from mindrepvgg.files import MEGABYTE, open_regular, read_regular

INDEX = "mindrecord.json"
PROGRESS = "mindrecord.partial.json"  # stands in for the index until the split is whole

_AGAIN = "pack the folder again with mindrepvgg pack"
_ANEW = f"{_AGAIN} --overwrite"
FORMAT, VERSION = "mindrepvgg-mindrecord", 1
SUFFIX = ".mindrecord"

# What the index tells of a shard; next: the number of the source's picture that the following shard begins with.
_ENTRY = {"file": str, "images": int, "next": int, "bytes": int, "sha256": str, "header_sha256": str, "db_sha256": str}

# A header holds less than 256 bytes for each page, and a shard of the largest size has at most 1024 half full ones.
HEADER_SIZE = 256 << 10
LENGTH = struct.Struct("<Q")
_LARGEST_INDEX = 1 << 30  # bytes


def is_record_folder(folder):
    """Return whether a folder holds shards or the index of a packed split, be they whole or not."""
    folder = Path(folder)
    return any((folder / name).is_file() for name in (INDEX, PROGRESS)) or any(folder.glob(f"*{SUFFIX}"))


class RecordFiles:
    """The encoded pictures of a packed split, by number, in any order and from any number of threads.

    class_names: index in the tuple = class index; labels: (N,) int32. Everything the shards' .db files tell is read
    when opening; a picture is then one read at a known place.
    Raises DataError when the split is not whole, or a shard is cut, damaged or another data set's: the size, header and
    .db of each must be those the index names, and each picture's length is compared when it is read. Damage inside a
    picture is for the decoder to find, or for packing the same folder again, which compares every byte.
    """

    def __init__(self, folder):
        folder = Path(folder)
        index = _read_index(folder)
        self.class_names = tuple(index["class_names"])
        files = []
        weakref.finalize(self, _close_all, files)  # also when a shard that follows is refused
        columns = []
        for shard in index["shards"]:
            path = folder / shard["file"]
            files.append(open_file(path))
            columns.append(_rows(path, files[-1].fileno(), shard, len(self.class_names)))
        self._paths = [folder / shard["file"] for shard in index["shards"]]
        self._descriptors = [file.fileno() for file in files]
        self._starts = np.cumsum([0, *(shard["images"] for shard in index["shards"])]).tolist()
        self._places, self._sizes, self.labels = map(np.concatenate, zip(*columns, strict=True))
        self._names = [None] * len(self._paths)  # of each shard, when one of its names is asked for

    def __len__(self):
        return len(self.labels)

    def name(self, index):
        """Return what a message calls a picture: its file in the folder that was packed, and the shard it is in."""
        shard, row = self._locate(index)
        path = self._paths[shard]
        if self._names[shard] is None:
            rows = _query(database_of(path), "SELECT CAST(name_0 AS BLOB) FROM INDEXES ORDER BY ROW_ID")
            self._names[shard] = np.array([name for (name,) in rows], np.bytes_)
        return f"{self._names[shard][row].decode()} in {path}"

    def read(self, index):
        """Return the bytes of an encoded picture, uint8 (bytes,). Raises DataError when they are not there."""
        shard, _ = self._locate(index)
        size = int(self._sizes[index])
        content = np.empty(LENGTH.size + size, np.uint8)
        try:
            count = os.preadv(self._descriptors[shard], [content], int(self._places[index]))
        except OSError as error:
            raise DataError(f"cannot read {self.name(index)}: {error.strerror}") from error
        if count != len(content) or LENGTH.unpack_from(content)[0] != size:
            raise DataError(f"{self.name(index)} is damaged: no picture of {size} bytes lies where it should; {_AGAIN}")
        return content[LENGTH.size :]

    def _locate(self, index):
        """Return the shard of a picture and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]


def _close_all(files):
    while files:
        files.pop().close()


def _read_index(folder):
    """Return the index of a packed split."""
    path = folder / INDEX
    if path.exists():
        return parse_index(path)
    if (folder / PROGRESS).is_file():
        raise DataError(f"{folder} is not packed to its end; run mindrepvgg pack again, which continues")
    raise DataError(f"{folder} has no {INDEX}, which says what its shards hold; {_ANEW}")


def parse_index(path):
    """Return an index or a progress as a dict whose parts are there and of the right types."""
    content = read_regular(path, "the index of a packed data set", DataError, _LARGEST_INDEX)
    try:
        index = json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # ValueError: of JSON or of UTF-8
        raise DataError(f"{path} is damaged: it is not JSON; {_ANEW}") from error
    _check_index(index, path)
    return index


def _check_index(index, path):
    if type(index) is not dict or index.get("format") != FORMAT:
        raise DataError(f"{path} is not an index of mindrepvgg pack; {_ANEW}")
    if index.get("version") != VERSION:
        raise DataError(f"{path} is of format version {index.get('version')}, not {VERSION}; {_ANEW}")
    names, shards, left_out = (index.get(key, ()) for key in ("class_names", "shards", "left_out"))
    fits = (
        all(type(part) is list for part in (names, shards, left_out))
        and all(type(name) is str for name in names)
        and all(type(entry) is list and [*map(type, entry)] == [int, str] for entry in left_out)
        and all(type(shard) is dict and all(type(shard.get(k)) is t for k, t in _ENTRY.items()) for shard in shards)
        and all(shard["file"] == shard_name(number) for number, shard in enumerate(shards))
        and index.get("num_images") == sum(shard["images"] for shard in shards)
    )
    if not fits:
        raise DataError(f"{path} is damaged: its parts do not fit together; {_ANEW}")


def shard_name(number):
    """Return the file name of shard `number`."""
    return f"{number:05}{SUFFIX}"


def database_of(path):
    """Return the path of the .db file MindSpore makes beside a shard."""
    return path.with_name(f"{path.name}.db")


def open_file(path):
    """Open a file of a packed split to read it. Raises DataError when it is not there."""
    if not path.exists():
        raise DataError(f"{path} is missing; copy it there or {_AGAIN}")
    return open_regular(path, "a file of a packed data set", DataError)


def _rows(path, descriptor, shard, num_classes):
    """Return where the pictures of a shard lie and their sizes, both (N,) int64, and their labels, (N,) int32.

    shard: the index's entry, which the file, its header and its .db must fit.
    """
    size = os.fstat(descriptor).st_size
    if size != shard["bytes"]:
        raise DataError(f"{path} has {size} bytes, not {shard['bytes']}: cut short or another's; {_AGAIN}")
    header = read_header(descriptor)
    if hashlib.sha256(header).hexdigest() != shard["header_sha256"]:
        raise DataError(f"{path} does not begin as its index says: damaged or another's; {_AGAIN}")
    layout = json.loads(header[LENGTH.size :])
    database = database_of(path)
    if sha256_of(database) != shard["db_sha256"]:
        raise DataError(f"{database} is not the one its index names: damaged or another's; {_AGAIN}")
    rows = _query(
        database,
        "SELECT ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, label_0 FROM INDEXES ORDER BY rowid",
    )
    number, page, start, end, label = np.array(rows, np.int64).reshape(-1, 5).T
    places = layout["header_size"] + page * layout["page_size"] + start
    sizes = end - start - LENGTH.size
    fits = (
        np.array_equal(number, np.arange(shard["images"]))
        and (sizes > 0).all()
        and (places >= layout["header_size"]).all()
        and (places + LENGTH.size + sizes <= size).all()
        and ((label >= 0) & (label < num_classes)).all()
    )
    if not fits:
        raise DataError(f"{database} does not fit {path.name}: rows, places or classes that are not there; {_AGAIN}")
    return places, sizes, label.astype(np.int32)


def read_header(descriptor):
    """Return a shard's JSON header with the length before it; nothing where no possible length stands."""
    start = os.pread(descriptor, LENGTH.size, 0)
    if len(start) < LENGTH.size or LENGTH.unpack(start)[0] > HEADER_SIZE:
        return b""
    return os.pread(descriptor, LENGTH.size + LENGTH.unpack(start)[0], 0)


def _query(database, statement):
    # Immutable: no lock, which network and read-only file systems refuse.
    uri = f"{database.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return connection.execute(statement).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{database} is not a shard's index ({error}); {_AGAIN}") from error


def sha256_of(path):
    """Return the SHA-256 of a file in hexadecimal digits. Raises DataError when it cannot be read."""
    digest, buffer = hashlib.sha256(), bytearray(MEGABYTE)
    try:
        with open_file(path) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
