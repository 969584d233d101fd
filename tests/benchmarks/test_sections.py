"""Sections of documents."""

import pytest
from support import script

from mindrepvgg.errors import UserError

SECTIONS = script("benchmarks/sections")
replace_section = SECTIONS.replace_section


def test_what_stands_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n", encoding="utf-8")
    assert SECTIONS.section_of(page, "x") == "old"
    replace_section(page, "x", "n\u00e9w\nlines")
    assert page.read_text(encoding="utf-8") == "a\n<!-- x: begin -->\nn\u00e9w\nlines\n<!-- x: end -->\nb\n"


@pytest.mark.parametrize("text", ["", "<!-- x: begin -->", "<!-- x: begin --><!-- x: end --><!-- x: end -->"])
def test_a_page_without_the_markers_is_refused_and_stays(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match="must hold one <!-- x: begin --> and one <!-- x: end -->"):
        replace_section(page, "x", "new")
    assert page.read_text() == text
