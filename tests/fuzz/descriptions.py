"""Whole, sealed checkpoints whose description lies."""

from __future__ import annotations

import copy
from pathlib import Path

from hypothesis import strategies as st
from support.pictures import noise_picture

from fuzz import samples
from fuzz.cases import Case, json_values, sizes
from mindrepvgg import api
from mindrepvgg.cli import verbs
from mindrepvgg.evaluation.predictions import class_names_of
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.training.resume import recipe_of_run
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.checkpoint import load_checkpoint
from mindrepvgg.weights.load import load_weights


def _use(path):
    net = load_weights(path)
    recipe = recipe_of(net, {})
    names = class_names_of(net)
    assert names is None or len(names) == net.num_classes, "class names that are too few or too many"
    recipe.num_classes  # noqa: B018


def _resume(path):
    recipe = recipe_of_run(path).replace(ckpt_save_dir="run", num_parallel_workers=1, distribute=False)
    if recipe.dataset == "mnist5k":
        Trainer(recipe, path)


def _predict(path):
    noise_picture(Path("picture.png"), 16, 16, 0)
    for found in api.predict(path, "picture.png", engine="onnxruntime"):
        found.format()


DOORS = {
    "load": load_checkpoint,
    "use": _use,
    "resume": _resume,
    "predict": _predict,
    "inspect": lambda path: verbs.main(["convert", path, "--inspect", "--json"]),
    "summary": lambda path: verbs.main(["summary", path]),
    "export": lambda path: verbs.main(["export", path, "out.onnx"]),
    "validate": lambda path: verbs.main(["validate", path, "--limit", "10", "--mode", "1", "--engine", "onnxruntime"]),
}

_LIKELY = [10**9, 10**15, -1, 0, 1.5, float("nan"), float("inf"), "", "a\nb", "x" * 10**6, "\ud800", "\0", [], {}, [[]]]


@st.composite
def _lies(draw):
    """A description with one to three entries changed, at any depth."""
    told = copy.deepcopy(samples.described()[1])
    value = json_values() | st.sampled_from(_LIKELY) | sizes() | st.lists(sizes(), max_size=3)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = told
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            change = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
            if change == "remove":
                del place[key]
            elif change == "replace":
                place[key] = draw(value)
            elif isinstance(place, dict):
                place[draw(st.sampled_from(["quantization", "model_args", "new"]) | st.text(max_size=5))] = draw(value)
            else:
                place.append(draw(value))
            break
    return told


def cases():
    """A lie, in either container, at any door; the cheap doors most often."""
    samples.described()  # no strategy may make it: a run draws from `random`
    doors = [*["load", "use", "resume", "inspect", "summary"] * 3, "predict", "export", "validate"]

    def made(door, told, suffix):
        return Case(door, f"x{suffix}", {f"x{suffix}": samples.sealed(told, suffix)})

    return st.builds(made, st.sampled_from(doors), _lies(), st.sampled_from([".ckpt", ".safetensors"]))
