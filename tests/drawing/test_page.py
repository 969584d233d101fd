"""The page of HTML: whole, nothing from elsewhere, and no name can break it."""

import pytest
from PIL import Image
from support.html_page import check_self_contained

from mindrepvgg.drawing import page

pytestmark = pytest.mark.compat

HOSTILE = '<script>alert("1")</script><img src="http://example.org/a.png">&amp;\'"'


@pytest.fixture
def written(tmp_path):
    def write(*parts):
        page.write_page(tmp_path / "page.html", HOSTILE, parts)
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


def test_names_cannot_break_the_page(written):
    image = Image.new("RGB", (9, 9))
    parts = [
        page.heading(HOSTILE, [HOSTILE]),
        page.cards({HOSTILE: HOSTILE}),
        page.section(
            HOSTILE,
            page.paragraph(HOSTILE, "grey"),
            page.table([HOSTILE], [[HOSTILE]]),
            page.pictures([(image, HOSTILE, HOSTILE, HOSTILE)]),
            page.drawing(lambda stream: image.save(stream, "PNG"), HOSTILE),
        ),
        page.footer(HOSTILE),
    ]
    read = check_self_contained(written(*parts))
    assert read.text.count(HOSTILE) == 13
    assert len(read.pictures) == 2


def test_the_check_itself(written):
    text = written(page.pictures([(Image.new("RGB", (9, 9)), "a", "b", "c")]))
    check_self_contained(text)
    for damage in (
        text.replace("data:image/png;base64,", "https://example.org/", 1),
        text.replace("</main>", "<script>1</script></main>"),
        text.replace("</main>", ""),
        text.replace("base64,iVBOR", "base64,iVBOS"),
    ):
        with pytest.raises((AssertionError, OSError)):
            check_self_contained(damage)


def test_a_table(written):
    text = written(
        page.pictures([(Image.new("RGB", (9, 9)), "a", "b", "c")]),
        page.table(["name", "share", ""], [["x", 1, 0.5], ["y", 2, None]], numbers=[1], bars=[2]),
    )
    read = check_self_contained(text)
    assert (read.tags.count("tr"), read.tags.count("th"), read.tags.count("td"), read.tags.count("i")) == (3, 3, 6, 1)
    assert 'style="background-size: 50.0% 100%"' in text
    assert read.tags.count("thead") == 1


def test_a_drawing_keeps_its_size_in_inches(written):
    image = Image.new("RGB", (300, 150))
    (picture,) = check_self_contained(written(page.drawing(lambda stream: image.save(stream, "PNG"), "text"))).pictures
    assert picture["width"] == "192", "2 inches of 96 pixels"
