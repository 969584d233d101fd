"""The Python side does what the command does, and names are there before anything is loaded."""

import ast
import inspect
import json
import subprocess
import sys

import mindspore as ms
import pytest
import yaml
from support import ROOT, context_mode
from support.processes import TINY

import mindrepvgg
from mindrepvgg import api, reparam
from mindrepvgg.cli import verbs
from mindrepvgg.errors import RecipeError, TrainingError, UserError

FUNCTIONS = ("train", "validate", "predict", "convert", "export", "quantize")


@pytest.fixture(autouse=True)
def _mode():
    """The functions set the process's mode."""
    with context_mode("graph"):
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe's file."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "mode": 1, "epoch_size": 1, "warmup_epochs": 0}))
    return path


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A run that was trained from Python."""
    with context_mode("graph"):
        return mindrepvgg.train(recipe, ckpt_save_dir=tmp_path_factory.mktemp("run"), batch_size=400)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of one digit."""
    from PIL import Image

    from mindrepvgg.data.datasets import open_source

    path = tmp_path_factory.mktemp("picture") / "digit.png"
    Image.fromarray(open_source("mnist5k", None, "val").images[0].squeeze()).save(path)
    return path


def test_training_returns_where_everything_is(run, recipe):
    assert run.finished
    assert run.best.exists()
    assert run.evaluation.num_images == 1000
    with pytest.raises(TrainingError, match="holds a run already"):
        mindrepvgg.train(recipe, ckpt_save_dir=run.best.parent)


def test_a_run_is_resumed_by_its_checkpoint(run):
    """The recipe is the run's own; nothing is left to do."""
    assert mindrepvgg.train(resume=run.last).finished
    with pytest.raises(TrainingError, match="there is no run to resume"):
        mindrepvgg.train("quickstart", resume=True, ckpt_save_dir="none")


def test_validate_is_the_verb(run, call):
    found = mindrepvgg.validate(run.best, limit=100, by_class=True, batch_size=50, mode=1)
    status, out, _ = call("validate", run.best, "--limit", 100, "--batch_size", 50, "--mode", 1, "--json")
    told, own = json.loads(out), found.to_dict()
    assert status == 0
    assert {**own, "images_per_second": 0, "worst_classes": 0} == {**told, "images_per_second": 0, "worst_classes": 0}
    assert len(found.classes.results) == 10


def test_predict_is_the_verb(run, call, picture, tmp_path):
    (found,) = mindrepvgg.predict(run.best, picture, topk=2, out=tmp_path)
    status, out, _ = call("predict", run.best, picture, "--topk", 2, "--json")
    assert status == 0
    assert {**json.loads(out)[0], "drawn": str(tmp_path / "digit.png")} == found.to_dict()
    assert found.drawn.exists()


def test_convert_export_and_quantize_write_what_they_return(run, tmp_path):
    """They run in PyNative mode, and leave the process in the mode that it had."""
    done = mindrepvgg.convert(run.best, tmp_path / "deploy.ckpt")
    assert done.report.max_rel <= 1e-4
    exported = mindrepvgg.export(tmp_path / "deploy.ckpt", tmp_path / "deploy.onnx", batch_size=2, softmax=True)
    assert exported.options.batch_size == 2
    quantized = mindrepvgg.quantize(
        run.best, tmp_path / "int8.onnx", limit=50, calibration_images=20, allow_drop=True, batch_size=25
    )
    assert all(found.destination.exists() for found in (done, exported, quantized))
    assert ms.get_context("mode") == ms.GRAPH_MODE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mindrepvgg.train("quickstrat"), "there is no recipe 'quickstrat': did you mean quickstart?"),
        (lambda: mindrepvgg.train("quickstart", lr=-1), "lr (=-1) must be a number above 0"),
        (lambda: mindrepvgg.train("quickstart", bach_size=1), "did you mean 'batch_size'?"),
        (lambda: mindrepvgg.train("repvgg_a0"), "data_dir is not given"),
        (lambda: mindrepvgg.predict("a.ckpt", "a.png", topk=0), "topk (=0) must be at least 1"),
        (
            lambda: mindrepvgg.export("a.ckpt", "a.onnx", batch_size=0),
            "batch_size (=0) must be a whole number of at le",
        ),
        (lambda: mindrepvgg.quantize("a.ckpt", "a.onnx", limit=0), "limit (=0) must be at least 1"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)


def test_wrong_overrides_of_a_checkpoint_are_named(run):
    with pytest.raises(RecipeError, match="did you mean 'batch_size'"):
        mindrepvgg.validate(run.best, bach_size=1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented_and_typed(name):
    function = getattr(mindrepvgg, name)
    parameters = inspect.signature(function).parameters
    assert name in verbs.VERBS
    assert all(parameter.annotation is not parameter.empty for parameter in parameters.values())
    documented = function.__doc__.partition("Args:")[2].partition("Returns:")[0]
    named = [line.strip().lstrip("*").partition(":")[0] for line in documented.splitlines() if line[:12].strip()]
    assert named == list(parameters)
    assert "Raises:" in function.__doc__


@pytest.mark.parametrize("package", [mindrepvgg, reparam], ids=["mindrepvgg", "reparam"])
def test_editors_see_the_names_that_are_loaded_later(package):
    """The block for type checkers imports each name from the module that `__getattr__` takes it from."""
    tree = ast.parse(inspect.getsource(package))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {name.name: node.module for node in block.body for name in node.names}
    assert imported == {name: f"{package.__name__}.{home}" for name, home in package._HOMES.items()}
    assert sorted(package.__all__) == sorted(imported)
    assert set(imported) <= set(dir(package))
    assert all(getattr(package, name).__module__ == module for name, module in imported.items())


def test_help_for_a_function_loads_nothing():
    code = (
        "import sys, mindrepvgg; help(mindrepvgg.train); sys.exit('mindspore' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "epoch_size=5" in done.stdout


def test_the_settings_that_a_verb_offers_are_the_functions():
    """A new field of `QuantizeOptions` reaches the command, and a parameter of the function has an option."""
    from dataclasses import fields

    from mindrepvgg.cli import quantize
    from mindrepvgg.deployment.int8.prepare import QuantizeOptions

    separate = {"weight_bits", "keep_float", "split"}  # read from text first
    assert {field.name for field in fields(QuantizeOptions)} == {*quantize._OPTIONS, *separate} - {"weights", "report"}
    for name in ("validate", "predict", "convert", "export"):
        parameters = inspect.signature(getattr(api, name)).parameters.values()
        options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        text = subprocess.run(
            [sys.executable, "-m", "mindrepvgg", name, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        own = {"by_class", "show_progress"}  # of the function alone: the command asks for them by what it prints
        assert {option for option in options - own if f"--{option}" not in text} == set(), name
