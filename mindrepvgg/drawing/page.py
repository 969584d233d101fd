"""A page of HTML that needs nothing but itself: no network, no script, every picture inside of it.

Its parts are functions that take plain text and numbers; each escapes what it is given.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from mindrepvgg.drawing.style import BLUE, DPI, GREEN, GREY, INK, ORANGE, PALE, RED
from mindrepvgg.files import atomic_write

# The policy forbids whatever could come from elsewhere, and scripts: a class's name can do nothing.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
"""
_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f5f7fa; color: {INK}; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans",
  "PingFang SC", "Microsoft YaHei", "DejaVu Sans", sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 28px 24px 40px; }}
h1 {{ font-size: 27px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 18px; margin: 0 0 10px; }}
p {{ margin: 6px 0 12px; overflow-wrap: anywhere; }}
.grey {{ color: {GREY}; }}
.good {{ color: {GREEN}; font-weight: 600; }}
.bad {{ color: {RED}; font-weight: 600; }}
section {{ background: white; border: 1px solid {PALE}; border-radius: 8px; padding: 18px 20px; margin-top: 18px; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 14px; margin-top: 18px; }}
.card {{ background: white; border: 1px solid {PALE}; border-radius: 8px; padding: 12px 18px; flex: 1 1 130px; }}
.card b {{ display: block; font-size: 25px; line-height: 1.3; color: {BLUE}; white-space: nowrap; }}
.wide {{ display: block; max-width: 100%; height: auto; margin: 0 auto; }}
.scroll {{ max-height: 30rem; overflow: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: 600; background: white; position: sticky; top: 0; }}
th, td {{ padding: 4px 10px 4px 0; border-bottom: 1px solid {PALE}; vertical-align: top; overflow-wrap: anywhere; }}
.number {{ text-align: right; white-space: nowrap; }}
.bar {{ width: 24%; }}
.bar i {{ display: block; height: 9px; margin-top: 7px; border-radius: 2px;
  background: linear-gradient({BLUE}, {BLUE}) no-repeat, {PALE}; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 16px; }}
figure {{ margin: 0; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }}
figure img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: {PALE}; margin-bottom: 5px; }}
figure .small {{ image-rendering: pixelated; }}
figure .first {{ color: {ORANGE}; font-weight: 600; }}
figure .second {{ color: {BLUE}; }}
footer {{ color: {GREY}; font-size: 13px; margin-top: 20px; }}
@media print {{ body {{ background: white; }} .scroll {{ max-height: none; overflow: visible; }} }}
"""
_CSS_DPI = 96  # pixels of a page in an inch
_SMALL = 140  # pixels: a picture of fewer is shown enlarged, and keeps its pixels visible


def write_page(path: Any, title: str, parts: Iterable[str]) -> None:
    """Write a page, atomically; the parts are what the functions here return."""
    with atomic_write(path, "w") as stream:
        stream.write(_HEAD.format(title=escape(title), style=_STYLE))
        stream.writelines(f"{part}\n" for part in parts)
        stream.write("</main>\n</body>\n</html>\n")


def heading(title: str, below: Sequence[str] = ()) -> str:
    """The page's title, and grey lines below it."""
    lines = "".join(f'<p class="grey">{escape(line)}</p>' for line in below)
    return f"<header><h1>{escape(title)}</h1>{lines}</header>"


def section(title: str, *parts: str) -> str:
    """A part of the page with its own title."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A line of text; kind: "", "grey", "good" or "bad"."""
    return f'<p class="{kind}">{escape(text)}</p>'


def cards(values: Mapping[str, str]) -> str:
    """Figures to be seen first, each in large letters above its name."""
    each = (f'<div class="card"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in values.items())
    return f'<div class="cards">{"".join(each)}</div>'


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = (), bars: Sequence[int] = ()
) -> str:
    """A table that scrolls where it is long.

    Args:
        headings: of the columns; none, for no line of headings.
        rows: the cells.
        numbers: columns that are set to the right.
        bars: columns of shares from 0 to 1, which are drawn as bars; None in them is an empty cell.
    """

    def cell(tag, column, value):
        if column in bars and tag == "td":
            share = "" if value is None else f'<i style="background-size: {100 * value:.1f}% 100%"></i>'
            return f'<td class="bar">{share}</td>'
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{kind}>{escape(str(value))}</{tag}>"

    def line(tag, cells):
        return f"<tr>{''.join(cell(tag, column, value) for column, value in enumerate(cells))}</tr>"

    head = f"<thead>{line('th', headings)}</thead>" if headings else ""
    return f'<div class="scroll"><table>{head}<tbody>{"".join(line("td", row) for row in rows)}</tbody></table></div>'


def drawing(draw: Callable[[io.BytesIO], None], text: str) -> str:
    """A figure in its own size, or as wide as the page.

    Args:
        draw: writes it to a stream, as a PNG.
        text: what it shows, for those who cannot see it.
    """
    stream = io.BytesIO()
    draw(stream)
    with Image.open(stream) as image:
        width = round(image.width / DPI * _CSS_DPI)
    return f'<img class="wide" width="{width}" alt="{escape(text)}" src="{_data(stream)}">'


def pictures(items: Iterable[tuple[Any, str, str, str]]) -> str:
    """Small pictures in rows: (Pillow's image, the first line, the second line, a grey line) each."""
    figures = []
    for image, first, second, last in items:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        kind = ' class="small"' if max(image.size) < _SMALL else ""
        lines = (("first", first), ("second", second), ("grey", last))
        caption = "".join(f'<div class="{name}">{escape(text)}</div>' for name, text in lines)
        shown = f'<img{kind} alt="{escape(last)}" src="{_data(stream)}">'
        figures.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pictures">{"".join(figures)}</div>'


def footer(text: str) -> str:
    """The last line."""
    return f"<footer>{escape(text)}</footer>"


def _data(stream) -> str:
    """What was written to a stream, as the address of a picture inside of the page."""
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
