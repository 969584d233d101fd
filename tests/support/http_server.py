"""A server on this machine's loopback that does what servers and networks do to downloads."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and what happens to those who ask for it.

    Attributes:
        content: the bytes.
        etag: None: the server sends none.
        cuts: after how many bytes the connection is cut, an entry a request; then no more.
        statuses: what is answered instead, an entry a request; then no more.
        ranges: 'right', 'ignored', or 'wrong': another part than asked for.
        chunked: send no length.
        silence: seconds before each answer.
        pause: seconds between two blocks of 64 KiB.
        headers: further ones.
        redirect: where to.
    """

    content: bytes = b""
    etag: str | None = '"1"'
    cuts: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    ranges: str = "right"
    chunked: bool = False
    silence: float = 0
    pause: float = 0
    headers: dict = field(default_factory=dict)
    redirect: str | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        served = self.server.files.get(self.path)
        if served is None:
            self.send_error(404)
            return
        time.sleep(served.silence)
        if served.statuses:
            self.send_error(served.statuses.pop(0))
        elif served.redirect:
            self.send_response(302)
            self._finish({"Location": served.redirect, "Content-Length": "0", **served.headers})
        else:
            with contextlib.suppress(ConnectionError):
                self._send(served, asked)

    def _send(self, served, asked):
        start, size = 0, len(served.content)
        holds = served.etag is not None and self.headers.get("If-Range") == served.etag
        if asked and holds and served.ranges != "ignored":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= size:
                self.send_error(416)
                return
            start = 0 if served.ranges == "wrong" else start
            self.send_response(206)
            ranges = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        else:
            self.send_response(200)
            ranges = {}
        length = {"Transfer-Encoding": "chunked"} if served.chunked else {"Content-Length": str(size - start)}
        self._finish({**length, **ranges, **({"ETag": served.etag} if served.etag else {}), **served.headers})
        end = served.cuts.pop(0) if served.cuts else size
        block = 1 << 16
        for place in range(start, end, block):
            part = served.content[place : min(place + block, end)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if served.chunked else part)
            time.sleep(served.pause)
        if served.chunked and end == size:
            self.wfile.write(b"0\r\n\r\n")

    def _finish(self, headers):
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


class FileServer(ThreadingHTTPServer):
    """Serves `files` (path -> Served) and remembers `requests`: (path, the Range that was asked for)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.requests = {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def file_server():
    """A server while the body runs."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
