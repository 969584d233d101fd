"""The picture of the curves: what is in it, and that an untrained first epoch does not flatten the rest."""

import io

import numpy as np
import pytest
from PIL import Image

from mindrepvgg.drawing.curves import draw_curves

pytestmark = pytest.mark.compat


def records(trained, judged, top1=lambda epoch: 10.0 * epoch, loss=lambda step: 2.0 / step):
    """Log records of a run of four steps an epoch."""
    steps = [
        {"event": "train", "epoch": 1, "step": i, "progress": i / 4, "loss": loss(i), "lr": 0.1 / i}
        for i in range(1, trained + 1)
    ]
    return steps + [
        {"event": "validate", "epoch": e, "step": 4 * e, "top1": top1(e), "top5": 50.0, "loss": 1.5}
        for e in range(1, judged + 1)
    ]


def axes_of(figures, found, *arguments):
    draw_curves(found, io.BytesIO(), *arguments)
    return figures[-1].axes


@pytest.mark.parametrize(("trained", "judged"), [(12, 3), (4, 1), (1, 0), (0, 1), (0, 0), (400, 100)])
@pytest.mark.filterwarnings("error")
def test_the_picture_opens(tmp_path, trained, judged):
    draw_curves(records(trained, judged), tmp_path / "curves.png", "repvgg_nano on mnist5k")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        pixels = np.asarray(picture.convert("L"))
    assert pixels.std() > 5, "the picture is empty"
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_the_curves_are_the_records(figures):
    loss, accuracy, rate = axes_of(figures, records(12, 3), "net on data", 10)
    assert loss.lines[0].get_ydata().tolist() == [2.0 / i for i in range(1, 13)]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 10], [2, 20], [3, 30]]
    assert rate.lines[0].get_ydata().tolist() == [0.1 / i for i in range(1, 13)]
    words = [text.get_text() for text in figures[-1].texts]
    assert words == ["net on data", "best top-1 30.00%, after epoch 3"]


def test_top5_stands_only_where_it_tells_something(figures):
    assert len(axes_of(figures, records(12, 3), "", 8)[1].lines) == 1
    assert len(axes_of(figures, records(12, 3), "", None)[1].lines) == 1
    assert [line.get_label() for line in axes_of(figures, records(12, 3), "", 100)[1].lines] == ["top-1", "top-5"]


@pytest.mark.parametrize("epochs", [10, 100])
def test_an_untrained_first_epoch_does_not_flatten_the_rest(figures, epochs):
    found = records(4 * epochs, epochs, top1=lambda e: 10.0 if e == 1 else 97 + e / epochs)
    low, high = axes_of(figures, found)[1].get_ylim()
    assert 96 < low < 97 + 1 / epochs + 0.2
    assert 98 <= high <= 100
    assert "from 10.0" in figures[-1].axes[1].texts[0].get_text(), "what is cut off is said"


def test_a_run_that_learns_evenly_is_shown_whole(figures):
    low, high = axes_of(figures, records(40, 10, top1=lambda e: 9.0 * e))[1].get_ylim()
    assert low <= 9
    assert high >= 90
    assert not figures[-1].axes[1].texts


def test_ticks_are_plain_numbers(figures):
    for axes in axes_of(figures, records(40, 10, loss=lambda i: 1e-4 / i)):
        figures[-1].canvas.draw()
        for label in axes.get_yticklabels():
            float(label.get_text())
            assert not {"e", "$", "{"} & set(label.get_text())


def test_a_loss_that_is_not_known_is_no_point(figures):
    found = records(8, 2)
    found[-1]["loss"] = None
    found[3]["loss"] = None
    loss = axes_of(figures, found)[0]
    assert len(loss.lines[0].get_ydata()) == 7
    assert np.isfinite(loss.get_ylim()).all()


def test_no_display_and_no_global_state(tmp_path, monkeypatch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "tkagg")
    draw_curves(records(4, 1), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before
