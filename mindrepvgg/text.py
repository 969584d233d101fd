"""Words for people: tables, lists that end in "and N more", names and values in short, and the name that was meant."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence


def listed(items: Sequence[str], most: int | None = 3, separator=", ") -> str:
    """The first `most` items (None: all) on one line, and how many more there are."""
    most = len(items) if most is None else most
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def printable(name, most: int = 80) -> str:
    """A name or text from a user or a file, for a message: on one line and without control characters.

    Args:
        name: what is shown, as `str` gives it.
        most: characters to show; of a longer text the middle is left out.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _cut(str(name), most))
    return _cut(line, most)


def quoted(value, most: int = 200) -> str:
    """A value from a user or a file, for a message: as Python writes it, see `printable`."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more than 4,300 digits; lists within lists within lists
        text = f"a {type(value).__name__} too long to be shown"
    return printable(text, most)


def first_line(error: Exception) -> str:
    """The first line of another package's message, in short; MindSpore's stack, or signatures, come behind it."""
    return printable(next(iter(str(error).splitlines()), "") or type(error).__name__, 200)


def _cut(text: str, most: int) -> str:
    """The text without its middle where it has more than `most` characters."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 3]}...{text[-end:]}"


def counted(number: int, noun: str) -> str:
    """A number of things: `1 epoch`, `1,200 epochs`, `2 classes`, `3 batches`; noun: the name of one."""
    plural = f"{noun}{'es' if noun.endswith(('s', 'tch')) else 's'}"
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """A time in the unit that people would say it in: `40 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def nearest(name: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str | None:
    """The known name most like `name`, None when none is like it.

    Args:
        name: what was given; case and hyphens do not count.
        known: the names there are.
        synonyms: names of other programs for some of them, tried first.
    """
    known = list(known)
    name = name[:100].lower().replace("-", "_")  # comparing takes quadratic time
    synonym = (synonyms or {}).get(name)
    if synonym in known:
        return synonym
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def not_one_of(key: str, value, known: Iterable[str]) -> str:
    """The message for a value that is none of the known names; with the nearest, if one is like it."""
    known = list(known)
    near = nearest(str(value), known)
    hint = f"; did you mean {near}?" if near else ""
    return f"{key} (={quoted(value)}) must be one of {', '.join(known)}{hint}"


def patterns(where) -> tuple[str, ...] | None:
    """One pattern of names, as of `fnmatch`, or several, as a tuple; None for what is neither, or empty."""
    given = (where,) if isinstance(where, str) else tuple(where) if isinstance(where, Iterable) else ()
    return given if given and all(isinstance(pattern, str) for pattern in given) else None


def plain(value):
    """The value with tuples as lists and mappings as dicts, all the way down: what json and yaml can write."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def table(
    rows: Iterable[Sequence[object]],
    align: str = "<>",
    gap: str = "  ",
    rules: Iterable[int] = (),
    spans: Iterable[tuple[str, int]] = (),
) -> str:
    """Rows as plain text in columns, without spaces at the ends of lines.

    Args:
        rows: the cells of each row, the headings among them; a row may be shorter than others.
        align: a letter for each column, '<' for left and '>' for right; the last one holds for all further columns.
        gap: what stands between two columns.
        rules: before which rows a line of dashes stands; negative numbers count from the end.
        spans: a line above the rows: (heading, number of columns it stands over), right aligned.

    Returns:
        The lines, joined.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*cells, fillvalue="")]
    align = align.ljust(len(widths), align[-1])
    formats = [f"{side}{width}" for side, width in zip(align, widths, strict=False)]
    lines = [gap.join(map(format, row, formats)).rstrip() for row in cells]
    for number in sorted((rule % len(lines) for rule in rules), reverse=True):
        lines.insert(number, "-" * (sum(widths) + len(gap) * (len(widths) - 1)))
    left, over = iter(widths), []
    for heading, count in spans:
        width = sum(itertools.islice(left, count)) + len(gap) * (count - 1)
        over.append(f"{heading:>{width}}")
    return "\n".join([*([gap.join(over).rstrip()] if over else []), *lines])


def markdown_table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Rows as a table in markdown.

    Args:
        headings: one for each column.
        rows: the cells of each row; a bar in a cell is escaped.

    Returns:
        The lines, joined.
    """

    def line(cells):
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(headings), "|" + "---|" * len(headings), *map(line, rows)])
