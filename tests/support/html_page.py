"""Reading a page of HTML: whether it is whole, and needs nothing but itself."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

_ALONE = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Reads a page: checks that its tags are nested, and keeps pictures, references and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.references, self.tags, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "tags that are not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in _ALONE:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.references.append(value)
            assert not name.startswith("on"), "a script"
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


def check_self_contained(text) -> Reader:
    """Check that a page needs nothing but itself, and that its pictures open."""
    read = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert read.references
    assert all(reference.startswith("data:image/png;base64,") for reference in read.references)
    assert not {"script", "link", "iframe", "object", "form"} & set(read.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    for picture in read.pictures:
        content = base64.b64decode(picture["src"].partition(",")[2], validate=True)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        assert picture["alt"]
    return read
