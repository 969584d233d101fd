"""The report of a validation: every part is there, with the figures of `validate`, and a browser shows it."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from support import SMALL, randomise_bn
from support.html_page import check_self_contained

from mindrepvgg import create_model, save_checkpoint, to_deploy
from mindrepvgg.recipe.sources import load_recipe

# As folders may be called; they must not break the page.
NAMES = ["<b>bold", "cat & dog", "猫"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder like a run's: pictures of three classes, both forms of a network that tells them apart, and a log."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 120, (20, 24, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / name / f"{number}.png")
    net = randomise_bn(create_model("repvgg", 3, 3, **SMALL["plain"]))
    for parameter in (net.linear.weight, net.stage0.rbr_dense.conv.weight, net.stage0.rbr_1x1.conv.weight):
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), parameter.dtype))
    recipe = load_recipe(None, {"model": "repvgg", "num_classes": 3, "model_args": SMALL["plain"], "val_share": 0.5})
    facts = {"image_size": [16, 16], "class_names": NAMES, "recipe": recipe.to_dict(), "step": 4, "epoch": 1}
    save_checkpoint(net, folder / "train.ckpt", **facts)
    save_checkpoint(to_deploy(net), folder / "deploy.ckpt", **facts)
    numbers = {"progress": 1.0, "lr": 0.1, "loss": 0.5}
    records = [
        {"event": "train", "epoch": 1, "step": 4, **numbers},
        {"event": "validate", "epoch": 1, "step": 4, "top1": 42.25, "top5": 100.0, "loss": 1.0},
    ]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


@pytest.fixture
def report(run, call, tmp_path):
    """A function (file, *options): the JSON of the validation, and the report of it, read."""

    def make(file, *options):
        page = tmp_path / "report.html"
        data = ("--data_dir", run / "pictures", "--mode", "1", "--json")
        status, out, err = call("validate", run / file, *data, "--report", page, *options)
        assert (status, err) == (0, "")
        return json.loads(out), check_self_contained(page.read_text(encoding="utf-8"))

    return make


def test_the_files_are_named_on_the_terminal(run, call, tmp_path):
    files = (tmp_path / "m.png", tmp_path / "r.html")
    data = ("--data_dir", run / "pictures", "--mode", "1")
    status, out, _ = call("validate", run / "train.ckpt", *data, "--report", files[1], "--mistakes", files[0])
    assert (status, out.splitlines()[-1]) == (0, f"written: {files[0]}, {files[1]}")
    assert all(file.is_file() for file in files)


def test_every_part_of_a_run(report, tmp_path):
    found, page = report("train.ckpt", "--per_class", tmp_path / "c.csv", "--mistakes", tmp_path / "m.png")
    text = page.text
    assert "repvgg on pictures" in text
    assert f"{found['top1']:.2f}%" in text
    assert "top-5" not in text, "of three classes"
    for title in ("Training", "Confusions", "Classes, the worst first", "Worst mistakes", "Both forms"):
        assert title in text
    drawn = [picture["alt"] for picture in page.pictures if picture.get("class") == "wide"]
    assert drawn == ["curves of the training", "confusion matrix", "kernels of a block, before and after"]
    with open(tmp_path / "c.csv", newline="", encoding="utf-8") as stream:
        classes = sorted(csv.DictReader(stream), key=lambda row: float(row["top1"]))
    assert [text.count(f"{row['correct']} of {row['images']}") > 0 for row in classes] == [True] * 3
    places = [text.index(row["class"], text.index("most taken for")) for row in classes]
    assert places[0] < max(places)
    assert len(found["mistakes"]) == found["num_images"] - found["correct"] > 0
    first = found["mistakes"][0]
    assert f"{first['confidence']:.0%}: {first['predicted_class']}" in text
    assert f"{first['true_confidence']:.0%}: {first['true_class']} (true)" in text
    assert len(page.pictures) == 3 + len(found["mistakes"])
    assert "equivalent" in text
    assert "NOT" not in text
    assert "stage1.1" in text, "a line for each block"
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.format == "PNG"


def test_a_deploy_form_has_no_other_form_to_compare(report):
    _, page = report("deploy.ckpt")
    assert "The file has one: deploy." in page.text
    assert "kernels of a block, before and after" not in [picture["alt"] for picture in page.pictures]


def test_a_log_that_is_not_the_runs_is_left_out(run, report):
    log = run / "log.jsonl"
    before = log.read_text()
    try:
        for content in ("", before.replace('"step": 4', '"step": 3')):
            log.write_text(content)
            assert "Training" not in report("deploy.ckpt")[1].text
    finally:
        log.write_text(before)


def test_forms_that_differ_would_be_said(report, monkeypatch):
    from mindrepvgg.evaluation import report_page

    def damaged(net):
        made = to_deploy(net)
        weight = made.stage0.fused.weight
        weight.set_data(weight * 1.01)
        return made

    monkeypatch.setattr(report_page, "to_deploy", damaged)
    _, page = report("train.ckpt")
    assert "NOT equivalent: stage0" in page.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "r.pdf"], "r.pdf must end in .html"),
        (["--mistakes", "m.jpg"], "m.jpg must end in .png"),
        (["--report", "r.html", "--cross_check"], "takes no --report"),
        (["--mistakes", "m.png", "--against", "x.ckpt"], "takes no --mistakes"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_read(call, options, words):
    status, out, err = call("validate", "nowhere.ckpt", *options)
    assert (status, out) == (2, "")
    assert words in err


@pytest.mark.slow  # starts a browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
@pytest.mark.parametrize("width", [1180, 420])
def test_a_browser_shows_all_of_it(report, tmp_path, width):
    """The page forbids scripts; a copy allows one, which measures what the browser made of the page."""
    report("train.ckpt")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    script = (
        "<script>addEventListener('load', () => document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth, inner: innerWidth, "
        "images: [...document.images].map(i => [i.complete && i.naturalWidth, i.getBoundingClientRect().width]), "
        "requests: performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length}))</script>"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(
        text.replace("default-src 'none'", "script-src 'unsafe-inline'").replace("</main>", f"</main>{script}")
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},3000"]
    shot = tmp_path / "shot.png"
    for what, page in (("--dump-dom", probe), (f"--screenshot={shot}", tmp_path / "report.html")):
        command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", what, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        if what == "--dump-dom":
            found = json.loads(done.stdout.partition("<title>")[2].partition("</title>")[0])
    assert found["requests"] == 0
    assert found["wide"] <= found["inner"], "nothing sticks out at the side"
    assert len(found["images"]) > 3
    assert all(natural > 0 and shown > 50 for natural, shown in found["images"])
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("L"))
    rows = pixels.std(axis=1) > 3
    assert rows.mean() > 0.3, "the page is not blank"
