"""The report of a benchmark: ratios from known times, the table, the plot."""

import statistics

from mindrepvgg.measure.report import Report, Result
from mindrepvgg.measure.settings import Contestant, Settings

PNG = b"\x89PNG\r\n\x1a\n"


def result(network, seconds, form="deploy", engine="mindspore", precision="float32", batch=4, parameters=7):
    """Made up, times and all."""
    contestant = Contestant(network, form, engine, precision, batch)
    return Result(contestant, "CPU", tuple(seconds), 1.5, 3 * 2**20, parameters)


def test_figures_of_known_times():
    own, other = result("repvgg_a0", (1, 2, 4, 40), batch=8), result("resnet18", (4, 4, 20, 20), form="", batch=8)
    assert own.quartiles == (*statistics.quantiles((1, 2, 4, 40), n=4, method="inclusive"),)
    assert own.images_per_second == 8 / 3
    assert own.speed_ratio(other) == 3
    assert own.speed_ratio(own) == 1


def test_resnet18_is_the_measure_where_it_takes_part():
    settings = Settings("repvgg_a0,repvgg_b2", baselines="resnet18,resnet50", batch_sizes="4,2")
    rows = [result("resnet50", (4,), form=""), result("resnet18", (2,), form=""), result("repvgg_a0", (1,))]
    rows += [result("repvgg_b2", (3,), batch=2), result("repvgg_a0", (1,), batch=2)]
    report = Report(settings, rows)
    assert [(row["speed_ratio"], row["reference"]) for row in report.rows()] == [
        *((0.5, "resnet18"), (1, "resnet18"), (2, "resnet18"), (1, "repvgg_b2"), (3, "repvgg_b2")),
    ]
    assert [row["published_top1"] for row in report.rows()] == [None, None, 72.41, 78.78, 72.41]
    assert report.format().splitlines()[-2:] == [
        "- speed ratio 1: repvgg_b2, deploy form, mindspore, float32, batch 2",
        "- speed ratio 1: resnet18, mindspore, float32, batch 4",
    ]


def test_mindcvs_network_of_the_same_name_is_another():
    """It has neither our network's published accuracy nor its point in the plot."""
    rows = [result("repvgg_a0", (2,), form=""), result("repvgg_a0", (1,))]
    report = Report(Settings("repvgg_a0", baselines="repvgg_a0", batch_sizes="4"), rows)
    assert [row["published_top1"] for row in report.rows()] == [None, 72.41]
    assert len(report.points()) == 2


def test_the_plot_has_a_point_a_network_and_a_line_a_family(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **b: (figures.append(self), save(self, *a, **b)))
    settings = Settings(
        "repvgg_b0,repvgg_a0", baselines="resnet18,resnet34,resnet50", batch_sizes="4,1", top1="resnet18=70,resnet50=76"
    )
    rows = [result(*row, form="") for row in (("resnet18", (2,)), ("resnet34", (4,)), ("resnet50", (8,)))]
    rows += [result("repvgg_b0", (2.5,)), result("repvgg_a0", (2,), form="train"), result("repvgg_a0", (1,))]
    rows += [result("repvgg_a0", (0.5,), engine="torch"), result("repvgg_b0", (0.1,), batch=1)]
    Report(settings, rows).draw(tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(PNG)
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"}
    assert lines == {"RepVGG": [[1.6, 75.14], [4, 72.41]], "ResNet": [[0.5, 76], [2, 70]]}
    assert sorted(text.get_text() for text in axes.texts) == [
        *("repvgg_a0", "repvgg_b0", "resnet18", "resnet34", "resnet50")
    ]
    assert [line.get_xdata() for line in axes.lines if line.get_marker() != "o"] == [[1, 1]]
    assert axes.get_xlabel() == "images/s, 224x224, batch 4, mindspore, float32"


def test_a_terminal_gets_columns_and_a_file_markdown(tmp_path):
    report = Report(Settings("repvgg_a0", batch_sizes="4"), [result("repvgg_a0", (0.5,))])
    line = report.format().splitlines()[3]
    assert line.split() == ["repvgg_a0", "deploy", "mindspore", "float32", "4", "500.00", "8.0", "3", "1.00"]
    assert max(map(len, report.format().splitlines()[2:4])) < 80
    report.write(tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text().splitlines()[4].startswith("| repvgg_a0 | deploy | mindspore |")
