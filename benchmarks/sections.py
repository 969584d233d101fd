"""Sections of documents that programs write."""

from pathlib import Path

from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write


def replace_section(path, name: str, text: str):
    """Write text between a document's markers `<!-- name: begin -->` and `<!-- name: end -->`, atomically.

    Raises:
        UserError: the document does not hold each marker once.
    """
    before, _, after = _parts(path, name)
    with atomic_write(path, "w") as stream:
        stream.write(f"{before}\n{text}\n{after}")


def section_of(path, name: str) -> str:
    """What stands between a document's markers, see `replace_section`."""
    return _parts(path, name)[1].strip("\n")


def _parts(path, name):
    """A document up to the end of the first marker, what stands between both, and the rest."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = Path(path).read_text(encoding="utf-8")
    if document.count(begin) != 1 or document.count(end) != 1:
        raise UserError(f"{path} must hold one {begin} and one {end}, between which the {name} stand")
    before, rest = document.split(begin)
    between, after = rest.split(end)
    return before + begin, between, end + after
