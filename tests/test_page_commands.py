"""The pages beside README, Python and Install: each command is run, or a rule says why not."""

import shlex

import document_commands as documents
import page_commands as pages
import pytest
from support import context_mode

from mindrepvgg.cli import verbs

PAGES = pages.pages()


def undecided(commands):
    """The commands that are neither ours nor named by a rule."""
    return [command for command in commands if not pages.is_ours(command) and pages.rule_for(command) is None]


@pytest.mark.compat
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_run_or_a_rule_says_why_not(page):
    assert undecided(pages.commands_of(page)) == []


@pytest.mark.compat
def test_every_rule_is_needed_and_says_why():
    found = {command for page in PAGES for command in pages.commands_of(page)}
    needed = {pages.rule_for(command) for command in found}
    # Of a cluster only the jobs' own heads tell; other rules without a command are left over.
    assert [rule.pattern for rule in pages.RULES if rule not in needed and "kubectl" not in rule.pattern] == []
    assert all(rule.reason for rule in pages.RULES)


@pytest.mark.compat
def test_a_command_that_falls_between_would_be_noticed():
    assert undecided(["make demo", "mindrepvgg weights", "sudo reboot", "python other.py"]) == [
        "sudo reboot",
        "python other.py",
    ]
    assert pages.to_run("python train.py -c configs/quickstart.yaml").startswith("mindrepvgg train -c configs/")
    assert pages.to_run("msrun --worker_num 8 python train.py") is None


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of a short run of the quick start, and of its deploy form."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch, context_mode("graph"):
        patch.chdir(folder)
        for command in pages.DIGITS:
            assert verbs.main(command.split()) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(pages.is_ours, pages.commands_of(page)))])
def test_the_commands_of_a_page(page, digits, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINDREPVGG_CACHE", str(tmp_path / "cache"))
    pages.prepare(tmp_path, digits)
    for command in filter(pages.is_ours, pages.commands_of(page)):
        command = pages.to_run(command)
        if command is not None:
            program, *arguments = shlex.split(command)
            assert program == "mindrepvgg"
            status, _, err = call(*arguments)
            assert status == 0, f"{command}: {err}"


def test_the_other_documents_are_those_of_the_wheels_test():
    assert not set(PAGES) & set(documents.DOCUMENTS)
    assert {"docs/training.md", "docs/deploy.md", "docs/ascend.md", "examples/serve/README.md"} <= set(PAGES)
