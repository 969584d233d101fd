"""The verb predict gives PyTorch's probabilities on real photos, names them, draws them, and survives bad pictures."""

import functools
import io
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from mindspore import Tensor
from PIL import Image
from support import SMALL, context_mode, randomise_bn
from support.foreign import theirs, torch_network, write

from mindrepvgg import create_model, load_weights, save_checkpoint
from mindrepvgg.data import inputs
from mindrepvgg.data.inputs import InputFiles
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.errors import DataError, UserError
from mindrepvgg.evaluation.draw import Drawer
from mindrepvgg.evaluation.predictions import Prediction, class_names_of, loader_for, predictions
from mindrepvgg.models.variants import find

PHOTOS = labelled_photos()
NEEDS_PHOTOS = pytest.mark.skipif(PHOTOS is None, reason="needs the photos of foolbox (pip install --no-deps foolbox)")
NAMES = ["Šunka", "ёж", "γάτα", "d'or", "e", "f", "g"]
SIDE = 32
SORTED = ("a.jpg", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/deep/3.JPEG")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _mode():
    """A command sets the process's mode."""
    with context_mode("graph"):
        yield


@pytest.fixture
def call(call):
    """A function (*arguments) that runs the command in this process: (exit status, stdout, stderr)."""
    return functools.partial(call, "predict")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file of PyTorch's, which tells nothing of preprocessing or classes."""
    return write(tmp_path_factory.mktemp("checkpoint") / "plain.pth", theirs("official", "plain"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five photos in two folders, two of one file name, and a text that is no picture by its suffix."""
    folder = tmp_path_factory.mktemp("photos")
    for place, path in zip(SORTED, PHOTOS.files.paths, strict=False):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / place)
    (folder / "a/notes.txt").write_text("notes")
    return folder


def truth(path):
    """PyTorch's probabilities of a photo, which Pillow and NumPy prepared."""
    image = Image.open(path).convert("RGB")
    short = int(SIDE / 0.875)
    width, height = (short * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    x = torch.from_numpy(((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        return torch.softmax(torch_network("plain")(x).double(), 1)[0].numpy()


def assert_true(entry, path, names=None):
    """An entry of the JSON list has the probabilities of `truth`, largest first, with the classes' names."""
    expected = truth(path)
    assert np.ptp(expected) > 0.01
    order = np.argsort(-expected)[: len(entry["top"])]
    assert [top["index"] for top in entry["top"]] == order.tolist()
    assert [top["class"] for top in entry["top"]] == [names[i] if names else str(i) for i in order]
    np.testing.assert_allclose([top["probability"] for top in entry["top"]], expected[order], rtol=1e-3)


class Colours:
    """A stand-in for a network, whose answer is known: the logit of each channel is its mean."""

    variant = find("repvgg_a0")
    num_classes = in_channels = 3
    metadata = types.MappingProxyType(
        {"image_size": [8, 8], "preprocessing": {"mean": [0.5] * 3, "std": [0.1] * 3, "crop_pct": 1.0}}
    )

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        return batch.mean((2, 3))


@pytest.fixture
def colours(tmp_path):
    """A folder with a red, a green and a blue picture, of three formats and sizes."""
    folder = tmp_path / "colours"
    folder.mkdir()
    Image.new("RGB", (20, 10), "red").save(folder / "0.jpg")
    Image.new("RGB", (10, 30), "lime").save(folder / "1.png")
    Image.new("P", (9, 9), 0).save(folder / "2.bmp")
    Image.new("RGB", (64, 64), "blue").save(folder / "3.webp")
    return folder


def run_colours(folder, **options):
    loader = {"batch_size": options.pop("batch_size", 3)}
    net = Colours()
    return net, list(predictions(net, loader_for(net, InputFiles([folder]), loader), **options))


class TestPredictions:
    def test_a_network_whose_answer_is_known(self, colours):
        net, found = run_colours(colours)
        assert [result.top[0][1] for result in found] == [0, 1, 0, 2]
        # The mean of a full channel is (1 - 0.5) / 0.1 = 5, of an empty one -5.
        full = 1 / (1 + 2 * np.exp(-10))
        assert found[1].top[0] == ("1", 1, pytest.approx(full, rel=1e-6))
        # Black: all alike, the lower index first.
        assert [index for _, index, _ in found[2].top] == [0, 1, 2]
        assert found[2].top[0][2] == pytest.approx(1 / 3)
        assert net.shapes == [(3, 3, 8, 8)] * 2

    def test_names_and_topk(self, colours):
        _, found = run_colours(colours, class_names=["r", "g", "b"], topk=2)
        assert [name for name, _, _ in found[3].top] == ["b", "r"]
        assert found[1].format() == f"{colours}/1.png\n   99.99%  1  g\n    0.00%  0  r"

    def test_a_bad_picture_costs_no_other(self, colours):
        _, before = run_colours(colours)
        (colours / "05.jpg").write_bytes((colours / "0.jpg").read_bytes()[:99])
        (colours / "4.png").touch()
        _, found = run_colours(colours)
        assert [Path(result.file).name for result in found if result.error] == ["05.jpg", "4.png"]
        assert [result for result in found if not result.error] == before
        assert found[1].to_dict() == {
            "file": f"{colours}/05.jpg",
            "error": f"{colours}/05.jpg is not a readable picture (damaged, cut short or too large: Truncated File "
            "Read); replace or remove it",
        }

    def test_logits_that_are_not_finite(self, colours):
        def run(batch):
            logits = batch.mean((2, 3))
            logits[0, 1] = np.inf
            return logits

        net = Colours()
        found = list(predictions(run, loader_for(net, InputFiles([colours]), {"batch_size": 3})))
        assert [bool(result.error) for result in found] == [True, False, False, True]
        assert found[0].error == f"the network's logits for {colours}/0.jpg are not finite"

    @NEEDS_PHOTOS
    def test_the_batch_size_changes_nothing(self, photos):
        """A real network, on the images an `EvalLoader` makes of the photos."""
        with context_mode("pynative"):
            net = randomise_bn(create_model("repvgg", 7, 3, **SMALL["plain"])).set_train(False)
            found = {}
            for size in (1, 2, 5):
                loader = loader_for(net, InputFiles([photos]), {"batch_size": size, "image_resize": SIDE})
                found[size] = list(predictions(net, loader, topk=7))
            (batch, _, valid) = next(iter(loader))
            logits = net(Tensor(batch)).asnumpy()
        assert valid.all()
        assert len(found[1]) == len(found[2]) == 5
        for row, (one, two, five) in enumerate(zip(*found.values(), strict=True)):
            expected = torch.softmax(torch.from_numpy(logits[row]).double(), 0).numpy()
            for result in (one, two, five):
                probabilities = np.array([p for _, _, p in sorted(result.top, key=lambda entry: entry[1])])
                np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        assert len({result.top[0][2] for result in found[1]}) == 5


@NEEDS_PHOTOS
class TestCommand:
    def test_json_of_folder_and_standard_input(self, photos, checkpoint, call, monkeypatch):
        content = (photos / "a/2.jpg").read_bytes()
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
        status, out, err = call("--ckpt_path", checkpoint, "-", photos, "--json", "--image_resize", SIDE, "--topk", 9)
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert [entry["file"] for entry in found] == ["standard input", *(str(photos / name) for name in SORTED)]
        assert all(len(entry["top"]) == 7 for entry in found)
        for entry, name in zip(found, ("a/2.jpg", *SORTED), strict=True):
            assert_true(entry, photos / name)

    def test_standard_input_that_does_not_end(self, checkpoint, call, monkeypatch):
        endless = types.SimpleNamespace(read=lambda most: bytes(most))
        monkeypatch.setattr(inputs, "LARGEST_FILE", 1000)
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=endless))
        status, _, err = call("--ckpt_path", checkpoint, "-")
        assert (status, err) == (2, "error: standard input holds more than the 1000 bytes that a picture may have\n")

    def test_names_drawings_and_a_bad_picture(self, photos, checkpoint, call, tmp_path):
        (tmp_path / "bad.jpg").write_bytes((photos / "a.jpg").read_bytes()[:5000])
        (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
        common = ("--ckpt_path", checkpoint, "--image_resize", SIDE, "--topk", 2, "--batch_size", 2)
        inputs = (photos / "a/1.jpg", tmp_path / "bad.jpg", photos / "b")
        more = ("--class_names", tmp_path / "names.txt", "--out", tmp_path / "out")
        status, out, err = call(*common, *inputs, *more)
        assert (status, err) == (1, "")
        lines = out.splitlines()
        order = np.argsort(-truth(photos / "a/1.jpg"))
        assert lines[0] == str(photos / "a/1.jpg")
        assert [line.split(maxsplit=2)[1:] for line in lines[1:3]] == [[str(i), NAMES[i]] for i in order[:2]]
        assert lines[3:6] == [
            f"  drawn: {tmp_path}/out/1.jpg",
            f"{tmp_path}/bad.jpg",
            f"  error: {tmp_path}/bad.jpg is not a readable picture (damaged, cut short or too large: image "
            "file is truncated (2 bytes not processed)); replace or remove it",
        ]
        drawn = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
        assert drawn == {"1.jpg", "1_2.jpg", "deep/3.jpg"}
        for name, original in (("1.jpg", "a/1.jpg"), ("1_2.jpg", "b/1.jpg"), ("deep/3.jpg", "b/deep/3.JPEG")):
            before, after = Image.open(photos / original), Image.open(tmp_path / "out" / name)
            assert (after.format, after.width) == ("JPEG", max(before.width, 360))
            left = (after.width - before.width) // 2
            shown = after.crop((left, 0, left + before.width, before.height))
            difference = np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(shown))
            assert difference.mean() < 5, "the picture is only compressed again"
            panel = np.asarray(after.convert("L"))[before.height + 4 :]
            assert panel.max() > 250
            assert panel.min() < 100, "the classes stand beneath"

    def test_skip_and_a_checkpoint_that_tells_everything(self, photos, checkpoint, call, tmp_path):
        facts = {"image_size": [SIDE, SIDE], "class_names": NAMES}
        facts["preprocessing"] = {"mean": MEAN, "std": STD, "crop_pct": 0.875, "interpolation": "bilinear"}
        save_checkpoint(load_weights(checkpoint), tmp_path / "net.ckpt", **facts)
        (tmp_path / "bad.png").write_bytes(b"\x89PNG")
        inputs = (tmp_path / "bad.png", photos / "a.jpg")
        status, out, err = call("--ckpt_path", tmp_path / "net.ckpt", *inputs, "--on_bad_image", "skip", "--json")
        assert status == 0
        assert err.startswith(f"skipped: {tmp_path}/bad.png is not a readable picture")
        (entry,) = json.loads(out)
        assert_true(entry, photos / "a.jpg", NAMES)

    def test_skipping_everything_is_an_error(self, checkpoint, call, tmp_path):
        (tmp_path / "bad.png").touch()
        status, out, err = call("--ckpt_path", checkpoint, tmp_path, "--on_bad_image", "skip", "--image_resize", SIDE)
        assert (status, out) == (2, "")
        assert err.endswith("error: none of the 1 pictures could be read\n")

    def test_onnxruntime(self, photos, checkpoint, call):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        options = ("--engine", "onnxruntime", "--image_resize", SIDE, "--json")
        status, out, _ = call("--ckpt_path", checkpoint, photos / "b", *options)
        assert status == 0
        for entry, name in zip(json.loads(out), SORTED[3:], strict=True):
            assert_true(entry, photos / name)


class TestInputs:
    def test_targets_do_not_collide(self, tmp_path):
        places = ("x/1.jpg", "y/1.JPEG", "y/1_2.jpg", "y/1.png", "z/deep/1.bmp", "z/deep/1.png", "z/1.tiff")
        for place in places:
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).touch()
        files = InputFiles([*(tmp_path / place for place in places[:4]), tmp_path / "z"])
        assert files.targets == ("1.jpg", "1_2.jpg", "1_2_2.jpg", "1.png", "1_2.png", "deep/1.png", "deep/1_2.png")

    def test_standard_input_beside_a_file_of_that_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("-").write_bytes(b"file")
        files = InputFiles(["./-", "-"], io.BytesIO(b"bytes"))
        assert [bytes(files.read(i)) for i in range(2)] == [b"file", b"bytes"]
        assert [files.name(i) for i in range(2)] == ["./-", "standard input"]

    def test_a_named_file_needs_no_suffix(self, tmp_path):
        Image.new("RGB", (9, 9)).save(tmp_path / "picture", "PNG")
        assert InputFiles([tmp_path / "picture"]).targets == ("picture.png",)
        with pytest.raises(DataError, match="no pictures in"):
            InputFiles([tmp_path])


class TestDrawing:
    """What a picture looks like is tests/drawing/test_sheet.py's."""

    def test_a_picture_keeps_its_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (90, 60), "gray").save(tmp_path / "turned.jpg", exif=exif)
        files = InputFiles([tmp_path / "turned.jpg"])
        path = Drawer(tmp_path / "out", files).write(0, Prediction("turned.jpg", (("cat", 0, 0.5),)))
        with Image.open(path) as drawn:
            assert (drawn.format, drawn.width) == ("JPEG", 4 * 90)
            assert drawn.height > 4 * 60, "the classes stand beneath"
            above, beneath = drawn.getpixel((5, 4 * 60 - 9)), drawn.getpixel((5, 4 * 60 + 4))
        assert max(above) < 140
        assert min(beneath) > 240

    def test_a_picture_longer_than_jpeg_holds_is_written_as_png(self, tmp_path):
        Image.new("RGB", (70_000, 3)).save(tmp_path / "long.jpg", "PNG")
        files = InputFiles([tmp_path / "long.jpg"])
        path = Drawer(tmp_path / "out", files).write(0, Prediction("long.jpg", (("cat", 0, 0.5),)))
        with Image.open(path) as image:
            assert (image.format, image.width) == ("PNG", 70_000)

    def test_no_input_is_overwritten(self, tmp_path):
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        os.symlink(tmp_path, tmp_path / "link")
        for folder in (tmp_path, tmp_path / "link"):
            with pytest.raises(DataError, match=r"a\.png is one of the pictures to predict; give another folder"):
                Drawer(folder, InputFiles([tmp_path / "a.png"]))
        with pytest.raises(DataError, match=r"a\.png is a file; give a folder"):
            Drawer(tmp_path / "a.png", InputFiles([tmp_path / "a.png"]))


class TestClassNames:
    NET = types.SimpleNamespace(num_classes=3, metadata={"class_names": ["a", "b", "c"]})

    @pytest.mark.parametrize("text", ["ёж\r\nbig  cat \nc\n\n", "\ufeffёж\nbig  cat\nc", '["ёж", "big  cat", "c"]'])
    def test_read(self, tmp_path, text):
        (tmp_path / "names").write_bytes(text.encode())
        assert class_names_of(self.NET, tmp_path / "names") == ["ёж", "big  cat", "c"]

    def test_else_the_checkpoints(self):
        assert class_names_of(self.NET) == ["a", "b", "c"]
        assert class_names_of(types.SimpleNamespace(num_classes=3, metadata={})) is None

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"a\nb\n", "has 2 class names, the network 3 classes"),
            (b"[1, 2, 3]", "must be text"),
            (b'["a", ', "are neither UTF-8 text nor a JSON list"),
            (b"\xff\xfe", "are neither UTF-8 text nor a JSON list"),
            (None, "names does not exist, expected a file of class names"),
        ],
    )
    def test_refused(self, tmp_path, content, words):
        if content is not None:
            (tmp_path / "names").write_bytes(content)
        with pytest.raises(UserError, match=words):
            class_names_of(self.NET, tmp_path / "names")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{f}/a.png", "required: IMAGE|FOLDER|-"),
        ("--ckpt_path {f}/a.png", "required: IMAGE|FOLDER|-"),
        ("--ckpt_path {c} {f}/none.png", "none.png does not exist; give pictures, folders of them, or -"),
        ("--ckpt_path {c} {f}/empty", "no pictures in {f}/empty: none of its files ends in .jpg"),
        ("--ckpt_path {f}/empty {f}/a.png", "empty is a folder, expected a checkpoint"),
        ("--ckpt_path {f}/a.png {f}/a.png", "a.png"),
        ("--ckpt_path {f}/none.ckpt {f}/a.png", "none.ckpt does not exist"),
        ("--ckpt_path {c} {f}/a.png --topk 0", "topk (=0) must be at least 1"),
        ("--ckpt_path {c} {f}/a.png --batch_size 0", "batch_size (='0') must be a whole number"),
        ("--ckpt_path {c} {f}/a.png --mean 0.5", "mean (=[0.5]) must have one number for each"),
        ("--ckpt_path {c} {f}/a.png --weights ema", "holds no averaged (EMA) weights"),
        ("--ckpt_path {c} {f}/a.png --out {f}", "a.png is one of the pictures to predict; give another folder"),
        ("--ckpt_path {c} {f}/a.png --class_names {f}/a.png", "neither UTF-8 text nor"),
        ("--ckpt_path {c} {f}/a.png --engine tensorrt", "invalid choice: 'tensorrt'"),
    ],
)
def test_wrong_use(tmp_path, checkpoint, call, arguments, words):
    """One line, status 2, nothing on standard output."""
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    status, out, err = call(*arguments.format(f=tmp_path, c=checkpoint).split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words.format(f=tmp_path) in err


def test_the_files_name_may_be_no_text():
    assert Prediction(os.fsdecode(b"\xff.jpg"), error="bad").format() == "\\udcff.jpg\n  error: bad"
    assert Prediction("a\x1b[2J", (("b\nc", 0, 0.5),)).format() == "a\\x1b[2J\n   50.00%  0  b\\nc"
