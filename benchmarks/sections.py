"""Pages with results between markers."""

from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write


def replace_section(path, name, text):
    """Write text between a page's markers `<!-- name: begin -->` and `<!-- name: end -->`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise UserError(f"{path} must hold one {begin} and one {end}, between which the results stand")
    before, rest = page.split(begin)
    with atomic_write(path, "w") as stream:
        stream.write(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
