"""A case, what is right for it, and how valid bytes are broken."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import shutil
import struct
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from mindrepvgg.cli import entry
from mindrepvgg.errors import EquivalenceError, UserError

LONGEST_LINE = 600  # three differences of three kinds, each named with its shapes
LONGEST_OUTPUT = 100_000

ACCEPTED, REFUSED, TRACEBACK, MESSAGE = "accepted", "refused", "traceback", "message"
RIGHT = (ACCEPTED, REFUSED)


@dataclass(frozen=True)
class Case:
    """Files in a folder of their own, and what a door is given there.

    Attributes:
        door: its name in the corpus.
        given: the text that a user types, a path relative to the folder for most doors.
        files: content by relative path; None is a named pipe, a path that ends in a slash a folder.
    """

    door: str
    given: str
    files: Mapping[str, bytes | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """The case as text; names that are no valid UTF-8 survive."""
        files = {name: data if data is None else base64.b64encode(data).decode() for name, data in self.files.items()}
        return json.dumps({"door": self.door, "given": self.given, "files": files})

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case that `to_json` wrote."""
        values = json.loads(text)
        files = {name: data if data is None else base64.b64decode(data) for name, data in values["files"].items()}
        return cls(values["door"], values["given"], files)


class WrongMessageError(Exception):
    """A refusal that is not one line of at most LONGEST_LINE characters."""


def judge(case: Case, doors: Mapping[str, Callable]) -> tuple[str, str]:
    """Run a case: what came of it, and the error's line or the traceback.

    Right is 'accepted', or 'refused' in one line. The process must survive it, in time and memory: whoever needs that
    judged as well runs the case in a child process.
    """

    def call(_):
        try:
            status = doors[case.door](case.given)
            return status if type(status) is int else 0  # a verb's, which has printed its error; or what was made
        except (UserError, EquivalenceError) as error:
            if len(str(error).splitlines()) > 1:
                raise WrongMessageError(f"several lines: {str(error)[:LONGEST_LINE]!r}") from None
            raise

    printed = io.StringIO()
    with _folder_of(case.files), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), _logged():
        try:
            status = entry.run(call)
        except WrongMessageError as error:
            return MESSAGE, str(error)
        except Exception:
            return TRACEBACK, traceback.format_exc(limit=-6)[-4000:]
    lines = printed.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if sum(map(len, lines)) > LONGEST_OUTPUT:
        return MESSAGE, f"{sum(map(len, lines))} characters were printed, from {lines[0][:LONGEST_LINE]!r}"
    if not errors:
        return (ACCEPTED, "") if status in (0, 1) else (MESSAGE, f"exit status {status} without a word")
    if len(errors) > 1 or len(errors[0]) > LONGEST_LINE:
        return MESSAGE, f"{len(errors)} errors, the first of {len(errors[0])} characters: {errors[0][:LONGEST_LINE]!r}"
    return REFUSED, errors[0]


@contextlib.contextmanager
def _folder_of(files):
    """A folder with these files, which is the working directory meanwhile."""
    before, folder = os.getcwd(), tempfile.mkdtemp(prefix="fuzz-")
    try:
        os.chdir(folder)
        for name, data in files.items():
            # What no file system can hold is given to the door all the same.
            with contextlib.suppress(OSError, ValueError):
                os.makedirs(name if name.endswith("/") else os.path.dirname(name) or ".", exist_ok=True)
                if data is None:
                    os.mkfifo(name)
                elif not name.endswith("/"):
                    Path(name).write_bytes(data)
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _logged():
    """The package's warnings go where a refusal goes."""
    handler, log = logging.StreamHandler(), logging.getLogger("mindrepvgg")  # a handler takes sys.stderr as it is now
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


# ---------------------------------------------------------------------------------------------- broken bytes

_NUMBERS = [
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
]
_FORMATS = ["B", "<H", ">H", "<I", ">I", "<Q", ">Q"]


def mixed(*choices: tuple[int, st.SearchStrategy]) -> st.SearchStrategy:
    """One of several strategies, each (weight, strategy); `one_of` takes all alike."""
    places = [place for place, (weight, _) in enumerate(choices) for _ in range(weight)]
    return st.sampled_from(places).flatmap(lambda place: choices[place][1])


def sizes():
    """Numbers that a size in a file may lie with."""
    return st.sampled_from(_NUMBERS) | st.integers(0, 2**20) | st.integers(-4, 4).map(lambda n: 2**31 + n)


def json_values():
    """Anything that JSON holds, Python's NaN and Infinity included."""

    def inside(value):
        return st.lists(value, max_size=4) | st.dictionaries(st.text(max_size=8), value, max_size=4)

    scalars = st.none() | st.booleans() | st.integers() | sizes() | st.floats() | st.text(max_size=20)
    return st.recursive(scalars, inside, max_leaves=8)


@st.composite
def mutated(draw, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with one to four faults: flipped bits, other numbers, cut, doubled and foreign pieces."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        kind = draw(
            st.sampled_from(["flip", "flip", "number", "number", "cut", "delete", "double", "splice", "insert"])
        )
        # Headers stand at a file's start or end: a third of the faults each, the rest anywhere.
        last = max(len(content) - 1, 0)
        low, high = draw(st.sampled_from([(0, min(127, last)), (max(last - 127, 0), last), (0, last)]))
        place = draw(st.integers(low, high))
        length = draw(st.integers(1, 64))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            form = draw(st.sampled_from(_FORMATS))
            data = struct.pack(form, draw(sizes()) % (1 << 8 * struct.calcsize(form)))
            content[place : place + len(data)] = data
        elif kind == "cut":
            del content[place:]
        elif kind == "delete":
            del content[place : place + length]
        elif kind == "double":
            content[place:place] = content[place : place + length] * draw(st.sampled_from([1, 2, 100]))
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, max(len(other) - 1, 0)))
            content[place : place + length] = other[start : start + length]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=32))
    return bytes(content)
