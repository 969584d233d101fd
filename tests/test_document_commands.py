"""README.md and two pages: each command is run, or a rule says why not. tests/wheel.sh runs all of their Python."""

import importlib.util
import os
import re
import shlex
import sys

import document_commands as documents
import pytest
from mindcv.models import repvgg
from packaging.requirements import Requirement
from support import ROOT, SMALL, context_mode

from mindrepvgg import create_model, save_checkpoint
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime import environment

README, INSTALL = documents.DOCUMENTS[0], documents.DOCUMENTS[-1]


def text(document):
    return (ROOT / document).read_text(encoding="utf-8")


def commands_of(document, content):
    return [
        command
        for language, block in documents.blocks(content)
        if language == "bash"
        for command in documents.commands(block)
    ]


def undecided(document, content):
    """The commands that are not the package's own, so that the suite cannot run them, and that no rule names."""
    return [
        command
        for command in commands_of(document, content)
        if not command.startswith("mindrepvgg ") and not documents.rules_for(document, command)
    ]


@pytest.fixture
def run(call):
    """A function (document, content) that runs a document's commands in this process, until one fails: its line."""

    def run(document, content):
        for command in commands_of(document, content):
            command = documents.to_run(document, command, "suite")
            if command is not None:
                program, *arguments = shlex.split(command)
                assert program == "mindrepvgg"
                status, _, err = call(*arguments)
                if status != 0:
                    return f"{command}: {err}"
        return None

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with what the documents take for granted."""
    monkeypatch.chdir(tmp_path)
    documents.prepare(tmp_path)
    return tmp_path


def fine_tuned(folder):
    """Write what README's fine-tuning writes, with a small network in it."""
    recipe = load_recipe("finetune", {"data_dir": str(folder / "photos"), "image_resize": 32})
    facts = {"dataset": recipe.dataset, "class_names": ["cat", "dog"], "image_size": [32, 32]}
    file = folder / "runs/finetune/repvgg_a0_best.ckpt"
    file.parent.mkdir(parents=True)
    save_checkpoint(create_model("repvgg", 2, **SMALL["plain"]), file, recipe=recipe.to_dict(), **facts)


def run_python(content):
    """Run a document's Python in this process, made smaller, each block in names of its own."""
    for language, block in documents.blocks(content):
        if language == "python":
            for old, new in documents.SMALLER.items():
                block = block.replace(old, new)
            with context_mode("graph"):
                exec(compile(block, "a block of Python", "exec"), {})


@pytest.mark.compat
@pytest.mark.parametrize("document", documents.DOCUMENTS)
def test_every_command_is_run_or_a_rule_says_why_not(document):
    content = text(document)
    assert undecided(document, content) == []
    assert {language for language, _ in documents.blocks(content)} <= {"bash", "python", "console"}
    assert content.count("```") == 2 * len(documents.blocks(content)), "a block that is not found"
    found = commands_of(document, content)
    for rule in documents.RULES:
        if rule.document == document:
            assert any(rule in documents.rules_for(document, command) for command in found), rule.pattern
            assert rule.reason
    assert all(len(documents.rules_for(document, command)) <= 1 for command in found)


def test_a_command_that_falls_between_would_be_noticed():
    content = "```bash\nmake demo   # minutes\nmake all\nmindrepvgg weights \\\n    --json\nmake demo now\n```\n"
    assert commands_of(README, content) == ["make demo", "make all", "mindrepvgg weights --json", "make demo now"]
    assert undecided(README, content) == ["make all", "make demo now"]
    assert undecided(INSTALL, "```bash\nmake demo\n```\n") == ["make demo"]


def test_readme_opens_with_the_two_commands():
    assert commands_of(README, text(README))[:2] == ["make demo", "make test"]
    assert text(README).partition("make test")[0].count("\n") < 12


def test_mindcv_can_neither_fuse_its_own_network_nor_build_the_fused_one():
    """What README says of MindCV 0.3."""
    net = repvgg.RepVGG(num_blocks=[1, 1, 1, 1], width_multiplier=[0.25] * 4)
    with pytest.raises(AttributeError, match="modules"):
        repvgg.repvgg_model_convert(net)
    with pytest.raises(TypeError, match="deploy"):
        repvgg.repvgg_a0(deploy=True)
    with pytest.raises(ValueError, match="pad_mode"):
        repvgg.RepVGG(num_blocks=[1, 1, 1, 1], width_multiplier=[0.25] * 4, deploy=True)


def test_the_commands_and_the_python_of_readme(folder, run):
    fine_tuned(folder)
    before = sorted(os.listdir(folder))
    assert run(README, text(README)) is None
    run_python(text(README))
    assert sorted(os.listdir(folder)) == before, "README's commands write into runs/ alone"


def test_the_commands_of_the_installation(folder, run):
    assert run(INSTALL, text(INSTALL)) is None


def test_broken_python_would_be_noticed():
    with pytest.raises(AttributeError, match="to_deploi"):
        run_python("```python\nimport mindrepvgg\n\nmindrepvgg.to_deploi\n```\n")


@pytest.mark.parametrize("command", ["validate runs/none.ckpt", "weights --jsn", "trane"])
def test_a_broken_command_would_be_noticed(folder, run, command):
    failed = run(README, f"```bash\nmindrepvgg weights\nmindrepvgg {command}\n```\n")
    assert failed.startswith(f"mindrepvgg {command}: error: ")


def test_a_shell_stops_at_the_first_command_that_fails(folder, capfd):
    content = (
        "```bash\nmkdir a && cd a && export NAME=b   # they last\ntouch $NAME\n```\n```python\nopen('c', 'w')\n```\n"
    )
    assert documents.run(README, content, {"touch": "touch d"}) == 0
    assert sorted(os.listdir(folder / "a")) == ["b", "c", "d"]
    capfd.readouterr()
    content = "```bash\necho said && ls none && cd a\ntouch after\n```\n"
    assert documents.run(README, content, {}) == 1
    out = capfd.readouterr().out
    assert out.startswith("failed: echo said && ls none && cd a\nsaid\n")
    assert "none" in out.splitlines()[-1]
    assert not (folder / "after").exists()


class TestMessages:
    """The messages in docs/install.md are those that are printed."""

    @pytest.mark.parametrize(
        ("package", "command"),
        [
            ("mlxtend", "train -c quickstart --ckpt_save_dir run"),
            ("onnx", "export none.ckpt none.onnx"),
            ("torch", "validate digits.ckpt --cross_check"),
        ],
    )
    def test_of_missing_packages(self, folder, call, monkeypatch, package, command):
        found = importlib.util.find_spec
        hidden = lambda name, *rest: None if name == package else found(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", hidden)
        save_checkpoint(create_model("repvgg_nano"), "digits.ckpt")
        status, _, err = call(*command.split())
        assert status == 2
        assert err in text(INSTALL)

    def test_of_the_order_of_imports(self, monkeypatch):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setattr(environment, "_is_affected", lambda: True)
        assert "mindspore" in sys.modules
        with pytest.warns(RuntimeWarning) as warned:
            environment.cap_cpu_isa()
        assert f"\nRuntimeWarning: {warned[0].message}\n" in text(INSTALL)

    def test_of_pip_and_make(self):
        """The order in which pip prints the bounds of a range is its own; `packaging` has it too."""
        content = text(INSTALL)
        declared = [
            Requirement(line.partition("#")[0]) for line in (ROOT / "requirements.txt").read_text().splitlines()[1:]
        ]
        ranges = {requirement.name: str(requirement.specifier) for requirement in declared}
        assert f"requires numpy{ranges['numpy']}, but you have numpy 2." in content
        assert f"satisfies the requirement mindspore{ranges['mindspore']} (from mindrepvgg)" in content
        python = re.search('requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
        assert f"not in '{Requirement(f'python{python}').specifier}'" in content
        said = re.search(
            r"and MindSpore has wheels for [^\"]*only; give one of these", (ROOT / "Makefile").read_text()
        )[0]
        assert f", {said}\n" in content
