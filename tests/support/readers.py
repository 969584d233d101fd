"""What readers of hostile and damaged files do: what they give or refuse, and what that costs."""

import time
import tracemalloc

import pytest

from mindrepvgg.errors import CheckpointError


def outcome(read, path):
    """What `read` returns, or its CheckpointError; any other exception is the test's failure."""
    try:
        return read(path)
    except CheckpointError as error:
        return error


def refusal(read, path):
    """The text with which `read` refuses a file, without the path; it must be one line, and not a long one."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(str(path))
    assert len(text) < len(str(path)) + 300
    return text.removeprefix(str(path)).lstrip(": ")


def cheap_outcome(read, path):
    """`outcome` of a bomb, which may cost neither memory nor time."""
    start = time.process_time()
    tracemalloc.start()
    got = outcome(read, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 << 20
    assert time.process_time() - start < 10
    return got
