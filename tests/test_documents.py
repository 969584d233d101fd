"""The documents name files, links, modules, verbs and options that exist."""

import ast
import contextlib
import functools
import io
import re

import document_commands as documents
import pytest
from support import ROOT

from mindrepvgg.cli import verbs

pytestmark = pytest.mark.compat

NAMES = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
# The changelog also names what was there before.
OF_TODAY = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
# Pages in Chinese, and the English pages whose commands they have.
CHINESE = {path: ROOT / "docs" / path.name for path in DOCUMENTS if path.parent.name == "zh"}
CHINESE[ROOT / "README.zh-CN.md"] = ROOT / "README.md"
NAME_OF = lambda path: str(path.relative_to(ROOT))  # noqa: E731
PROGRAM = re.compile(r"\bmindrepvgg ([a-z][a-z0-9-]*)\b(?!/)(.*)|\b(train|validate|convert)\.py\b(.*)")
FOREIGN = {
    *("model", "framework", "output", "soc_version", "input_format", "input_shape", "precision_mode_v2"),  # atc
    *("dynamic_batch_size", "dynamic_image_size", "dynamic_dims"),
    *("fmk", "modelFile", "outputFile", "saveType", "optimize", "configFile", "inputDataFormat"),  # converter_lite
    *("worker_num", "local_worker_num", "master_addr", "master_port", "node_rank", "join", "log_dir"),  # msrun
    *("bind_core", "bind_numa", "cluster_time_out", "bind-to"),  # the last one: mpirun
    *("upgrade", "upgrade-strategy", "force-reinstall", "dry-run", "no-deps", "platform", "only-binary"),  # pip
    *("find-links", "no-index", "system-site-packages", "exclude"),
    *("silent", "retry", "retry-delay", "retry-connrefused", "data-binary"),  # curl
    *("announced-signatures", "corpus", "minutes", "replay"),  # pytest and python -m fuzz, in this repository
    *("only", "update_readme", "python", "help", "version"),  # benchmarks/report.py, demo.py, lite.py, every program
    *("run", "keep"),  # benchmarks/pictures.py, tutorial.py
}


@functools.cache
def options(verb):
    """The options that a verb's --help names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert verbs.main([verb, "--help"]) == 0
    return set(re.findall(r"--([\w-]+)", text.getvalue()))


def code(text):
    """The lines of a document's blocks, continued lines joined, and its code in running text; messages are no code."""
    found = re.findall(r"(?s)```(\w*)\n(.*?)```", text.replace("\\\n", " "))
    blocks = [block for language, block in found if language != "console"]
    spans = re.findall(r"`([^`]+)`", re.sub(r"(?s)```.*?```", "", text))
    return [*"\n".join(blocks).splitlines(), *(" ".join(span.split()) for span in spans)]


def unknown(text):
    """What a document's code names and no program has: verbs, options of verbs, options of no verb at all."""
    found = []
    for line in code(text):
        line = line.partition(" #")[0]
        for match in PROGRAM.finditer(line):
            verb, rest = match[1] or match[3], match[2] or match[4] or ""
            if verb not in verbs.VERBS:
                found.append(f"mindrepvgg {verb}")
            else:
                given = re.findall(r"(?<!\S)--(\w[\w-]*)", rest.partition(" | ")[0])
                found += [f"{verb} --{name}" for name in given if name not in options(verb)]
        if not PROGRAM.search(line):
            known = FOREIGN.union(*(options(verb) for verb in verbs.VERBS))
            found += [f"--{name}" for name in re.findall(r"(?<!\S)--(\w[\w-]*)", line) if name not in known]
    return found


def missing(path, text):
    """The relative links, the files in code and the dotted names of a document that lead nowhere."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    found = [link for link in links if not (path.parent / link).exists()]
    for span in code(text):
        files = re.findall(
            r"(?:^|\s|\()((?:docs|tests|mindrepvgg|benchmarks|constraints|tools)/[\w./]*\w)(?![\w.]*\*)", span
        )
        found += [name for name in files if not (ROOT / name).exists()]
        found += [name for name in re.findall(r"(?<![\w.])mindrepvgg(?:\.\w+)+", span) if not defined(name)]
        for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", span):
            if (ROOT / file).exists() and f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8"):
                found.append(f"{file}::{test}")
    return found


def defined(name):
    """Whether mindrepvgg.a.b.c is a package, a module, or named in the module that the first parts of the name give."""
    place, parts = ROOT / "mindrepvgg", name.split(".")[1:]
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = place / f"{parts[0]}.py" if parts and (place / f"{parts[0]}.py").exists() else place / "__init__.py"
    rest = parts[1:] if module.name != "__init__.py" else parts
    return all(re.search(rf"\b{part}\b", module.read_text(encoding="utf-8")) for part in rest[:1])


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAME_OF)
def test_a_document_names_verbs_and_options_that_exist(path):
    assert unknown(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", OF_TODAY, ids=NAME_OF)
def test_a_document_names_files_and_modules_that_exist(path):
    assert missing(path, path.read_text(encoding="utf-8")) == []


def test_the_tree_names_modules_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "mindrepvgg").glob("*/__init__.py")}
    named = [span.split(".")[0] for span in code(text) if span.split("/")[0] in packages and "/" in span.rstrip("/")]
    assert len(named) > 20
    assert [name for name in named if not list((ROOT / "mindrepvgg").glob(f"{name}*"))] == []


def first_package(block):
    """Which of mindrepvgg and the packages on MindSpore a program imports first; None: it imports no mindrepvgg."""
    modules = []
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            modules += [name.split(".")[0] for name in names]
    return next((name for name in modules if name.startswith("mind")), None) if "mindrepvgg" in modules else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAME_OF)
def test_an_example_imports_mindrepvgg_before_mindspore(path):
    """In the other order it begins with the warning that convolutions will be very slow."""
    found = [
        first_package(block) for language, block in documents.blocks(path.read_text("utf-8")) if language == "python"
    ]
    assert set(found) <= {"mindrepvgg", None}


def test_another_order_of_imports_would_be_noticed():
    assert first_package("import mindcv, mindrepvgg") == "mindcv"
    assert first_package("from mindspore import nn\nfrom mindrepvgg.reparam import insert") == "mindspore"


def printed(text):
    """The commands, messages and Python of a document's blocks; what a comment says may differ."""
    found = []
    for language, block in documents.blocks(text):
        if language == "bash":
            found += documents.commands(block)
        else:
            found.append(ast.dump(ast.parse(block)) if language == "python" else block)
    return found


@pytest.mark.parametrize("path", CHINESE, ids=NAME_OF)
def test_a_page_in_chinese_has_the_commands_of_its_english_page(path):
    assert printed(path.read_text(encoding="utf-8")) == printed(CHINESE[path].read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CHINESE, ids=NAME_OF)
def test_no_line_of_a_chinese_page_ends_within_a_sentence(path):
    """Between two Chinese characters a line break is shown as a blank."""
    prose = re.sub(r"(?s)```.*?```", "", path.read_text(encoding="utf-8"))
    assert re.findall(r"[一-鿿，、（]\n *[一-鿿]+", prose) == []


def test_the_chinese_readme_has_the_networks_of_the_english_one():
    rows = [re.findall(r"(?m)^\| `repvgg.*$", path.read_text("utf-8")) for path in (ROOT / "README.md", *CHINESE)]
    assert rows[0]
    assert rows[0] == rows[-1]


def test_another_command_of_a_translation_would_be_noticed():
    english = "```bash\nmindrepvgg weights  # what is known\n```\n```python\nx = 1  # one\n```\n"
    assert printed(english) == printed(english.replace("# what is known", "# 已知的权重").replace("# one", "# 一"))
    assert printed(english) != printed(english.replace("weights", "weights --json"))
    assert printed(english) != printed(english.replace("x = 1", "x = 2"))


def test_what_does_not_exist_would_be_noticed(tmp_path):
    text = "```bash\nmindrepvgg trane\npython train.py --lr 1 \\\n    --lrr 2\n```\n"
    text += "`mindrepvgg export --flip`, `--nonsense`"
    assert unknown(text) == ["mindrepvgg trane", "train --lrr", "export --flip", "--nonsense"]
    text = "[a](docs/none.md) [b](https://a.org/b) `python tools/x.py` `mindrepvgg.none` `mindrepvgg.data.crop.none`"
    text += " `tests/test_text.py::test_none`"
    wrong = ["docs/none.md", "tools/x.py", "mindrepvgg.none", "mindrepvgg.data.crop.none"]
    wrong += ["tests/test_text.py::test_none"]
    assert missing(tmp_path / "a.md", text) == wrong
    assert defined("mindrepvgg.create_model")
