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
    assert [row["published_top1"] for row in report.rows()] == [76.69, 70.21, 72.41, 78.78, 72.41]
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


def test_the_plot_has_the_largest_batch_by_form_and_engine(tmp_path, figures):
    settings = Settings(
        "repvgg_b0,repvgg_a0",
        baselines="resnet18,mobilenet_v2_100",
        batch_sizes="4,1",
        top1="resnet18=71",
        engines="torch",
    )
    rows = [result("resnet18", (2,), form=""), result("mobilenet_v2_100", (1,), form="")]
    rows += [result("repvgg_b0", (2.5,)), result("repvgg_a0", (2,), form="train"), result("repvgg_a0", (1,))]
    rows += [result("repvgg_a0", (0.5,), engine="torch"), result("repvgg_b0", (0.1,), batch=1)]
    rows += [result("repvgg_a0", (0.1,), precision="float16")]
    report = Report(settings, rows)
    assert report.points() == [
        ("resnet18", "ResNet", "mindspore", 2, 71),
        ("mobilenet_v2_100", "others", "mindspore", 4, None),
        ("repvgg_b0", "RepVGG", "deploy form, mindspore", 1.6, 75.14),
        ("repvgg_a0", "RepVGG", "train form, mindspore", 2, 72.41),
        ("repvgg_a0", "RepVGG", "deploy form, mindspore", 4, 72.41),
        ("repvgg_a0", "RepVGG", "deploy form, torch", 8, 72.41),
    ]
    report.draw(tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(PNG)
    assert figures[0].axes[0].get_ylabel() == "published ImageNet top-1 at 224x224 (%)"
    assert figures[0].texts[1].get_text().endswith("batch 4, 224x224 pixels, float32")


def test_one_engine_is_not_named_at_every_point():
    report = Report(Settings("repvgg_a0", batch_sizes="4"), [result("repvgg_a0", (1,))])
    assert [point.way for point in report.points()] == ["deploy form"]


def test_a_terminal_gets_columns_and_a_file_markdown(tmp_path):
    report = Report(Settings("repvgg_a0", batch_sizes="4"), [result("repvgg_a0", (0.5,))])
    line = report.format().splitlines()[3]
    assert line.split() == ["repvgg_a0", "deploy", "mindspore", "float32", "4", "500.00", "8.0", "3", "1.00"]
    assert max(map(len, report.format().splitlines()[2:4])) < 80
    report.write(tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text().splitlines()[4].startswith("| repvgg_a0 | deploy | mindspore |")
