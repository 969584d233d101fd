"""What can be known of Ascend without one: the operators of every compiled graph, and the self-check on a CPU."""

import ast
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor, nn, ops
from support import SMALL, context_mode

from mindrepvgg import create_model
from mindrepvgg.cli import ascend_check, entry, verbs
from mindrepvgg.errors import UserError
from mindrepvgg.measure import device_checks, selfcheck, selfcheck_report
from mindrepvgg.models import synthetic
from mindrepvgg.models.variants import PLAIN_FORMS
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.runtime.environment import mindspore_version
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.assemble import build_network, build_step

ROOT = Path(__file__).parents[2]
OPERATORS = yaml.safe_load((ROOT / "tests" / "artefacts" / "ascend_operators.yaml").read_text("utf-8"))
KNOWN = {
    name
    for name, entry in {**OPERATORS["documented"], **OPERATORS["undocumented"]}.items()
    if "Ascend" in entry.get("platforms", ("Ascend",))
} | {*OPERATORS["compiler"], *OPERATORS["disputed"]}

# One block a stage: what is in the graph, not how often, is asked here.
TINY = {"num_blocks": [1, 1, 1, 1], "widths": [8, 8, 8, 8, 8], "group_size": 2, "se": "post", "se_ratio": 4}
USUAL = {
    "amp_level": "O2",
    "loss_scale": 1024.0,
    "loss_scale_type": "dynamic",
    "clip_grad": True,
    "label_smoothing": 0.1,
}
OTHERS = {
    "everything": {
        "model_args": {**TINY, "num_blocks": [1, 1, 2, 1], "aux_heads": True},
        **USUAL,
        "ema": True,
        "gradient_accumulation_steps": 2,
    },
    "plain": {"model_args": SMALL["plain"]},
    "g4": {"model_args": SMALL["g4"]},
    "d2se": {"model_args": SMALL["d2se"]},
    "plus": {"model_args": SMALL["plus"]},
    "nano": {"model": "repvgg_nano", "model_args": {}},
    "half precision in BN": {"amp_level": "O3", "loss_scale": 1024.0},
    "nesterov": {"use_nesterov": True},
    "adamw": {"opt": "adamw"},
    "binary cross-entropy": {"loss": "BCE", "mixup": 0.2, "label_smoothing": 0.1},
    "soft targets": {"mixup": 0.2},
    "frozen": {"freeze_bn": True},
    "recomputed": {"recompute": True},
    "custom L2": {"custom_l2": True},
    "inserted BN": {"quantization": "bn", "pretrained": "any.ckpt"},
    "QAT": {"quantization": "qat", "pretrained": "any.ckpt", "loss_scale": 1024.0},
}


@pytest.fixture(autouse=True)
def _mode():
    """Graph mode, which a command also sets."""
    with context_mode("graph"):
        yield


# In a process of its own: MindSpore writes the graphs of everything that a process compiles afterwards, into the
# current folder, once it has been asked to write those of one cell.
@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """A function (f, *arguments) that calls a function of this module where graphs are kept, for what it returns."""
    folder = tmp_path_factory.mktemp("graphs")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=keep_graphs, initargs=(folder,)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def keep_graphs(folder):
    """From now on this process writes the graphs it compiles, with the backward pass, before a backend changes them."""
    os.chdir(folder)
    os.environ.update(MS_DEV_SAVE_GRAPHS="1", MS_DEV_DUMP_IR_PASSES="validate")
    ms.set_context(mode=ms.GRAPH_MODE)


def cell_operators(cell, *inputs):
    """The operators of a cell's graph and all subgraphs; a convolution of several groups is called 'Conv2D grouped'."""
    folder = Path(tempfile.mkdtemp(dir="."))
    os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(folder)
    cell.compile(*inputs)
    (file,) = folder.glob("*_validate_*.ir")
    found = set()
    for line in file.read_text("utf-8").splitlines():
        call = re.match(r"\s+%\d+\(.*?\) = (?:PrimFunc_)?(\w+)\(", line)
        if call:
            groups = re.search(r"\bgroup: I64\((\d+)\)", line)
            found.add(call[1] + (" grouped" if groups and int(groups[1]) > 1 else ""))
    return found


def network_operators(recipe):
    """The operators of every graph a recipe leads to: training, both halves of it, and validation; then deployment."""
    chosen = Recipe(**{"model": "repvgg", "model_args": TINY, "num_classes": 10, "image_resize": 32, **recipe})
    net = build_network(chosen, Ranks())
    step = build_step(chosen, net, np.full(10, 0.1, np.float32), Ranks())
    images = Tensor(np.zeros((2, 3, 32, 32), np.float32))
    soft = Tensor(np.full((2, 10), 0.1, np.float32))
    targets = soft if chosen.mixup else Tensor(np.zeros(2, np.int32))
    found = cell_operators(step, images, targets)
    if chosen.gradient_accumulation_steps > 1:
        found |= cell_operators(step.accumulate, images, targets)
    found |= cell_operators(net.set_train(False), images)
    deployed = create_model(chosen.model, 10, deploy=True, **chosen.model_args).set_train(False)
    return found | cell_operators(deployed, images)


def test_every_operator_of_a_network_is_known_on_ascend(operators):
    found = operators(network_operators, USUAL)
    assert {"Conv2DBackpropFilter grouped", "BatchNormGrad", "ApplyMomentum", "SigmoidGrad"} <= found, "backward pass"
    assert {"IsFinite", "Switch", "Sqrt"} <= found, "loss scale, its two branches, clipping"
    assert found - KNOWN == set(), "add them to ascend_operators.yaml with their source, if Ascend has them"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OTHERS.values(), ids=OTHERS)
def test_every_operator_of_other_recipes_is_known_on_ascend(operators, recipe):
    assert operators(network_operators, recipe) - KNOWN == set()


class OnCpuOnly(nn.Cell):
    """Ends in an operator that MindSpore documents for CPU alone."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4, 4)

    def construct(self, x):
        return ops.fmax(self.dense(x), x)


def cpu_only_operators():
    return cell_operators(OnCpuOnly(), Tensor(np.zeros((2, 4), np.float32)))


def test_an_operator_that_ascend_has_not_would_be_noticed(operators):
    assert documented_platforms("mindspore.ops.fmax") == ["CPU"]
    assert operators(cpu_only_operators) - KNOWN == {"Fmax"}


def test_operators_used_by_name_are_known_on_ascend():
    """Collectives too, whose graphs compile in a run of several processes only."""
    found = set()
    for path in (ROOT / "mindrepvgg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ops":
                found.add(node.attr)
    primitives = {name for name in found if name[0].isupper() and name not in ("MultitypeFuncGraph", "HyperMap")}
    assert {"AllReduce", "AllGather", "Broadcast"} <= primitives
    assert primitives - KNOWN == set()


def documented_platforms(source):
    """What the docstring of a MindSpore object lists as its platforms."""
    module, _, name = source.rpartition(".")
    text = getattr(importlib.import_module(module), name).__doc__
    return re.findall(r"``(\w+)``", re.search(r"Supported Platforms:\s*\n(.+)", text)[1])


@pytest.mark.compat
@pytest.mark.parametrize(("name", "entry"), OPERATORS["documented"].items(), ids=lambda value: str(value)[:24])
def test_the_installed_documentation_says_the_same(name, entry):
    assert documented_platforms(entry["source"]) == entry["platforms"], name


@pytest.mark.skipif((mindspore_version() or (0, 0)) < (2, 10), reason="the file speaks of MindSpore 2.10")
def test_the_kernels_of_undocumented_operators_are_in_the_package():
    library = (Path(ms.__file__).parent / "lib" / "plugin" / "libmindspore_ops_ascend.so").read_bytes()
    kernels = [entry["kernel"] for entry in OPERATORS["undocumented"].values() if "kernel" in entry]
    assert len(kernels) >= 8
    assert [kernel for kernel in kernels if kernel.encode() not in library] == []
    assert b"aclnnNoSuchKernel" not in library


# The self-check


@pytest.fixture(scope="module")
def reference():
    """What the repository holds the devices against."""
    return selfcheck.read_reference(selfcheck.REFERENCE)


def test_the_reference_is_complete_and_small(reference):
    assert selfcheck.REFERENCE.stat().st_size < 200_000
    assert set(reference["networks"]) == {*selfcheck.NETWORKS, *selfcheck.SMALLEST}
    assert len(selfcheck.NETWORKS) == 15
    assert reference["made_by"]["device"] == "CPU"
    assert reference["made_by"]["mindspore"] == "2.10.0"
    for name, forms in reference["networks"].items():
        assert list(forms) == list(PLAIN_FORMS)
        assert forms["train"]["loss"][1] < forms["train"]["loss"][0], f"{name}: an update lowers the loss"
        for label, numbers in (item for form in forms.values() for item in form.items()):
            assert np.isfinite(numbers).all(), f"{name} {label}"
            assert np.abs(numbers).max() > 0, f"{name} {label}"


@pytest.mark.compat
def test_the_rule_gives_the_same_numbers_everywhere():
    numbers = synthetic.uniform("stage1.0.rbr_dense.conv.weight", (2, 2))
    assert numbers.tolist() == [[0.848532525176092, -0.29625929550253916], [0.34116659759376344, -0.7852072212998444]]
    many = synthetic.uniform("a", 10_000)
    assert -1 <= many.min() < -0.99 < 0.99 < many.max() < 1
    assert abs(many.mean()) < 0.02
    assert abs(np.corrcoef(many, synthetic.uniform("b", 10_000))[0, 1]) < 0.03


@pytest.mark.compat
def test_the_rules_parameters():
    weight = synthetic.parameter_value("stage1.0.rbr_dense.conv.weight", (64, 16, 3, 3))
    assert weight.dtype == np.float32
    assert weight.var() == pytest.approx(2 / (16 * 9), rel=0.05), "He's"
    gamma = synthetic.parameter_value("stage1.1.rbr_identity.gamma", (512,))
    assert 0.75 <= gamma.min() < gamma.max() <= 1.25
    assert synthetic.parameter_value("stage1.1.rbr_dense.bn.moving_variance", (512,)).min() >= 0.5


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_cpu_passes_and_its_report_says_so(tmp_path, capfd, reference, precision):
    report = tmp_path / "report.md"
    arguments = ["--device_target", "CPU", "--precision", precision, "--report", str(report), "--json"]
    assert entry.run(ascend_check.main, arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("SKIP  processes meet: one process; for the collectives: msrun --worker_num 8 ")
    text, figures = report.read_text("utf-8"), json.loads(report.with_suffix(".json").read_text("utf-8"))
    results = {result["name"]: result for result in figures["results"]}
    for name, result in results.items():
        assert f"| {result['status']} | {name} | {result['detail']} |" in text
        assert f"{result['status']}  {name}: {result['detail']}" in lines
    assert [name for name, result in results.items() if result["status"] == "PASS"] == [
        *("overflow in float16", "convolution of 2 groups", "convolution of 4 groups"),
        *(f"repvgg_nano {form} {precision}" for form in PLAIN_FORMS),
    ]
    assert "5 PASS, 0 FAIL, 3 SKIP" in text
    assert "Unfinished" not in text
    assert f"| mindspore | {ms.__version__} |" in text
    assert f"report: {report}" in lines
    measured = results[f"repvgg_nano train {precision}"]["figures"]["measured"]
    assert selfcheck.relative_differences(reference["networks"]["repvgg_nano"]["train"], measured)["loss"] < 1e-3


def nano(reference):
    return {form: dict(labels) for form, labels in reference["networks"]["repvgg_nano"].items()}


@pytest.mark.parametrize(
    ("label", "change", "message"),
    [
        ("logits", lambda x: x * 1.01, r"most in logits, by 1\.0e-02, .* as float16 or HF32 would$"),
        (
            "gradients stage2",
            lambda x: x * 1.6,
            r"in gradients stage2, by 6\.0e-01, in all logits by 0\.0e\+00: too much$",
        ),
        ("all statistics stage4", lambda x: -x, r"in all statistics stage4, by 2\.0e\+00, .*: too much$"),
        ("loss", lambda x: x * np.nan, r"in loss, by nan, .*: too much$"),
    ],
)
def test_a_device_that_computes_something_else_fails(monkeypatch, reference, label, change, message):
    actual = nano(reference)["train"]
    actual[label] = change(np.array(actual[label])).tolist()
    monkeypatch.setattr(selfcheck, "measure", lambda *_: actual)
    with pytest.raises(selfcheck_report.CheckFailed, match=message) as failed:
        selfcheck.check_network("repvgg_nano", "train", "float32", reference)
    assert failed.value.figures["measured"] is actual


def test_coarse_float32_passes_where_it_was_let(monkeypatch, reference):
    actual = nano(reference)["train"]
    actual["logits"] = [1.01 * value for value in actual["logits"]]
    monkeypatch.setattr(selfcheck, "measure", lambda *_: actual)
    options = ("repvgg_nano", "train", "float32", reference)
    line, _ = selfcheck.check_network(*options, coarse_float32=True)
    assert line.endswith(", as float16 or HF32 would")
    actual["logits"] = [2 * value for value in actual["logits"]]
    with pytest.raises(selfcheck_report.CheckFailed, match="too much"):
        selfcheck.check_network(*options, coarse_float32=True)
    names = [dict(selfcheck.checks("CPU", Ranks(), (), (), {}, coarse)) for coarse in (False, True)]
    assert set(names[0]) - set(names[1]) == {"float32 is asked for"}


def test_a_report_is_json_whatever_was_measured():
    result = selfcheck_report.Result("a", "FAIL", "b", figures={"differences": {"loss": float("nan"), "logits": 1.0}})
    found = selfcheck_report.report_json({}, [result], "")["results"][0]["figures"]["differences"]
    assert found == {"loss": "NaN", "logits": 1.0}


def test_one_wrong_kernel_fails(monkeypatch, reference):
    rule = synthetic.parameter_value

    def wrong(name, shape):
        return rule(name, shape) * (0.9 if name == "stage2.1.rbr_reparam.weight" else 1)

    monkeypatch.setattr(selfcheck, "parameter_value", wrong)
    for precision in selfcheck.PRECISIONS:
        result = selfcheck_report.run_check(
            "x", lambda p=precision: selfcheck.check_network("repvgg_nano", "deploy", p, reference)
        )
        assert result.status == "FAIL", precision


def test_what_is_missing_is_told_apart(monkeypatch, reference):
    monkeypatch.setattr(selfcheck, "measure", lambda *_: {"logits": [1.0]})
    with pytest.raises(selfcheck_report.CheckFailed, match="the quantities differ: all logits"):
        selfcheck.check_network("repvgg_nano", "deploy", "float32", reference)
    with pytest.raises(selfcheck_report.CheckSkipped, match="no numbers of repvgg_a9 in train form"):
        selfcheck.check_network("repvgg_a9", "train", "float32", reference)


@pytest.fixture
def no_convolutions(monkeypatch):
    """Grouped convolutions, which are compiled and checked elsewhere, pass at once."""
    monkeypatch.setattr(selfcheck, "check_grouped", lambda _: ("not looked at", None))


@pytest.mark.usefixtures("no_convolutions")
def test_a_failing_check_stops_no_other(tmp_path, monkeypatch, capfd):
    def breaks(*_):
        raise RuntimeError("\n----------\nThe device is in an error state.\n- C++ Call Stack: ...")

    monkeypatch.setattr(selfcheck, "measure", breaks)
    report = tmp_path / "report.md"
    arguments = ["--device_target", "CPU", "--precision", "float32", "--report", str(report)]
    assert entry.run(ascend_check.main, arguments) == 1
    message = "RuntimeError: The device is in an error state."
    assert f"FAIL  repvgg_nano train float32: {message}" in capfd.readouterr().out
    assert f"| FAIL | repvgg_nano deploy float32 | {message} |" in report.read_text("utf-8")
    assert "3 PASS, 2 FAIL, 3 SKIP" in report.read_text("utf-8")


@pytest.mark.usefixtures("no_convolutions")
def test_what_ran_when_the_process_died_is_in_the_report(tmp_path, monkeypatch):
    report = tmp_path / "report.md"

    def dies(*_):
        assert "Unfinished: repvgg_nano train float32 was running when this was written." in report.read_text("utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(selfcheck, "measure", dies)
    assert entry.run(ascend_check.main, ["--device_target", "CPU", "--report", str(report)]) == 130
    assert "| PASS | convolution of 4 groups |" in report.read_text("utf-8")


def test_a_grouped_convolution_that_is_none_fails(monkeypatch):
    class Wrong(device_checks._ConvGradients):
        def __init__(self, weight, groups):
            super().__init__(weight, groups)
            self.factor = 1.0 if groups == 1 else 1.1

        def construct(self, x, probe):
            y, by_input, by_weight = super().construct(x, probe)
            return y, by_input * self.factor, by_weight

    monkeypatch.setattr(device_checks, "_ConvGradients", Wrong)
    with pytest.raises(
        selfcheck_report.CheckFailed, match=r"from 2 plain convolutions: .*gradient of the input 1\.0e-01"
    ):
        device_checks.check_grouped(2)


def test_an_overflow_that_goes_unnoticed_fails(monkeypatch):
    saturated = Tensor(np.full(16, 65504, np.float16)), Tensor(True)
    monkeypatch.setattr(device_checks, "_Overflow", lambda: lambda _: saturated)
    with pytest.raises(selfcheck_report.CheckFailed, match=r"is 65504 \(saturation\) and was taken for finite"):
        device_checks.check_overflow()


class TwoRanks(Ranks):
    """Rank 0 of two, the other of which says of itself what the test wants."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = np.array(other, np.float32)

    def gather(self, array):
        return np.stack([array, self.other])

    def broadcast(self, parameters):
        pass


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([0.3, 0], "all-reduce is wrong on rank 1"),
        ([0, 1], "broadcast is wrong on rank 1"),
        ([np.nan, 0], "all-reduce is wrong on rank 1"),
    ],
)
def test_collectives_name_who_is_wrong(monkeypatch, other, message):
    total = synthetic.uniform("rank 0", (4096,)).astype("f") + synthetic.uniform("rank 1", (4096,)).astype("f")
    monkeypatch.setattr(device_checks, "_Sum", lambda: lambda x: Tensor(total) if x.shape == (4096,) else x)
    with pytest.raises(selfcheck_report.CheckFailed, match=f"^{message}$"):
        device_checks.check_collectives(TwoRanks(other))
    line, figures = device_checks.check_collectives(TwoRanks([0, 0]), elements=1000, rounds=2)
    assert line.startswith("2 ranks agree; 0.0 MB all-reduced in ")
    assert figures["all_reduce_seconds"] > 0


@pytest.mark.slow
def test_two_processes_check_their_collectives(tmp_path):
    """Both write a report of their own, and agree."""
    folder = Path(sys.executable).parent
    command = [
        folder / "msrun",
        "--worker_num",
        "2",
        "--local_worker_num",
        "2",
        "--master_port",
        "8217",
        "--join",
        "True",
    ]
    command += ["--log_dir", tmp_path / "log", "python", "-m", "mindrepvgg", "ascend-check", "--device_target", "CPU"]
    command += ["--precision", "float32", "--report", tmp_path / "report.md"]
    environment = {"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank, name in enumerate(("report.md", "report.rank1.md")):
        text = (tmp_path / name).read_text("utf-8")
        assert f"| PASS | processes meet | rank {rank} of 2 |" in text
        assert re.search(r"\| PASS \| collectives \| 2 ranks agree; 56\.4 MB all-reduced in [\d.]+ ms \|", text)
        assert "| PASS | repvgg_nano train float32 |" in text
        assert "| processes | 2 |" in text


def test_the_report_tells_of_the_machine(tmp_path, monkeypatch):
    root = tmp_path / "Ascend"
    for place, version in (
        ("driver/version.info", "Version=25.5.0"),
        ("firmware/version.info", "Version=7.8.0.5.216"),
        ("ascend-toolkit/latest/compiler/version.info", "required=1\nVersion=8.5.0"),
    ):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(f"{version}\n")
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "npu-smi"
    smi.write_text('#!/bin/sh\necho "| npu-smi 25.5.0 $1 |"\n')
    smi.chmod(smi.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HCCL_INTRA_ROCE_ENABLE", "1")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    facts = selfcheck_report.environment("Ascend", "O2", root)
    assert facts[str(root / "driver/version.info")] == "Version=25.5.0"
    assert facts[str(root / "ascend-toolkit/latest/compiler/version.info")] == "Version=8.5.0"
    assert (facts["jit_level"], facts["HCCL_INTRA_ROCE_ENABLE"]) == ("O2", "1")
    text = selfcheck_report.report(facts, [selfcheck_report.Result("a", "FAIL", "b | c")], selfcheck_report.npu_smi())
    assert "| npu-smi 25.5.0 info |" in text
    assert "| FAIL | a | b \\| c | 0.0 |" in text
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("npu-smi") is None
    assert selfcheck_report.npu_smi() == "npu-smi is not on PATH"


def test_a_reference_can_be_recorded_and_a_wrong_one_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new.json"
    monkeypatch.setattr(selfcheck, "measure", lambda model, form: {"logits": [1.0]})
    assert entry.run(ascend_check.main, ["--record", str(path), "--models", "RepVGG-A0"]) == 0
    written = selfcheck.read_reference(path)
    assert written["networks"] == {"repvgg_a0": {form: {"logits": [1.0]} for form in PLAIN_FORMS}}
    assert written["made_by"]["mindspore"] == ms.__version__
    for text, message in (
        ("{", "is not JSON"),
        ("{}", "is no reference file"),
        ('{"networks": {}}', "made by rule None"),
    ):
        path.write_text(text)
        assert entry.run(ascend_check.main, ["--reference", str(path), "--device_target", "CPU"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="repvgg_a9"):
        ascend_check.main(["--models", "repvgg_a9"])


# The run-book


DOCUMENT = ROOT / "docs" / "ascend.md"


def commands(program):
    """The options that the run-book gives a program, in its blocks of commands and in its text."""
    text = DOCUMENT.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"(?s)```bash\n(.*?)```", text)
    lines = "\n".join(blocks).splitlines() + re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text))
    found = {option for line in lines for part in line.split(program)[1:] for option in re.findall(r"--(\w+)", part)}
    assert found, program
    return found


@pytest.mark.parametrize("program", ["mindrepvgg ascend-check", "train.py"])
def test_the_run_book_gives_options_that_exist(program, capsys):
    verb = program.removeprefix("mindrepvgg ").removesuffix(".py")
    assert verbs.main([verb, "--help"]) == 0
    known = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    assert commands(program) - known == set()


def test_the_run_book_gives_msrun_options_that_exist():
    source = (Path(ms.__file__).parent / "parallel" / "cluster" / "run.py").read_text("utf-8")
    text = DOCUMENT.read_text("utf-8")
    given = re.findall(r"--(\w+)", " ".join(re.findall(r"(?s)\bmsrun -.*?python ", text)))
    given += [option for option in ("cluster_time_out", "bind_numa") if f"`--{option}" in text]
    assert {"worker_num", "node_rank", "master_addr", "bind_core", "join", "cluster_time_out"} <= set(given)
    assert [option for option in given if f'"--{option}"' not in source] == []


def test_the_run_book_explains_the_lines_of_the_report():
    text = DOCUMENT.read_text("utf-8")
    names = [name for name, _ in selfcheck.checks("CPU", Ranks(), ("NETWORK",), ("float32", "float16"), {})]
    for name in ("processes meet", *names):
        short = name.replace("NETWORK train", "NETWORK FORM").replace("NETWORK deploy", "NETWORK FORM")
        assert f"`{short}`" in text or f"`{short.removeprefix('convolution ')}`" in text, name


@pytest.mark.parametrize(("step", "speed"), [("20.58", "12,439"), ("20.70", "12,367")])
def test_the_published_speeds_agree_with_themselves(step, speed):
    assert f"| {step} | {speed} |" in DOCUMENT.read_text("utf-8")
    assert 256 / float(step) * 1e3 == pytest.approx(int(speed.replace(",", "")), abs=1)
