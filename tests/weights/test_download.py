"""Downloads from a server on this machine: cuts, changes, wrong sizes, redirects, slow answers, proxies."""

import contextlib
import hashlib
import socket
from urllib.request import Request

import pytest
from support.http_server import Served

from mindrepvgg.errors import UserError
from mindrepvgg.weights import download
from mindrepvgg.weights.download import _Redirects, fetch

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB
HALF = len(CONTENT) // 2


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Three tries, one after the other."""
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    monkeypatch.setattr(download, "TIMEOUT", 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file.part"


def get(server, path, served):
    """Fetch the served file."""
    server.files["/file"] = served
    return fetch(f"{server.address}/file", path, "file")


def left(path):
    """The names beside the file."""
    return sorted(file.name for file in path.parent.iterdir())


def refused(server, path, served):
    with pytest.raises(UserError) as caught:
        get(server, path, served)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(server.address, "SERVER")


def test_a_whole_file(server, path):
    assert get(server, path, Served(CONTENT)) is None
    assert path.read_bytes() == CONTENT
    assert left(path) == ["file.part"]
    assert server.requests == [("/file", None)]


def test_a_file_without_a_length(server, path):
    get(server, path, Served(CONTENT, chunked=True))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_file_goes_on_where_it_stopped(server, path, chunked):
    get(server, path, Served(CONTENT, cuts=[HALF, HALF + 100], chunked=chunked))
    assert path.read_bytes() == CONTENT
    starts = [asked and int(asked[6:-1]) for _, asked in server.requests]
    assert starts[0] is None
    assert 0 < starts[1] <= HALF
    assert starts[1] <= starts[2] <= HALF + 100
    assert left(path) == ["file.part"]


def test_a_later_call_goes_on_too(server, path):
    text = refused(server, path, Served(CONTENT, cuts=[HALF, HALF, HALF, HALF]))
    assert text == (
        f"SERVER/file did not arrive in 3 tries: the connection was cut after {HALF} of {len(CONTENT)} bytes; try "
        f"again later: what has arrived is kept"
    )
    assert left(path) == ["file.part", "file.part.from"]
    server.requests.clear()
    get(server, path, server.files["/file"])
    assert path.read_bytes() == CONTENT
    assert server.requests == [("/file", f"bytes={HALF}-")]


def test_tries_are_counted_anew_while_the_file_moves_on(server, path):
    cuts = [1 << 20, 2 << 20, (2 << 20) + 1, (2 << 20) + 2]
    get(server, path, Served(CONTENT, cuts=cuts))
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    "second",
    [
        Served(CONTENT[::-1], etag='"2"'),  # the file was changed meanwhile
        Served(CONTENT[::-1], ranges="ignored"),
        Served(CONTENT[::-1], ranges="wrong"),
        Served(CONTENT[: HALF // 2]),  # shorter than what is here: 416
        Served(CONTENT[::-1], etag=None),
    ],
    ids=["changed", "no ranges", "wrong range", "shorter", "no etag"],
)
def test_a_file_that_may_be_another_starts_anew(server, path, second):
    refused(server, path, Served(CONTENT, cuts=[HALF] * 4))
    get(server, path, second)
    assert path.read_bytes() == second.content
    assert left(path) == ["file.part"]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_a_file_that_nothing_tells_from_a_later_one_starts_anew(server, path, etag):
    refused(server, path, Served(CONTENT, cuts=[HALF] * 4, etag=etag))
    get(server, path, Served(CONTENT[::-1], etag=etag))
    assert path.read_bytes() == CONTENT[::-1]
    assert {asked for _, asked in server.requests} == {None}


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, path):
    get(server, path, Served(CONTENT, statuses=[503, 429]))
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 3
    server.requests.clear()
    text = refused(server, path, Served(CONTENT, statuses=[403]))
    assert text == "SERVER/file cannot be had: the server answers 403 Forbidden; check the address"
    assert len(server.requests) == 1


def test_a_silent_server_is_left(server, path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    text = refused(server, path, Served(CONTENT, silence=0.5))
    assert text.startswith("SERVER/file did not arrive in 3 tries: the server kept silent too long; try again later")


def test_a_slow_server_is_waited_for(server, path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    get(server, path, Served(CONTENT, pause=0.005))
    assert path.read_bytes() == CONTENT


def test_a_file_beyond_any_checkpoint_is_refused(server, path):
    text = refused(server, path, Served(b"x", headers={"Content-Length": str(9 << 30)}))
    assert text == "SERVER/file has 9663676416 bytes, more than a checkpoint can have"


def test_redirects_are_followed_with_the_range_and_tell_the_digest(server, path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    server.files["/store"] = Served(CONTENT, cuts=[HALF])
    told = get(server, path, Served(redirect="/store", headers={"X-Linked-Etag": f'"{digest}"'}))
    assert told == digest
    assert path.read_bytes() == CONTENT
    assert [place for place, _ in server.requests] == ["/file", "/store"] * 2
    assert server.requests[3][1] == server.requests[2][1] == f"bytes={HALF}-"


def test_a_redirect_away_from_the_web_is_refused(server, path):
    text = refused(server, path, Served(redirect="ftp://127.0.0.1/x"))
    assert text == "SERVER/file redirects to ftp://127.0.0.1/x, not to https"
    text = refused(server, path, Served(redirect="file:///etc/hostname"))
    assert text.startswith("SERVER/file cannot be had: the server answers 302 Found - Redirection to url 'file:///")


def test_a_redirect_from_an_encrypted_to_a_plain_address_is_refused():
    """Held to the handler itself: an encrypted server would need a certificate."""
    request = Request("https://weights.invalid/file")
    for place in ("http://127.0.0.1/x", "https://127.0.0.1/x"):
        with pytest.raises(UserError) if place.startswith("http:") else contextlib.nullcontext():
            _Redirects().redirect_request(request, None, 302, "Found", {}, place)


def test_redirects_in_a_circle_are_refused(server, path):
    assert "SERVER/file cannot be had: the server answers 302" in refused(server, path, Served(redirect="/file"))


def test_nobody_listens(path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(UserError, match=r"/file cannot be reached: Connection refused$"):
            fetch(address, path, "file")


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http://127.0.0.1:port/", "http://127.0.0.1/a b"])
def test_what_is_no_address_is_said_in_one_line(path, address):
    with pytest.raises(UserError, match=r"is no address; check it$|cannot be reached: ") as caught:
        fetch(address, path, "file")
    assert "\n" not in str(caught.value)


def test_the_environments_proxy_is_asked(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    server.files["http://weights.invalid/file"] = Served(CONTENT)
    fetch("http://weights.invalid/file", path, "file")
    assert path.read_bytes() == CONTENT
    assert server.requests == [("http://weights.invalid/file", None)]
