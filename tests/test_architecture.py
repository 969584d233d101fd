"""Imports only go down, the bottom floor loads nothing heavy, and everything public says what it is."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import mindrepvgg

pytestmark = pytest.mark.compat

PACKAGE = Path(mindrepvgg.__file__).parent
ROOT = PACKAGE.parent

# The floor of every module (a sub-package counts whole) ...
FLOORS = {
    **dict.fromkeys(("bfloat16", "cli", "dialects", "environment", "errors", "files", "fusion"), 0),
    **dict.fromkeys(("inert_pickle", "layout", "recipe", "schedule", "torchfile"), 0),
    **dict.fromkeys(("summary", "variants", "version"), 0),
    **dict.fromkeys(("block", "compile_cache", "data", "freeze", "metrics", "model", "normalize"), 1),
    **dict.fromkeys(("precision", "ranks", "runtime"), 1),
    **dict.fromkeys(("checkpoint", "convert", "crosscheck", "deploy", "evaluate", "export", "optim"), 2),
    **dict.fromkeys(("check_data", "predict", "pretrained", "selfcheck", "torch_reference", "weights"), 2),
    **dict.fromkeys(("ascend_tools", "class_report", "engine", "onnx_graph", "pictures", "validation"), 2),
    **dict.fromkeys(("fake_quant", "int8", "quantization"), 2),
    "benchmark": 2,
    "train": 3,
}
# ... and what the floors may use of other projects, each also what the floors below it may.
THIRD_PARTY = (
    {"numpy", "yaml"},
    {"mindspore", "mindcv", "cv2", "PIL"},
    {"google", "matplotlib", "safetensors", "tqdm"},
    set(),
)
# Optional projects, imported inside a function of one module each, when their one purpose is asked for.
OPTIONAL = {
    *(("convert", "torch"), ("crosscheck", "timm"), ("torch_reference", "torch")),
    *(("benchmark", "torch"), ("train", "tensorboardX")),
    *(("engine", "onnxruntime"), ("int8", "onnxruntime"), ("onnx_graph", "onnx")),
}

HEAVY = {"mindspore", "mindcv", "cv2", "torch"}


class Import(NamedTuple):
    """One import: the dotted module, its line, and whether it happens when the file is loaded."""

    module: str
    line: int
    at_load: bool


def imports(source, module):
    """The imports in the source of `module` ('mindrepvgg.deploy'; 'mindrepvgg.data.__init__' for a package)."""
    tree = ast.parse(source)
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import fusion` names a module, `from .fusion import fold` something in one.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "mindrepvgg" else [base]
        else:
            continue
        found.extend(Import(name, node.lineno, node not in lazy) for name in names)
    return found


def unit(module):
    """The entry of FLOORS a dotted module of the package belongs to, None for others."""
    parts = module.split(".")
    if parts[0] != "mindrepvgg" or len(parts) == 1 or parts[1] == "__init__":
        return None
    return mindrepvgg._HOMES.get(parts[1], parts[1])


def upward_imports(source, module):
    """The imports of `module` that its floor forbids, as text."""
    own = unit(module)
    floor = FLOORS[own]
    allowed = set().union(*THIRD_PARTY[: floor + 1], {"mindrepvgg"}, sys.stdlib_module_names)
    problems = []
    for found in imports(source, module):
        other, project = unit(found.module), found.module.partition(".")[0]
        if other is not None and other not in FLOORS:
            problems.append(f"{module}:{found.line} imports {other}, which is on no floor")
        elif other is not None and FLOORS[other] > floor:
            problems.append(f"{module}:{found.line} (floor {floor}) imports {other} (floor {FLOORS[other]})")
        elif project not in allowed and (found.at_load or (own, project) not in OPTIONAL):
            problems.append(f"{module}:{found.line} (floor {floor}) imports {project}")
    return problems


def undocumented(source):
    """The public classes, functions and methods of a module without a docstring; `construct` is the framework's."""
    tree = ast.parse(source)
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [] if ast.get_docstring(tree) else ["the module"]
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    for node in public:
        if isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, kinds)]
            public_methods = [m for m in methods if not m.name.startswith("_") and m.name != "construct"]
            found += [f"{node.name}.{m.name}" for m in public_methods if not ast.get_docstring(m)]
        if not ast.get_docstring(node):
            found.append(node.name)
    return found


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = sorted(PACKAGE.rglob("*.py"))
INSIDE = [path for path in MODULES if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", INSIDE, ids=module_name)
def test_imports_go_down(path):
    assert unit(module_name(path)) in FLOORS, f"{path.name} is on no floor: give it one above"
    assert upward_imports(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_everything_public_has_a_docstring(path):
    assert undocumented(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [PACKAGE / "__init__.py", *sorted(ROOT.glob("*.py"))], ids=lambda path: path.name)
def test_entry_points_load_the_bottom_floor_only(path):
    """What is heavier they import inside functions: `--help` and a wrong recipe answer at once."""
    module = "mindrepvgg.__init__" if path.parent == PACKAGE else path.stem
    for found in imports(path.read_text(encoding="utf-8"), module):
        if found.at_load:
            name = unit(found.module)
            assert FLOORS[name] == 0 if name else found.module.partition(".")[0] in sys.stdlib_module_names, found


def loaded_by(modules):
    """The top-level modules in memory after importing the given ones in a fresh interpreter."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_bottom_floor_loads_nothing_heavy():
    bottom = [
        module_name(path).removesuffix(".__init__") for path in INSIDE if FLOORS.get(unit(module_name(path))) == 0
    ]
    assert len(bottom) >= 12
    loaded = loaded_by(bottom)
    assert {"mindrepvgg", "numpy"} <= loaded
    assert not loaded & HEAVY


def test_a_heavy_module_would_be_noticed():
    assert "mindspore" in loaded_by(["mindrepvgg.variants", "mindrepvgg.block"])


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("mindrepvgg.fusion", "from .block import ConvBN", "(floor 0) imports block (floor 1)"),
        ("mindrepvgg.fusion", "from . import errors, deploy", "(floor 0) imports deploy (floor 2)"),
        ("mindrepvgg.model", "def f():\n    from mindrepvgg.train.step import TrainStep", ":2 (floor 1) imports train"),
        ("mindrepvgg.dialects.names", "from ..model import RepVGG", "(floor 0) imports model (floor 1)"),
        ("mindrepvgg.dialects.__init__", "from ..model import RepVGG", "(floor 0) imports model (floor 1)"),
        ("mindrepvgg.block", "from mindrepvgg import to_deploy", "(floor 1) imports deploy (floor 2)"),
        ("mindrepvgg.block", "import mindrepvgg.optim as o", "(floor 1) imports optim (floor 2)"),
        ("mindrepvgg.recipe", "import mindspore as ms", "(floor 0) imports mindspore"),
        ("mindrepvgg.recipe", "class A:\n    def f(self):\n        import cv2", ":3 (floor 0) imports cv2"),
        ("mindrepvgg.deploy", "def f():\n    from torch import nn", "(floor 2) imports torch"),
        ("mindrepvgg.torch_reference", "import torch", "(floor 2) imports torch"),
        ("mindrepvgg.deploy", "from .leftover import x", "imports leftover, which is on no floor"),
    ],
)
def test_the_checker_sees_an_import_that_goes_up(module, source, problem):
    problems = upward_imports(source, module)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mindrepvgg.train.step", "from ..deploy import x\nfrom . import monitor\nfrom .. import runtime"),
        ("mindrepvgg.data.__init__", "from .pipeline import x\nfrom mindrepvgg.data.sources import y"),
        ("mindrepvgg.block", "import os.path\nimport mindspore.nn\nimport numpy as np\nfrom . import fusion"),
        ("mindrepvgg.torch_reference", "def f():\n    import torch"),
    ],
)
def test_the_checker_lets_imports_go_down(module, source):
    assert upward_imports(source, module) == []


def test_the_checker_sees_what_has_no_docstring():
    source = '''
class A:
    """Says."""
    def construct(self): ...
    def _private(self): ...
    def public(self): ...
    @property
    def size(self):
        """Says."""
class B:
    def method(self):
        """Says."""
def function(): ...
def _private(): ...
'''
    assert undocumented(source) == ["the module", "A.public", "B", "function"]
