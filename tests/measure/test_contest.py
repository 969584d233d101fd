"""The benchmark: every engine in a process of its own, turns, and what is left out and why."""

import csv
import itertools
import sys

import numpy as np
import onnx
import pytest
from support import SMALL, context_mode, randomise_bn

import mindrepvgg
from mindrepvgg import create_model, save_checkpoint
from mindrepvgg.cli import benchmark, entry
from mindrepvgg.errors import UserError
from mindrepvgg.measure import contest
from mindrepvgg.measure.contestants import Facts
from mindrepvgg.measure.settings import ENGINES, TORCH_COMPILED, Settings
from mindrepvgg.measure.worker import BrokenDown
from mindrepvgg.models import variants
from mindrepvgg.models.summary import summarise

MAIN = benchmark.main

QUICK = [engine for engine in ENGINES if engine != TORCH_COMPILED]  # which compiles C++ first


@pytest.fixture(autouse=True, scope="module")
def _graph_mode():
    """The command sets the process's mode."""
    with context_mode("graph"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network of one's own in all engines: (checkpoint, exit status, stdout, rows of the CSV, markdown)."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("benchmark")
    path, table, out = folder / "own.ckpt", folder / "results.csv", folder / "results.md"
    save_checkpoint(randomise_bn(create_model("repvgg", 10, 3, **SMALL["plain"])), path)
    capture = pytest.MonkeyPatch()
    printed = []
    capture.setattr("builtins.print", lambda *values: printed.append(*values))
    arguments = ["--ckpt_path", path, "--engines", ",".join(QUICK), "--batch_sizes", 2, "--rounds", 2]
    arguments += ["--warmup", 1, "--image_size", 32, "--num_threads", 1, "--csv", table, "--out", out]
    arguments += ["--forms", "deploy"]
    try:
        status = entry.run(MAIN, list(map(str, arguments)))
    finally:
        capture.undo()
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    return path, status, "\n".join(printed), rows, out.read_text()


def test_every_engine_measures_the_same_network(run):
    path, status, _, rows, _ = run
    assert status == 0
    told = [(row["network"], row["engine"], row["form"], row["precision"], row["batch_size"]) for row in rows]
    assert told == [(str(path), engine, "deploy", "float32", "2") for engine in QUICK]
    params = summarise(variants.custom(**SMALL["plain"]), 10).total("deploy").params
    for row in rows:
        assert 0 < float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])
        assert float(row["images_per_second"]) == pytest.approx(2000 / float(row["median_ms"]))
        assert float(row["first_call_s"]) > 0
        assert 0 < float(row["memory_mib"]) < 1000
        assert int(row["parameters"]) == params
        assert (row["device"], row["image_size"], row["published_top1"]) == ("CPU", "32", "")
    assert float(rows[0]["speed_ratio"]) == 1
    # Compiling a graph takes longer than running it: the two are apart.
    assert float(rows[0]["first_call_s"]) > 10 * float(rows[0]["median_ms"]) / 1000


def test_the_table_tells_what_the_csv_tells(run):
    path, _, printed, rows, written = run
    header, _, headings, _, *lines = written.splitlines()
    assert printed.splitlines()[0] == header
    assert header.startswith("Inference, 32x32, median of 2 rounds after 1 of warm-up, in turns; ")
    assert ", 1 core; mindspore 2" in header
    assert header.endswith(" on CPU")
    keys = [cell.strip() for cell in headings.split("|")[1:-1]]
    for line, row in zip(lines, rows, strict=False):
        cells = dict(zip(keys, (cell.strip() for cell in line.split("|")[1:-1]), strict=True))
        assert [cells[key] for key in ("network", "form", "engine", "batch")] == [
            row[key] for key in ("network", "form", "engine", "batch_size")
        ]
        assert float(cells["median ms"]) == pytest.approx(float(row["median_ms"]), abs=0.006)
        quartiles = [float(number) for number in cells["quartiles"].split(" - ")]
        assert quartiles == pytest.approx([float(row["q1_ms"]), float(row["q3_ms"])], abs=0.006)
        assert float(cells["images/s"]) == pytest.approx(float(row["images_per_second"]), abs=0.06)
        assert float(cells["speed ratio"]) == pytest.approx(float(row["speed_ratio"]), abs=0.006)
        assert cells["parameters"].replace(",", "") == row["parameters"]
    assert lines[len(rows) :] == [
        "",
        f"- speed ratio 1: {path}, deploy form, mindspore, float32, batch 2",
    ]


class Scripted:
    """Stands for the other process: notes who does what, and does as it was told for a network and form."""

    done: list
    orders: dict

    def __init__(self, serve, contestant, network, source, settings):
        self.contestant, self.order = contestant, self.orders.get((contestant.form, contestant.precision))
        self.done.append(("start", contestant))

    def answer(self):
        if self.order == "refuse":
            raise BrokenDown("no room")
        logits = np.array([[1.0, 2.0]]) + {"differ": 0.5, "near": 0.1, "nan": np.nan}.get(self.order, 0)
        return Facts("CPU", 5, 1.0, logits)

    def ask(self, request):
        if request == "memory":
            return 2**20
        self.done.append(("call", self.contestant))
        if self.order == "die" and self.done.count(("call", self.contestant)) == 3:
            raise BrokenDown("its process ended with 1")
        return float(self.done.count(("call", self.contestant)))

    def close(self):
        self.done.append(("close", self.contestant))


@pytest.fixture
def scripted(monkeypatch):
    """A function (orders by (form, precision), **settings): a run's reports without processes, and what was done."""
    monkeypatch.setattr(contest, "Worker", Scripted)
    monkeypatch.setattr(contest, "_REST", 0)

    def measure(orders=None, **settings):
        monkeypatch.setattr(Scripted, "done", [], raising=False)
        monkeypatch.setattr(Scripted, "orders", orders or {}, raising=False)
        settings = Settings(**{"models": "repvgg_nano", "rounds": 20, "warmup": 2, **settings})
        return list(contest.measure(settings)), Scripted.done

    return measure


def test_those_of_a_batch_size_take_turns(scripted):
    (first, second), done = scripted(batch_sizes="1,2", precisions="float32,float16")
    assert first is second  # and grows
    assert len(first.results) == 8
    # Warm-up calls, the first two, are not counted.
    assert {row.seconds for row in first.results} == {tuple(map(float, range(3, 23)))}
    for batch_size in (1, 2):
        calls = [own for what, own in done if what == "call" and own.batch_size == batch_size]
        rounds = {frozenset(calls[start : start + 4]) for start in range(0, len(calls), 4)}
        assert [len(turns) for turns in rounds] == [4], "each round has everybody"
    starts = [own.batch_size for what, own in done if what in ("start", "close")]
    assert [(size, len(list(run))) for size, run in itertools.groupby(starts)] == [(1, 8), (2, 8)]


def test_mindcvs_network_of_the_same_name_takes_part(scripted):
    """Its logits are not compared: its weights are others."""
    (report,), _ = scripted({("", "float32"): "differ"}, baselines="repvgg_a0", models="repvgg_a0", batch_sizes="3")
    assert [(row.contestant.form, row.parameters) for row in report.results] == [
        *(("", 5), ("train", 9_108_968), ("deploy", 8_309_384))
    ]


def test_alone_means_one_process_at_a_time(scripted):
    reports, done = scripted(batch_sizes="1", alone=True)
    assert len(reports) == 2
    assert [key for key, _ in itertools.groupby(done)] == [
        (what, own.contestant) for own in reports[-1].results for what in ("start", "call", "close")
    ]
    assert "one after the other" in reports[-1].format()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("refuse", "no room"),
        ("die", "its process ended with 1"),
        ("differ", "its logits differ from the first contestant's by 2.5e-01 of the largest"),
        ("near", "its logits differ from the first contestant's by 5.0e-02 of the largest"),
        ("nan", "its logits are not finite"),
    ],
)
def test_who_breaks_down_is_left_out_with_the_reason(scripted, order, reason):
    (report,), done = scripted({("deploy", "float32"): order}, batch_sizes="3")
    assert [row.contestant.form for row in report.results] == ["train"]
    assert len(report.results[0].seconds) == 20
    assert report.left_out == [f"repvgg_nano, deploy form, mindspore, float32, batch 3: {reason}"]
    assert report.failed
    assert report.format().endswith(f"- left out: {report.left_out[0]}")
    deploy = [what for what, own in done if own.form == "deploy"]
    assert deploy.count("call") == {"die": 3}.get(order, 0)
    assert "close" in deploy


def test_agreement_holds_across_groups_too(scripted):
    reports, _ = scripted({("deploy", "float32"): "differ"}, batch_sizes="3", alone=True)
    assert len(reports[-1].results) == 1
    assert "its logits differ" in reports[-1].left_out[0]


def test_the_first_contestant_is_no_truth_of_its_own(scripted):
    """One without finite logits is nobody's measure, and float32 may differ from float16 as float16 may from it."""
    (report,), _ = scripted({("train", "float32"): "nan"}, batch_sizes="3")
    assert [(row.contestant.form, row.contestant.batch_size) for row in report.results] == [("deploy", 3)]
    for order, count in (("near", 2), ("differ", 1)):
        settings = {"forms": "deploy", "batch_sizes": "3", "precisions": "float16,float32"}
        (report,), _ = scripted({("deploy", "float32"): order}, **settings)
        assert len(report.results) == count


def test_nothing_left_is_an_error(scripted):
    with pytest.raises(UserError, match=r"nothing could be measured: repvgg_nano, deploy form, .*: no room"):
        scripted({("deploy", "float32"): "refuse"}, forms="deploy", batch_sizes="3")


def test_what_makes_no_sense_is_left_out_with_a_line(tmp_path):
    path = tmp_path / "deploy.ckpt"
    save_checkpoint(create_model("repvgg", 10, deploy=True, **SMALL["plain"]), path)
    settings = Settings("repvgg_nano", [path], batch_sizes="1")
    networks = contest._prepare(settings, tmp_path)
    contestants, left_out = contest._plan(settings, networks)
    told = [(own.network, own.form) for own in contestants]
    assert told == [("repvgg_nano", "train"), ("repvgg_nano", "deploy"), (str(path), "deploy")]
    fused = f"{path}, train form: its branches are fused and cannot be recovered"
    assert left_out == [fused]
    settings = Settings("repvgg_nano", [path], engines="onnxruntime,torch", batch_sizes="2,1", baselines="resnet18")
    contestants, left_out = contest._plan(settings, networks)
    told = [(own.network, own.form, own.engine) for own in contestants if own.batch_size == 2]
    nano, own = "repvgg_nano", str(path)
    assert told == [
        *((nano, "deploy", "onnxruntime"), (own, "deploy", "onnxruntime")),
        *((nano, "train", "torch"), (nano, "deploy", "torch"), (own, "deploy", "torch")),
    ]
    assert [own.batch_size for own in contestants] == [2] * 5 + [1] * 5
    assert left_out == [
        "train form under onnxruntime: only the deploy form is exported",
        "resnet18: run under mindspore, which is not among the engines",
        fused,
    ]


def test_what_an_engine_does_not_compute_in_is_left_out(tmp_path):
    settings = Settings("repvgg_nano", forms="deploy", engines="openvino,torch", precisions="float16,bfloat16")
    contestants, left_out = contest._plan(settings, contest._prepare(settings, tmp_path))
    assert [(own.engine, own.precision) for own in contestants if own.batch_size == 1] == [
        *(("torch", "float16"), ("openvino", "bfloat16")),
    ]
    assert left_out == [
        "float16 under openvino: it computes in float32 and bfloat16",
        "bfloat16 under torch: it computes in float32 and float16",
    ]


@pytest.fixture(scope="module")
def exported_files(tmp_path_factory):
    """A folder with files of one network: any batch, a fixed one with pixels, MindIR, and one undescribed."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("exported")
    own = folder / "own.ckpt"
    save_checkpoint(randomise_bn(create_model("repvgg", 10, 3, **SMALL["plain"])), own, image_size=[32, 32])
    mindrepvgg.export(own, folder / "any.onnx", image_size="dynamic")
    mindrepvgg.export(own, folder / "pixels.onnx", batch_size=2, preprocess=True)
    mindrepvgg.export(own, folder / "own.mindir")
    model = onnx.load(str(folder / "any.onnx"))
    model.ClearField("metadata_props")
    onnx.save(model, str(folder / "lost.onnx"))
    return folder


@pytest.fixture
def exported(exported_files, monkeypatch):
    """`exported_files` is the working folder."""
    monkeypatch.chdir(exported_files)


def test_exported_files_take_part(exported):
    """By the engines that run them, or else by their own."""
    files = ["any.onnx", "pixels.onnx", "own.mindir", "lost.onnx", "--engines", "openvino"]
    sizes = ["--image_size", "32", "--batch_sizes", "2", "--rounds", "1", "--warmup", "0", "--csv", "table.csv"]
    assert entry.run(MAIN, [*files, *sizes]) == 0
    with open("table.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["network"], row["engine"], row["precision"]) for row in rows] == [
        ("any.onnx", "openvino", "float32"),
        ("pixels.onnx", "openvino", "float32"),
        ("own.mindir", "mindspore", "float32"),
        ("lost.onnx", "openvino", ""),
    ]
    assert {row["form"] for row in rows} == {"file"}
    assert all(float(row["max_rel"]) < 1e-5 for row in rows)
    assert [row["parameters"] == "" for row in rows] == [False, False, False, True]


def test_files_of_another_size_are_left_out(exported, tmp_path):
    settings = Settings(ckpt_paths="own.mindir,any.onnx", engines="openvino,onnxruntime", precisions="float32,bfloat16")
    contestants, left_out = contest._plan(settings, contest._prepare(settings, tmp_path))
    assert [(own.engine, own.precision) for own in contestants if own.batch_size == 1] == [
        *(("openvino", "float32"), ("openvino", "bfloat16"), ("onnxruntime", "float32")),
    ]
    assert left_out == ["own.mindir: it takes 32x32; give --image_size 32"]
    settings = Settings(ckpt_paths="pixels.onnx", image_size=32, batch_sizes="2,1")
    contestants, left_out = contest._plan(settings, contest._prepare(settings, tmp_path))
    assert [(own.engine, own.batch_size) for own in contestants] == [("onnxruntime", 2)]
    assert left_out == ["pixels.onnx, batch 1: its batch is fixed at 2"]


def test_a_features_network_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "maps.ckpt"
    save_checkpoint(create_model("repvgg", features_only=True, deploy=True, **SMALL["plain"]), path)
    assert entry.run(MAIN, [str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path} gives maps, and what is measured are networks that classify\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--models repvgg_a3", "model (='repvgg_a3') is not a network of the family; did you mean repvgg_b3"),
        ("--ckpt_path none.ckpt", "none.ckpt does not exist"),
        ("--forms fused", "forms (='fused') must be train or deploy"),
        ("--forms ,", "forms is empty; give at least one"),
        (
            "--engines tensorrt",
            "engines (='tensorrt') must be mindspore, onnxruntime, openvino, torch or torch.compile",
        ),
        ("--precisions int4", "precisions (='int4') must be float32, float16 or bfloat16"),
        ("--precisions bfloat16", "nothing to measure: bfloat16 under mindspore: it computes in float32 and float16"),
        ("none.onnx", "none.onnx does not exist, expected an ONNX file"),
        ("--batch_sizes 1,0", "batch_sizes (='0') must be a whole number of at least 1"),
        ("--rounds 0", "rounds (='0') must be a whole number of at least 1"),
        ("--image_size 100000", "image_size (='100000') must be a whole number of at least 1 and at most 16384"),
        ("--batch_sizes 1,99999", "batch_sizes (=99999) of image_size (=224) need more than 8 GiB"),
        ("--image_size x", "image_size (='x') must be a whole number of at least 1"),
        ("--num_threads 9999", "num_threads (=9999) must be at most "),
        (
            "--baselines resnet19",
            "baselines (='resnet19') must be networks of MindCV, as resnet18; did you mean resnet1",
        ),
        ("--baselines resnet18 --engines torch", "nothing to measure: resnet18: run under mindspore, which is not"),
        ("--forms train --engines onnxruntime", "nothing to measure: train form under onnxruntime: only the deploy"),
        ("--plot speed.pdf", "speed.pdf must end in .png"),
        ("--models repvgg_nano --plot x.png", "none of the networks has a published accuracy to plot; give them with"),
        ("--top1 72", "top1 (='72') must be NAME=PERCENT,..."),
        ("--top1 repvgg_a0=101", "top1 of repvgg_a0 (='101') must be a number of at least 0 and at most 100"),
        ("--top1 resnet18=70", "top1 tells of resnet18, which is not among the networks to measure"),
        ("--model repvgg_a0", "unknown option --model; did you mean --models?"),
    ],
)
def test_wrong_use_is_refused_in_one_line(capsys, arguments, text):
    assert entry.run(MAIN, arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {text}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "engine", "text"),
    [
        (
            "torch",
            "torch",
            "the engine torch needs the package torch: pip install torch 'numpy<2' (extra: torch)",
        ),
        (
            "onnxruntime",
            "onnxruntime",
            "an ONNX file needs the package onnxruntime: pip install onnxruntime 'numpy<2' (extra: onnx)",
        ),
        (
            "openvino",
            "openvino",
            "the engine openvino needs the package openvino: pip install openvino 'numpy<2' (extra: openvino)",
        ),
        (
            "onnx",
            "onnxruntime",
            "an ONNX file needs the package onnx: pip install onnx 'numpy<2' (extra: onnx)",
        ),
    ],
)
def test_a_missing_package_is_named_before_anything_starts(monkeypatch, capsys, package, engine, text):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(contest, "_prepare", lambda *_: pytest.fail("it went on"))
    assert entry.run(MAIN, ["--engines", engine]) == 2
    assert capsys.readouterr().err.startswith(f"error: {text}")
