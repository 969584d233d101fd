"""Names: of files that are there, that are not, that are pipes and folders, that no file system holds."""

from __future__ import annotations

import os

from hypothesis import strategies as st

from fuzz import pictures, samples
from fuzz.cases import Case
from mindrepvgg import api
from mindrepvgg.cli import verbs
from mindrepvgg.data.check import check_data
from mindrepvgg.data.inputs import InputFiles
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.weights.checkpoint import save_checkpoint
from mindrepvgg.weights.load import import_weights


def _inputs(name):
    files = InputFiles([name])
    for index in range(len(files)):
        files.read(index)


def _predict(name):
    for found in api.predict("good.ckpt", name, engine="onnxruntime"):
        found.format()


DOORS = {
    "recipe": load_recipe,
    "weights": import_weights,
    "onnx": OnnxEngine,
    "pictures": _inputs,
    "predict": _predict,
    "data": lambda name: check_data("data").format(),
    "save": lambda name: save_checkpoint(samples.network(), name),
    "convert": lambda name: verbs.main(["convert", "good.ckpt", name]),
    "inspect": lambda name: verbs.main(["convert", name, "--inspect"]),
    "train": lambda name: verbs.main(["train", "-c", name, "--show_config"]),
    "folder": lambda name: verbs.main(["train", "-c", "quickstart", "--ckpt_save_dir", name, "--show_config"]),
    "class_names": lambda name: verbs.main(
        ["predict", "good.ckpt", "good.png", "--class_names", name, "--engine", "onnxruntime"]
    ),
}

_ODD = [
    "",
    "-",
    "--",
    "--json",
    ".",
    "..",
    "/",
    "//",
    "~",
    "~x",
    "*",
    "a b",
    " a",
    "a\n",
    "\r",
    "\0",
    "\x1b[31m",
    "é",
    "e\u0301",
]
_ODD += [
    "\u202e",
    "\ud800",
    "\udcff",
    "%s",
    "%n",
    "{}",
    "{0}",
    "$HOME",
    "`x`",
    "con",
    "a/b",
    "./a",
    "x" * 255,
    "x" * 256,
    ("y" * 200 + "/") * 30,
]
_ODD += [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    "/proc/self/environ",
    "/etc/shadow",
    "/",
    "file:///x",
    "猫" * 85,
]
_SUFFIXES = ["", ".ckpt", ".safetensors", ".pth", ".yaml", ".onnx", ".png", ".jpg", ".mindir", ".partial", ".CKPT"]


def _names():
    undecodable = st.binary(max_size=30).map(os.fsdecode)
    stems = st.sampled_from(_ODD) | st.text(max_size=30) | undecodable | st.text("ab/.-~ \n", max_size=40)
    return st.builds(str.__add__, stems, st.sampled_from(_SUFFIXES))


def cases():
    """A name at a door."""
    samples.described()  # no strategy may make it: a run draws from `random`
    return _named()


@st.composite
def _named(draw):
    """A name at a door; behind it a good file, a pipe, a folder or nothing."""
    name, door = draw(_names()), draw(st.sampled_from(list(DOORS)))
    if door in ("save", "convert") and (os.path.isabs(name) or ".." in name.split("/")):
        door = "weights"  # nothing is written outside of the case's folder
    files = {"good.ckpt": samples.checkpoints()[".ckpt"][0], "good.png": pictures.pictures()["gray.png"]}
    good = {
        "recipe": b"seed: 1\n", "train": b"seed: 1\n", "onnx": samples.onnx_models()[0].SerializeToString(),
        "class_names": b"a\n" * 10, "pictures": files["good.png"], "predict": files["good.png"],
    }.get(door, files["good.ckpt"])  # fmt: skip
    kind = draw(st.sampled_from(["good", "good", "pipe", "folder", "nothing"]))
    place = f"data/train/{draw(_names())}/{name}" if door == "data" else name
    if not os.path.isabs(place) and ".." not in place.split("/"):
        files |= {"good": {place: good}, "pipe": {place: None}, "folder": {f"{place}/": b""}}.get(kind, {})
    return Case(door, name, files)
