"""A folder of real photos with two that are none, through every command, under each `on_bad_image`."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mindrepvgg.data.samples import labelled_photos

ROOT = Path(__file__).parents[2]
SMALL = "{num_blocks: [1, 1, 1, 1], widths: [4, 4, 8, 8, 16]}"
TRAIN = ("--model", "repvgg", "--model_args", SMALL, "--image_resize", "32", "--batch_size", "4")
TRAIN += ("--epoch_size", "1", "--warmup_epochs", "0", "--keep_checkpoint_max", "0", "--num_parallel_workers", "2")
TRAIN += ("--mode", "1")
BAD = ("cut.jpg", "text.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The 20 photos in 4 classes, 4 to train and 1 to validate of each; in both splits one cut and one text."""
    source = labelled_photos()
    if source is None:
        pytest.skip("needs real JPEGs: pip install --no-deps foolbox==3.3.4")
    root = tmp_path_factory.mktemp("photos")
    for index, path in enumerate(source.files.paths):
        folder = root / ("val" if index >= 16 else "train") / f"class{index % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    for split in ("train", "val"):
        data = source.files.read(0)
        (root / split / "class1" / "cut.jpg").write_bytes(data[: len(data) // 2].tobytes())
        (root / split / "class2" / "text.jpg").write_text("a text that was renamed")
    return root


def records(folder, event):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the runs of this module are."""
    return tmp_path_factory.mktemp("runs")


def train(photos, trained, call, policy):
    bad = ("--on_bad_image", policy, "--bad_image_limit", "0.5")
    return call("train", *TRAIN, "--data_dir", photos, "--ckpt_save_dir", trained / policy, *bad)


def trained_with_replace(photos, trained, call):
    """The checkpoint of that run; another process may have run the test that makes it."""
    checkpoint = trained / "replace" / "repvgg_last.ckpt"
    if not checkpoint.exists():
        assert train(photos, trained, call, "replace")[0] == 0
    return checkpoint


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_training_goes_on_and_tells(photos, trained, call, policy):
    folder = trained / policy
    status, out, err = train(photos, trained, call, policy)
    assert status == 0, err
    (record,) = records(folder, "bad_images")
    assert record["count"] == 2
    assert [Path(name).name for name in record["files"]] == list(BAD)
    (validated,) = records(folder, "validate")
    assert (validated["num_images"], validated["unreadable"]) == (4, 2)
    assert "2 images unreadable" in err + out
    assert "(2 unreadable images not counted)" in err + out


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("--on_bad_image", "error"), r"/(cut\.jpg .+ \(damaged, cut short|text\.jpg .+ \(no picture of a known)"),
        (("--bad_image_limit", "0"), r"[12] of 6 pictures could not be read, more than the 0 that .*(cut|text)\.jpg"),
    ],
    ids=["error", "too many"],
)
def test_training_ends_at_once_and_names_the_file(photos, tmp_path, call, bad, message):
    status, _, err = call("train", *TRAIN, "--data_dir", photos, "--ckpt_save_dir", tmp_path / "run", *bad)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, bool(re.search(message, line))) == (2, True), line


def test_bad_validation_pictures_end_a_run_before_its_first_step(photos, tmp_path, call):
    data = shutil.copytree(photos, tmp_path / "data")
    for path in (data / "train").rglob("*.jpg"):
        if path.name in BAD:
            path.unlink()
    for flags in (("--dry_run",), ()):
        arguments = ("--data_dir", data, "--ckpt_save_dir", tmp_path / "run", "--bad_image_limit", "0", *flags)
        status, out, err = call("train", *TRAIN, *arguments)
        assert status == 2
        assert re.search("[12] of 6 pictures could not be read", err), "of two batches, the first may have been enough"
        assert "first step" not in out + err
        assert f"data in {data}: 16 pictures to train on, 6 to validate on, 4 classes" in out


def test_validation_never_counts_what_it_cannot_read(photos, trained, call):
    checkpoint = trained_with_replace(photos, trained, call)
    options = ("--ckpt_path", checkpoint, "--data_dir", photos, "--json", "--mode", "1")
    found = {}
    for policy in ("skip", "replace"):
        status, out, err = call("validate", *options, "--on_bad_image", policy)
        assert status == 0, err
        found[policy] = json.loads(out)
        assert (found[policy]["num_images"], found[policy]["unreadable"]) == (4, 2)
        assert found[policy]["top5"] == 100, "of the pictures that were read"
    assert found["skip"]["loss"] == found["replace"]["loss"]
    status, _, err = call("validate", *options, "--on_bad_image", "error")
    assert status == 2
    assert "is not a readable picture" in err
    status, _, err = call("validate", *options, "--bad_image_limit", "0")
    assert (status, "2 of 6 pictures could not be read" in err) == (2, True)


def test_predictions_of_the_others_are_not_lost(photos, trained, call):
    options = ("--ckpt_path", trained_with_replace(photos, trained, call), "--json", photos / "val")
    for policy, expected in (("error", 1), ("skip", 0)):
        status, out, err = call("predict", *options, "--on_bad_image", policy)
        assert status == expected, err
        results = json.loads(out)
        assert sum("top" in result for result in results) == 4
        told = [result["file"] for result in results if "error" in result] if policy == "error" else err.splitlines()
        assert [any(name in line for line in told) for name in BAD] == [True, True]


def test_check_data_finds_them(photos, call, tmp_path):
    status, out, err = call("check-data", photos, "--bad_list", tmp_path / "bad.txt")
    assert status == 1, err
    listed = (tmp_path / "bad.txt").read_text().splitlines()
    assert sorted(Path(line).name for line in listed) == sorted(2 * BAD)
    assert all(name in out for name in BAD)
