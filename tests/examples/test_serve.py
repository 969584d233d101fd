"""The service of examples/serve as a user starts it; needs the extra `serve`."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from support import FROZEN, ROOT

from mindrepvgg import api

FOLDER = ROOT / "examples" / "serve"
missing = [name for name in ("ray", "multipart", "starlette") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (pip install '.[serve]')"),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


SECONDS = 3  # for an answer


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(URL, process) of a running service of two replicas."""
    port, metrics = free_port(), free_port()
    command = [sys.executable, FOLDER / "service.py", FROZEN / "float32.onnx", "--replicas", "2"]
    command += ["--threads", "1", "--queue", "16", "--seconds", str(SECONDS)]
    command += ["--port", str(port), "--metrics_port", str(metrics)]
    log = tmp_path_factory.mktemp("service") / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    until = time.monotonic() + 120
    while not answers(f"http://127.0.0.1:{port}/-/healthz"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", process
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def answers(url):
    """Whether a GET is answered with status 200."""
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def client(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import client

    return client


def test_the_same_pictures_have_the_classes_that_predict_tells(service, client, tmp_path):
    from load import photo

    paths = [tmp_path / f"{seed}.jpg" for seed in range(12)]
    for seed, path in enumerate(paths):
        path.write_bytes(photo(seed, size=(60 + 7 * seed, 90 - 4 * seed)))
    expected = [entry.to_dict()["top"] for entry in api.predict(FROZEN / "float32.onnx", paths)]
    assert len({tuple(entry["index"] for entry in top) for top in expected}) > 1  # else any answer would do
    url, _ = service
    pictures = [(path.name, path.read_bytes()) for path in paths]
    status, headers, answer = client.post(client.connect(url), *client.multipart(pictures))
    assert status == 200
    assert [entry["file"] for entry in answer["results"]] == [path.name for path in paths]
    for found, top in zip(answer["results"], expected, strict=True):
        assert [entry["class"] for entry in found["top"]] == [entry["class"] for entry in top]
        assert [entry["index"] for entry in found["top"]] == [entry["index"] for entry in top]
        assert [entry["probability"] for entry in found["top"]] == pytest.approx(
            [entry["probability"] for entry in top], abs=1e-6
        )
    assert max(map(int, headers["Batch-Sizes"].split(","))) > 1
    status, _, alone = client.post(client.connect(url), pictures[3][1])
    assert status == 200
    assert [entry["index"] for entry in alone["results"][0]["top"]] == [entry["index"] for entry in expected[3]]


def test_it_is_healthy_and_what_does_not_belong_is_answered_with_json(service, client):
    url, _ = service
    assert urllib.request.urlopen(f"{url}/-/healthz").read() == b"success"
    status, _, answer = client.post(client.connect(url), b"no picture")
    assert (status, list(answer)) == (422, ["error"])
    connection = client.connect(url)
    connection.request("GET", "/other")
    assert connection.getresponse().status == 404


def test_an_answer_that_takes_too_long_is_given_up(service, client):
    """Half a body never becomes an answer."""
    url, _ = service
    connection, start = client.connect(url), time.monotonic()
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"half")
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == (504, {"error": f"no answer within {SECONDS} seconds"})
    assert SECONDS - 0.1 < time.monotonic() - start < SECONDS + 5


def test_faults_are_answered_and_leave_it_as_it_was(service):
    url, process = service
    command = [sys.executable, FOLDER / "faults.py", url, "--pid", str(process.pid), "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "503: " in done.stdout, "all 200 connections found a place in the queue"
    memory = [int(number) for number in re.findall(r"(\d+) MB in all", done.stdout)]
    assert len(memory) == 2
    assert memory[1] < 1.1 * memory[0], memory  # the first round warms up
