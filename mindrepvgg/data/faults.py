"""Pictures that cannot be read: what is done about them, and how many are too many."""

import logging
import threading

from mindrepvgg.errors import DataError
from mindrepvgg.text import listed

log = logging.getLogger(__name__)


class BadImages:
    """What is done about unreadable pictures of a source, and which ones there were in each pass over it.

    policy: "error" ends the pass at the first; with "skip" training puts another picture of the same batch into its
    place, with "replace" another one of its class, and evaluation counts neither.
    limit: the largest share of the source's pictures that may be unreadable in one pass. A pass has a number; a reader
    may be one ahead of whoever asks.
    """

    def __init__(self, source, policy, limit):
        self.policy = policy
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self._found = {}  # what is wrong by picture, by pass

    def start(self, number):
        """Begin a pass, from nothing; of those before, the last is kept."""
        self._found = {known: found for known, found in self._found.items() if known == number - 1}
        self._found[number] = {}

    def add(self, number, index, error):
        """Take note of picture `index` in a pass. Raises `error` itself under "error"."""
        if self.policy == "error":
            raise error
        with self._lock:
            known = index in self._found[number]
            self._found[number][index] = str(error)
        if not known:
            log.warning("%s", error)

    def of(self, number):
        """Return the pictures of a pass, sorted."""
        with self._lock:
            return sorted(self._found.get(number, ()))

    def reasons(self, number):
        """Return what is wrong, by picture, in a pass."""
        with self._lock:
            return dict(self._found.get(number, {}))

    def check(self, number, indices=None):
        """Raise DataError when the pictures of a pass (`indices`, where other processes found some) are too many."""
        indices = self.of(number) if indices is None else indices
        count = len(self._source)
        if len(indices) <= self._limit * count:
            return
        reasons = self.reasons(number)
        shown = [reasons.get(index) or self._source.name(index) for index in indices]
        raise DataError(
            f"{len(indices)} of {count} pictures could not be read, more than bad_image_limit (={self._limit:g}) "
            f"allows: {listed(shown, 5, '; ')}. mindrepvgg check-data finds them all"
        )
