"""The picture of accuracy over speed: a line for each family, form and engine; names that hide nothing."""

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mindrepvgg.drawing.speed import SpeedPoint, draw_speed

pytestmark = pytest.mark.compat

POINTS = [
    *(SpeedPoint(f"resnet{n}", "ResNet", "mindspore", speed, top1) for n, speed, top1 in ((18, 10, 70), (50, 8, 76))),
    SpeedPoint("repvgg_a0", "RepVGG", "deploy form, mindspore", 15, 72),
    SpeedPoint("repvgg_b0", "RepVGG", "deploy form, mindspore", 9, 75),
    SpeedPoint("repvgg_a0", "RepVGG", "deploy form, onnxruntime", 30, 72),
    SpeedPoint("own.ckpt", "others", "deploy form, mindspore", 12, None),
]


@pytest.mark.filterwarnings("error")
def test_what_is_drawn(figures):
    draw_speed(POINTS, io.BytesIO(), "heading", "below", "images/s", "top-1")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() != "None"}
    assert lines == {
        "ResNet, mindspore": [[8, 76], [10, 70]],
        "RepVGG, deploy form, mindspore": [[9, 75], [15, 72]],
        "RepVGG, deploy form, onnxruntime": [[30, 72]],
    }
    assert sorted(text.get_text() for text in axes.texts) == [
        *("own.ckpt", "repvgg_a0", "repvgg_b0", "resnet18", "resnet50")
    ]
    assert [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [0, 1]] == [[12, 12]]
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert colours["RepVGG, deploy form, mindspore"] == colours["RepVGG, deploy form, onnxruntime"]
    assert colours["RepVGG, deploy form, mindspore"] != colours["ResNet, mindspore"]
    figures[0].canvas.draw()
    for label in axes.get_xticklabels():
        float(label.get_text())


def test_a_name_stands_on_no_marker(figures):
    """The second network's marker lies where the first one's name would stand."""
    points = [
        SpeedPoint("one", "A", "", 10, 70),
        SpeedPoint("two", "A", "", 10.6, 70.2),
        SpeedPoint("x", "A", "", 20, 80),
    ]
    draw_speed(points, io.BytesIO(), "", "", "", "")
    (axes,) = figures[0].axes
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}
    for point in points:
        x, y = axes.transData.transform((point.images_per_second, point.top1))
        assert not any(box.contains(x, y) for box in boxes.values())
    assert not boxes["one"].overlaps(boxes["two"])
