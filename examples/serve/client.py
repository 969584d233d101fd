"""Ask the service for the classes of pictures: python client.py http://127.0.0.1:8000 PICTURE ..."""

import http.client
import json
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit


def multipart(pictures):
    """A multipart/form-data body of pictures, (name, bytes) each; returns it with its content type."""
    boundary, parts = uuid.uuid4().hex, []
    for name, content in pictures:
        name = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="pictures"; filename="{name}"\r\n'
        parts += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", content, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def connect(url, seconds=60):
    """A connection that several requests may use, one after the other."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=seconds)


def post(connection, body, content_type="application/octet-stream"):
    """Send one body to /classify. Returns the status, the headers and the answer, decoded from JSON.

    What Ray itself says, that the queue is full, is text.
    """
    connection.request("POST", "/classify", body, {"Content-Type": content_type})
    response = connection.getresponse()
    return response.status, response.headers, decoded(response)


def decoded(response):
    """The answer's body, decoded from JSON; a text stands for an error."""
    content = response.read()
    is_json = response.headers.get_content_type() == "application/json"
    return json.loads(content) if is_json else {"error": content.decode()}


def main():
    """Print the answer for the pictures of the command line."""
    url, *paths = sys.argv[1:]
    status, _, answer = post(connect(url), *multipart([(path, Path(path).read_bytes()) for path in paths]))
    print(json.dumps(answer, indent=2))
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
