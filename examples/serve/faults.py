"""Requests that a service must survive: python faults.py http://127.0.0.1:8000 --pid PID_OF_THE_SERVICE

Each is answered with JSON and a status of 4xx, without a traceback, or cut by us; then good pictures are answered
as before, and the memory of all processes of the service is what it was. Exit status 1 where that is not so.
"""

import argparse
import collections
import http.client
import io
import json
import socket
import struct
import sys
import threading
import zlib
from urllib.parse import urlsplit

from client import connect, decoded, multipart, post
from load import photo, resident
from PIL import Image

BIG = 100_000_000  # bytes


def bomb(width, height):
    """A PNG of a few kilobytes whose header tells of width x height pixels."""
    rows = zlib.compressobj()
    data = rows.compress(bytes(1 << 20)) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def true_bomb(side=9000):
    """A PNG of one colour that really has side x side pixels, a quarter of a gigabyte once decoded."""
    encoded = io.BytesIO()
    Image.new("RGB", (side, side)).save(encoded, "PNG")
    return encoded.getvalue()


def pieces(total, size=1 << 16):
    """A body of `total` bytes, sent in chunks without its length told."""
    for _ in range(total // size):
        yield bytes(size)


def cut(url, head, body):
    """Send part of a request and cut the connection."""
    host, _, port = urlsplit(url).netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head + body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end


def answer(url, body, content_type="application/octet-stream"):
    """(status, answer) of one request on a connection of its own; of a body that the service stops reading, too."""
    connection = connect(url)
    try:
        return post(connection, body, content_type)[::2]
    except (BrokenPipeError, ConnectionResetError):
        try:  # the answer may have come before the end of our sending
            response = http.client.HTTPResponse(connection.sock, method="POST")
            response.begin()
            return response.status, decoded(response)
        except (OSError, http.client.HTTPException, AttributeError):
            return "connection closed", {"error": ""}
    finally:
        connection.close()


def refusals():
    """Yield (what it is, the status it must have, body, content type) of requests that must be refused."""
    plain, form, good = "application/octet-stream", "multipart/form-data", photo()
    yield "no body", 422, b"", plain
    yield "no picture", 422, b"hello" * 1000, plain
    yield "a JPEG cut in its middle", 422, good[: len(good) // 2], plain
    yield "a JPEG cut in its header", 422, good[:40], plain
    for seed in range(1, 6):
        yield f"a JPEG whose header is damaged, {seed}", 422, good[:2] + bytes([seed * 37] * 600) + good[602:], plain
    yield "a PNG that tells of 60,000 x 60,000 pixels", 413, bomb(60_000, 60_000), plain
    yield "a PNG of 9,000 x 9,000 pixels", 413, true_bomb(), plain
    yield "multipart without a boundary", 400, b"x", form
    yield "multipart, cut", 400, multipart([("a.jpg", good)])[0][:500], f"{form}; boundary=other"
    yield "multipart without a picture", 422, *multipart([])
    yield "multipart, one picture of two damaged", 422, *multipart([("good.jpg", good), ("bad.jpg", good[:999])])
    yield "multipart, 100 pictures", 400, *multipart([(f"{n}.jpg", good[:3000]) for n in range(100)])
    yield "100 MB, length told", 413, bytes(BIG), plain
    yield "100 MB in chunks", 413, pieces(BIG), plain
    yield "100 MB of multipart", 413, *multipart([("a.jpg", bytes(BIG))])


def many(url, count, body):
    """Statuses of `count` requests at once, each on a connection of its own."""
    statuses, start = collections.Counter(), threading.Barrier(count)

    def work():
        start.wait()
        status, told = answer(url, body)
        statuses[status if status == 200 or told.get("error") else f"{status} without a reason"] += 1

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def main():
    """Send everything; tell what came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, help="the service's process, to measure memory of it and its children")
    parser.add_argument("--rounds", type=int, default=2, help="the first warms memory up (%(default)s)")
    arguments, bad, memory = parser.parse_args(), [], []
    url = arguments.url
    _, expected = answer(url, photo())
    for number in range(arguments.rounds):
        for what, expected_status, body, content_type in refusals():
            status, told = answer(url, body, content_type)
            text = json.dumps(told)
            refused = status == expected_status and told.get("error") and "Traceback" not in text
            print(f"{status} {what}: {text[:150]}" + ("" if refused else "   <- NOT AS IT SHOULD BE"))
            bad += [] if refused else [what]
        length = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo())}\r\n\r\n".encode()
        for _ in range(50):
            cut(url, length[:20], b"")
            cut(url, length, photo()[:5000])
            cut(url, length, photo())
        statuses = many(url, 200, photo())
        print(f"200 connections at once: {dict(statuses)}")
        bad += [] if set(statuses) <= {200, 503} and statuses[200] else ["200 connections at once"]
        status, told = answer(url, photo())
        bad += [] if (status, told) == (200, expected) else ["a good picture afterwards"]
        if arguments.pid:
            memory.append(resident(arguments.pid))
            print(f"round {number + 1}: {memory[-1]:.0f} MB in all processes of the service", flush=True)
    print("failed: " + ", ".join(bad) if bad else "all as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
