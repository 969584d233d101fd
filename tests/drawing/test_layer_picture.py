"""The picture of what INT8 does to each layer: bars, gains and curves stand where the numbers say."""

import io

import pytest

from mindrepvgg.drawing.layers import draw_layers

pytestmark = pytest.mark.compat

NAMES = ["stage0", "stage1.0", "linear"]
NOISE = {"by weights": [40.0, 1.5, 45.0], "logits alone": [37.0, -2.0, 44.0]}


def drawn(figures, gains, dead):
    stream = io.BytesIO()
    draw_layers(NAMES, [6.0, 48.0, 6.5], gains, dead, NOISE, stream, "heading", "below")
    assert stream.getvalue().startswith(b"\x89PNG")
    return figures[-1].axes


@pytest.mark.filterwarnings("error")
def test_what_is_drawn(figures):
    ratios, channels, decibels = drawn(figures, [None, 86.0, None], [0, 1 / 16, 0.5])
    assert [bar.get_height() for bar in ratios.patches] == [6.0, 48.0, 6.5]
    assert [line.get_xydata().tolist() for line in ratios.lines] == [[[1, 86]]]
    assert [bar.get_height() for bar in channels.patches] == [0, 6.25, 50]
    assert {line.get_label(): line.get_ydata().tolist() for line in decibels.lines if line.get_marker() == "o"} == NOISE
    assert [label.get_text() for label in decibels.get_xticklabels()] == NAMES
    for axes in (ratios, channels):
        for label in axes.get_yticklabels():
            float(label.get_text())


def test_what_is_not_there_is_said(figures):
    ratios, channels, _ = drawn(figures, [None] * 3, [0, 0, 0])
    assert not ratios.lines
    assert [text.get_text() for text in channels.texts] == ["none"]
