"""Words for people: lists that end in "and N more", names on one line, and the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


def listed(items: Sequence[str], most: int | None = 3, separator=", ") -> str:
    """The first `most` items (None: all) on one line, and how many more there are."""
    most = len(items) if most is None else most
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def printable(name) -> str:
    """A name from a file for a message: on one line, without control characters, at most 80 characters."""
    return ascii(str(name)[:200])[1:-1][:80]


def nearest(name: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str | None:
    """The known name most like `name`, None when none is like it.

    Args:
        name: what was given; case and hyphens do not count.
        known: the names there are.
        synonyms: names of other programs for some of them, tried first.
    """
    known = list(known)
    name = name.lower().replace("-", "_")
    synonym = (synonyms or {}).get(name)
    if synonym in known:
        return synonym
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
