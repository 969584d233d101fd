"""A worker: what it answers, why it breaks down, and what it holds in memory."""

import os
import signal

import numpy as np
import pytest

from mindrepvgg.errors import UserError
from mindrepvgg.measure import worker
from mindrepvgg.measure.worker import BrokenDown, Worker


def adder(first):
    """Answer each number with the sum so far; text ends it with an error."""
    total = first
    print("this goes nowhere")
    while True:
        number = yield total
        if number == "user":
            raise UserError("no room")
        total += number


@pytest.mark.parametrize(("ask", "reason"), [("user", "no room"), (None, "TypeError: unsupported operand")])
def test_a_worker_answers_until_it_breaks_down(capfd, ask, reason):
    with Worker(adder, 5) as found:
        assert found.answer() == 5
        assert [found.ask(number) for number in (1, 2)] == [6, 8]
        with pytest.raises(BrokenDown, match=f"^{reason}"):
            found.ask(ask)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_says_so():
    found = Worker(adder, 5)
    os.kill(found._process.pid, signal.SIGKILL)
    with pytest.raises(BrokenDown, match="its process was killed by signal 9, for want of memory perhaps"):
        found.answer()
    found.close()
    assert not found._process.is_alive()


def holder(count):
    """Hold so many numbers and tell their bytes, and what came on top."""
    peak = worker.host_memory()
    block = np.ones(count)
    yield block.nbytes, peak()


def test_memory_is_what_came_on_top():
    # In a process of its own: what other tests left here, and is freed meanwhile, would be taken off.
    with Worker(holder, 2**23) as found:
        held, on_top = found.answer()
    assert held <= on_top < 1.1 * held
    assert worker.status_bytes("VmRSS") <= worker.status_bytes("VmHWM")
    assert worker.status_bytes("VmNone") is None
