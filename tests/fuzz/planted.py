"""Faults on purpose, one a door: test_watch.py checks with them that the watch sees each. No corpus of its own."""

import os
import time

from hypothesis import strategies as st

from fuzz.cases import ACCEPTED, MESSAGE, REFUSED, TRACEBACK, Case
from fuzz.watch import CRASH, HANG, MEMORY
from mindrepvgg.errors import UserError


class _TwoLinesError(UserError):
    def __str__(self):
        return "one\ntwo"


def _refuse(given):
    raise UserError(given)


def _refuse_in_two_lines(given):
    raise _TwoLinesError(given)


def _stumble(given):
    raise KeyError(given)


# What comes of each door, for every text.
EXPECTED = {
    "take": ACCEPTED, "refuse": REFUSED, "refuse in two lines": MESSAGE, "refuse at length": MESSAGE,
    "say nothing": MESSAGE,
    "stumble": TRACEBACK, "abort": CRASH, "sleep": HANG, "hoard": MEMORY, "hoard for a moment": MEMORY,
}  # fmt: skip
DOORS = {
    "take": len,
    "refuse": _refuse,
    "refuse in two lines": _refuse_in_two_lines,
    "refuse at length": lambda given: _refuse("long " * 200),
    "say nothing": lambda given: 2,
    "stumble": _stumble,
    "abort": lambda given: os.abort(),
    "sleep": lambda given: time.sleep(60),
    "hoard": lambda given: [bytearray(b"x" * 2**24) for _ in range(100)] and time.sleep(60),
    "hoard for a moment": lambda given: len(b"x" * 2**27),
}


def cases():
    """Any door."""
    return st.builds(Case, st.sampled_from(list(DOORS)), st.just("x"))
