"""Pictures that cannot be read: what is done about them, and how many are too many."""

import logging
import threading

from mindrepvgg.data.source import Source
from mindrepvgg.errors import DataError
from mindrepvgg.text import listed

log = logging.getLogger(__name__)

FEWEST = 3


class BadImages:
    """What is done about unreadable pictures of a source, and which ones there were in each pass over it.

    A pass has a number. The reader may be one pass ahead of whoever asks.

    Args:
        source: the `Source` that is read.
        policy: "error" ends the pass at the first unreadable picture. In its place, training takes another picture of
            the same batch with "skip", and another one of its class with "replace"; evaluation does not count it.
        limit: the largest share of the source's pictures that may be unreadable in one pass. Above 0, `FEWEST` may
            always be: one picture of a few hundred is more than most shares.
    """

    def __init__(self, source: Source, policy: str, limit: float):
        self.policy = policy
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self._found: dict[int, dict[int, str]] = {}  # for each pass, what is wrong with each picture

    def start(self, number: int):
        """Begin a pass; what the pass before found is kept, what earlier passes found is not."""
        self._found = {known: found for known, found in self._found.items() if known == number - 1}
        self._found[number] = {}

    def add(self, number: int, index: int, error: Exception):
        """Note that picture `index` cannot be read in a pass. Raises `error` itself where the policy is "error"."""
        if self.policy == "error":
            raise error
        with self._lock:
            known = index in self._found[number]
            self._found[number][index] = str(error)
        if not known:
            log.warning("%s", error)

    def of(self, number: int) -> list[int]:
        """The unreadable pictures of a pass, sorted."""
        with self._lock:
            return sorted(self._found.get(number, ()))

    def reasons(self, number: int) -> dict[int, str]:
        """What is wrong with each unreadable picture of a pass."""
        with self._lock:
            return dict(self._found.get(number, {}))

    def check(self, number: int, indices: list[int] | None = None):
        """Raise DataError when too many pictures of a pass are unreadable.

        indices: those that this and other processes found; None: those that this one found.
        """
        indices = self.of(number) if indices is None else indices
        count = len(self._source)
        allowed = max(int(self._limit * count), FEWEST) if self._limit else 0
        if len(indices) <= allowed:
            return
        reasons = self.reasons(number)
        shown = [reasons.get(index) or self._source.name(index) for index in indices]
        raise DataError(
            f"{len(indices)} of {count} pictures could not be read, more than the {allowed} that bad_image_limit "
            f"(={self._limit:g}) allows: {listed(shown, 5, '; ')}. mindrepvgg check-data finds them all; a larger "
            "--bad_image_limit goes on without them"
        )
