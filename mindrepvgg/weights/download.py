"""Files from the network: resumed after a cut, never taken for whole when they are not.

Why the standard library: a plain GET is all that is needed, and the hard parts (going on where a cut file ends, but
only if it is still the same file) are what pooch and requests leave to their users. The Hugging Face hub's library does
them, for one of the three hosts, and brings eight packages. urllib also takes the proxies of the environment
(https_proxy, no_proxy), and the system's certificates, which a company's own may be among.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from mindrepvgg.errors import UserError
from mindrepvgg.files import MEGABYTE, naming
from mindrepvgg.text import printable
from mindrepvgg.version import __version__

log = logging.getLogger(__name__)

SCHEMES = ("https", "http")

TIMEOUT = 30.0  # seconds that a server may keep silent
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try, if the last brought less than a megabyte
_MOST_BYTES = 8 << 30  # as of a checkpoint that is read
_CANNOT_GO_ON = "the server cannot go on where the file was cut"
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _TryAgain(Exception):
    """What went wrong may be better at the next try."""


class _StartAnew(_TryAgain):
    """What has arrived is of no use."""


def fetch(address: str, path, name: str) -> str | None:
    """Download a file.

    A cut download goes on where it stopped, in this call and in a later one, if the server says that the file has not
    changed since; else it starts anew.

    Args:
        address: https or http.
        path: the file to write. It is incomplete until this returns; what is needed to go on stands beside it.
        name: what is downloaded, for the progress bar.

    Returns:
        The file's SHA-256 as the server tells it, in hex; None where it tells none.

    Raises:
        UserError: in one line: the server cannot be reached, has no such file, or cuts the connection again and again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log.warning("downloading %s", printable(address, 300))
    failures = 0
    while True:
        before = _size(path)
        try:
            told = _receive(address, path, name)
        except _TryAgain as error:
            if isinstance(error, _StartAnew):
                discard(path)
            failures = 0 if _size(path) - before >= MEGABYTE else failures + 1
            if failures > len(PAUSES):
                raise UserError(
                    f"{printable(address, 300)} did not arrive in {failures} tries: {error}; try again later: what has "
                    f"arrived is kept"
                ) from None
            if failures:
                time.sleep(PAUSES[failures - 1])
        else:
            _beside(path).unlink(missing_ok=True)
            return told


def discard(path):
    """Remove a download and what stands beside it."""
    for file in (Path(path), _beside(path)):
        file.unlink(missing_ok=True)


def _receive(address, path, name) -> str | None:
    """One try."""
    have, mark = _size(path), _mark(path)
    headers = {"User-Agent": f"mindrepvgg/{__version__}"}
    if have and mark:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark}
    redirects = _Redirects()
    with _open(address, headers, redirects) as answer:
        start, total = _place(answer, have if "Range" in headers else 0)
        if total is not None and total > _MOST_BYTES:
            raise UserError(f"{printable(address, 300)} has {total} bytes, more than a checkpoint can have")
        if not start:
            discard(path)
            if mark := _unchanging(answer.headers):
                with naming(path):
                    _beside(path).write_text(json.dumps(mark), encoding="utf-8")
        _copy(answer, path, start, total, name)
    linked = _SHA256.fullmatch(redirects.headers.get("X-Linked-Etag") or answer.headers.get("X-Linked-Etag") or "")
    return linked and linked[1]


def _open(address, headers, redirects):
    """The server's answer."""
    shown = printable(address, 300)
    try:
        request = urllib.request.Request(address, headers=headers)
        return urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _StartAnew(_CANNOT_GO_ON) from None
        answer = f"{error.code} {printable(error.reason)}"
        if error.code in _BUSY:
            raise _TryAgain(f"the server answers {answer}") from None
        raise UserError(f"{shown} cannot be had: the server answers {answer}; check the address") from None
    except urllib.error.URLError as error:
        cause = error.reason
        if isinstance(cause, (TimeoutError, ConnectionResetError, BrokenPipeError)):
            raise _TryAgain(_words(cause)) from None
        raise UserError(f"{shown} cannot be reached: {_words(cause)}") from None
    except (http.client.InvalidURL, ValueError, UnicodeError):
        raise UserError(f"{shown} is no address; check it") from None
    except (OSError, http.client.HTTPException) as error:  # the connection broke before the answer was there
        raise _TryAgain(_words(error)) from None


def _place(answer, have) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is, None where that is not known."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != have:
            raise _StartAnew(_CANNOT_GO_ON)
        return have, None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _copy(answer, path, start, total, name):
    """Write what comes behind the first `start` bytes of the file."""
    arrived = start
    # disable=None: a bar on a terminal only.
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "dynamic_ncols": True, "disable": None}
    with naming(path), open(path, "ab") as file, tqdm(total=total, initial=start, desc=name, **options) as bar:
        while True:
            try:
                block = answer.read(MEGABYTE)
            except (OSError, http.client.HTTPException) as error:
                file.flush()
                raise _TryAgain(_words(error)) from None
            if not block:
                break
            arrived += len(block)
            if arrived > (_MOST_BYTES if total is None else total):
                raise UserError(f"{path} would become larger than the server said, or than a checkpoint can be")
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and arrived < total:
        raise _TryAgain(f"the connection was cut after {arrived} of {total} bytes")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but to no unencrypted place; headers: of the last redirect.

    The Hugging Face hub tells a file's SHA-256 where it redirects to the store that has the file.
    """

    def __init__(self):
        self.headers = Message()

    def redirect_request(self, request, file, code, message, headers, address):
        """The next request, as urllib wants it."""
        scheme = urlsplit(address).scheme
        if scheme not in SCHEMES or (request.type == "https" and scheme != "https"):
            raise UserError(f"{printable(request.full_url, 200)} redirects to {printable(address, 200)}, not to https")
        if headers.get("X-Linked-Etag"):
            self.headers = headers
        return super().redirect_request(request, file, code, message, headers, address)


def _unchanging(headers) -> str | None:
    """What tells this file from a later one at the same address: a strong ETag, or the date of the last change."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _beside(path) -> Path:
    """The file that keeps `_unchanging` while a download is under way."""
    return Path(f"{path}.from")


def _mark(path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        mark = json.loads(_beside(path).read_text(encoding="utf-8"))
        return mark if isinstance(mark, str) and mark.isprintable() else None
    return None


def _size(path) -> int:
    return path.stat().st_size if path.exists() else 0


def _words(cause) -> str:
    """Why a connection failed."""
    if isinstance(cause, TimeoutError):
        return "the server kept silent too long"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message}); SSL_CERT_FILE names further ones"
    if isinstance(cause, socket.gaierror):
        return f"its name is not known ({cause.strerror})"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection was cut"
    return printable(getattr(cause, "strerror", None) or cause or type(cause).__name__, 200)
