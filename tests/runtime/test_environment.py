"""What happens before MindSpore is imported: the processor cap, and that the package itself loads quickly."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mindrepvgg.runtime import environment

pytestmark = pytest.mark.compat

CAP = "ONEDNN_MAX_CPU_ISA"
AVX512 = frozenset({"sse2", "avx2", "avx512f", "avx512bw"})


@pytest.fixture
def machine(monkeypatch):
    """Sets up a machine: processor features, MindSpore's version, the user's variable, and whether it is loaded."""

    def set_up(flags=AVX512, version=(2, 10), cap=None, loaded=False):
        monkeypatch.setattr(environment, "_cpu_flags", lambda: flags)
        monkeypatch.setattr(environment, "mindspore_version", lambda: version)
        # Set first, so that what the code under test writes is undone as well.
        monkeypatch.setenv(CAP, cap or "")
        if cap is None:
            monkeypatch.delenv(CAP)
        monkeypatch.setitem(sys.modules, "mindspore", object())
        if not loaded:
            monkeypatch.delitem(sys.modules, "mindspore")

    return set_up


@pytest.mark.parametrize("version", [(2, 9), (2, 10), (3, 0)])
def test_the_cap_is_set_where_avx512_meets_a_slow_mindspore(machine, version):
    machine(version=version)
    assert environment.cap_cpu_isa() is True
    assert os.environ[CAP] == "AVX2"


@pytest.mark.parametrize(
    "setting",
    [
        {"flags": frozenset({"sse2", "avx2"})},
        {"flags": frozenset()},
        {"version": (2, 8)},
        {"version": (2, 7)},
        {"version": None},
        {"flags": frozenset({"avx2"}), "loaded": True},
    ],
)
def test_the_cap_is_not_set_elsewhere(machine, recwarn, setting):
    machine(**setting)
    assert environment.cap_cpu_isa() is False
    assert CAP not in os.environ
    assert not recwarn


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("value", ["AVX512_CORE", "ALL", "SSE41"])
def test_the_users_value_stays(machine, recwarn, value, loaded):
    machine(cap=value, loaded=loaded)
    assert environment.cap_cpu_isa() is False
    assert os.environ[CAP] == value
    assert not recwarn


def test_with_mindspore_already_imported_it_warns(machine):
    machine(loaded=True)
    with pytest.warns(RuntimeWarning, match=f"Import mindrepvgg first, or set {CAP}=AVX2 in the environment") as caught:
        assert environment.cap_cpu_isa() is False
    assert CAP not in os.environ
    assert len(caught) == 1


def test_the_version_is_read_without_importing(monkeypatch):
    import mindspore

    assert environment.mindspore_version() == tuple(int(part) for part in mindspore.__version__.split(".")[:2])

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert environment.mindspore_version() is None


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512f\nprocessor\t: 1\nflags\t\t: other\n", {"fpu", "sse2", "avx512f"}),
        ("processor\t: 0\nFeatures\t: asimd\n", set()),
        ("", set()),
        (None, set()),
    ],
    ids=["x86", "arm", "empty", "no-file"],
)
def test_processor_flags_are_linuxs(monkeypatch, text, flags):
    def read_text(path, **options):
        assert path == Path("/proc/cpuinfo")
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert environment._cpu_flags() == flags


def run_python(code):
    """Run code in an interpreter of its own, in the repository; its output's lines."""
    root = Path(environment.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LIST_MODELS = """
import sys, time
import mindrepvgg
assert "repvgg_a0" in mindrepvgg.list_models()
print(time.process_time())
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"mindspore", "mindcv", "numpy", "cv2", "torch"}))
"""


def test_listing_the_models_loads_nothing_heavy_and_takes_no_time():
    seconds, heavy = run_python(LIST_MODELS)
    assert heavy == ""
    assert float(seconds) < 1


def test_the_package_caps_the_processor_when_it_is_imported():
    """In a process that looks like an affected machine, before anything of the package could import MindSpore."""
    lines = run_python(
        f"import os, pathlib, sys; from importlib import metadata; os.environ.pop('{CAP}', None)\n"
        "pathlib.Path.read_text = lambda *_, **__: 'flags : avx512f'; metadata.version = lambda _: '2.10.0'\n"
        f"import mindrepvgg; print(os.environ.get('{CAP}')); print('mindspore' in sys.modules)\n"
    )
    assert lines == ["AVX2", "False"]
