"""Weights by name or address: downloaded once, checked, and kept in a cache as checkpoints of this package.

Loads no MindSpore: the functions take what turns a file into a checkpoint from their caller.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import Timeout

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.files import MEGABYTE, atomic_write
from mindrepvgg.runtime import locks
from mindrepvgg.text import printable, quoted
from mindrepvgg.weights import download
from mindrepvgg.weights.released import MIRROR, SOURCES, Released, find_released, released_of

log = logging.getLogger(__name__)

CACHE = "MINDREPVGG_CACHE"


@dataclass(frozen=True)
class Seal:
    """A file to turn into a checkpoint of this package.

    Attributes:
        source: the file, of any project.
        destination: the checkpoint to write.
        weights: 'raw' or 'ema', which of the file's weights.
        model: the network that the file must hold; None: any.
        facts: what the checkpoint is to tell of where it came from, see `save_checkpoint`.
    """

    source: Path
    destination: Path
    weights: str
    model: str | None
    facts: dict


def cache_folder() -> Path:
    """The folder of all that is downloaded: MINDREPVGG_CACHE, else mindrepvgg in the user's folder of caches."""
    own = os.environ.get(CACHE)
    return Path(own or os.environ.get("XDG_CACHE_HOME") or "~/.cache", "" if own else "mindrepvgg").expanduser()


def is_address(text) -> bool:
    """Whether this is an address to download from, and no path."""
    return isinstance(text, str) and text.partition("://")[0].lower() in download.SCHEMES and "://" in text


def local_file(spec, weights: str, seal: Callable[[Seal], None]) -> tuple[Path, str]:
    """The file that a user's words mean; what is not here yet is downloaded.

    Args:
        spec: a path; or a name, see `released.find_released`; or an address. A file that is there is taken as a path.
        weights: 'raw' or 'ema', which of the file's weights are wanted.
        seal: turns a downloaded file into a checkpoint of this package.

    Returns:
        The file, and which of its weights to take: a checkpoint in the cache holds only those that were wanted.

    Raises:
        UserError: there are no such weights, or they cannot be had.
        CheckpointError: the file is not what it should be; it is not kept.
    """
    if is_address(spec):
        return _cached(spec, _of_address(spec), weights, seal), "raw"
    if isinstance(spec, str) and (os.path.isdir(spec) or not os.path.lexists(spec)):
        found = find_released(spec)
        if found:
            return _cached(found.mirrored(), found, weights, seal), "raw"
    return Path(spec), weights


def name_of(pretrained, model: str) -> str:
    """What `create_model`'s argument `pretrained` means for a network, as `local_file` takes it."""
    if pretrained is True:
        return model
    if isinstance(pretrained, str) and pretrained in [source.name for source in SOURCES]:
        return f"{pretrained}/{model}"
    if isinstance(pretrained, str):
        return pretrained
    raise UserError(f"pretrained (={quoted(pretrained)}) must be True, False, a name, an address or a file")


def sealed_file(item: Released, weights: str = "raw") -> Path:
    """Where the cache keeps a released file as a checkpoint of this package."""
    original = _original(item)
    return original.with_name(f"{original.stem}{'.ema' if weights == 'ema' else ''}.sealed.ckpt")


def _of_address(address) -> Released:
    """A file of which the address is all that is known."""
    last = posixpath.basename(unquote(urlsplit(address).path))
    name = re.sub(r"[^A-Za-z0-9._-]", "_", last)[-80:].lstrip(".") or "file"
    file = f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"
    return Released(model="", source="addresses", address=address, file=file, top1=0)


def _original(item: Released) -> Path:
    """Where somebody may put the file where there is no network."""
    return cache_folder() / "weights" / item.source / item.file


def _other_ways(item: Released, original: Path) -> str:
    """What somebody can do who cannot have the item from its address."""
    if not item.model:
        return f"put the file at {original}"
    others = [f"{other.source}/{other.model}" for other in released_of(item.model) if other.source != item.source]
    another = f"; other weights of this network: {', '.join(others)}" if others else ""
    return f"put the file at {original}, or name a mirror with {MIRROR}=ADDRESS{another}"


def _cached(address: str, item: Released, weights: str, seal) -> Path:
    """The item as a checkpoint in the cache."""
    sealed = sealed_file(item, weights)
    if sealed.exists():
        return sealed
    original = _original(item)
    with _alone(original):
        if sealed.exists():  # another process was first
            return sealed
        if original.exists():
            _take(item, original, original, weights, sealed, None, seal)
            return sealed
        part = original.with_name(f"{original.name}.part")
        try:
            told = download.fetch(address, part, item.file)
        except UserError as error:
            raise UserError(f"{error}; to do without: {_other_ways(item, original)}") from None
        try:
            _take(item, part, original, weights, sealed, told, seal)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(part), printable(address, 300))) from None
        finally:
            download.discard(part)
    return sealed


def _take(item, file, original, weights, sealed, told, seal):
    """Check a file and seal it."""
    found = _sha256(file)
    record = original.with_name(f"{original.name}.sha256")
    others = "; try again, or take another source (mindrepvgg weights lists them)"
    _check(file, found, item.digest, f"its name{others}")
    _check(file, found, told or "", f"its server{others}")
    with contextlib.suppress(FileNotFoundError):
        kept = record.read_text(encoding="utf-8", errors="replace").partition(" ")[0]
        _check(file, found, kept, f"{record}, which remembers the first download; remove that to take this one")
    origin = {"address": item.address, "sha256": found}
    facts = {"converted_from": item.file, "released": origin}
    if item.model:
        origin |= {"name": item.name, "top1": item.top1}
        facts["image_size"] = [item.image_size, item.image_size]
    seal(Seal(file, sealed, weights, item.model or None, facts))
    with atomic_write(record, "w") as stream:
        stream.write(f"{found}  {original.name}\n")  # as sha256sum has it


def _check(file, found, expected, by):
    """Refuse a file whose SHA-256 does not begin as expected."""
    if not found.startswith(expected):
        raise CheckpointError(
            f"{file} is not the file it should be: its SHA-256 begins {found[:16]}, expected "
            f"{printable(expected[:16])} by {by}"
        )


def _sha256(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MEGABYTE):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(original: Path) -> Iterator[None]:
    """Keep other processes from the same file while the body runs."""
    original.parent.mkdir(parents=True, exist_ok=True)
    path = original.with_name(f".{original.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            try:
                lock = locks.take(path, 0)
            except Timeout:
                log.warning("another process is downloading %s: waiting for it", original.name)
                lock = locks.take(path, -1)
            stack.callback(lock.release)
        except locks.NoLocksError as error:
            log.warning("%s has no locks (%s): start one process alone first", original.parent, error.strerror)
        yield
