"""Compiled graphs on disk: which are found again, and by whom."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindrepvgg.runtime import compile_cache
from mindrepvgg.runtime.compile_cache import kept_graphs

ROOT = Path(__file__).parents[2]


FIRST_STEP = """
import sys, time
import mindspore as ms, numpy as np
from mindrepvgg import create_model
from mindrepvgg.runtime.compile_cache import kept_graphs
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.step import LossScale, NetworkWithLoss, TrainStep
ms.set_context(mode=0)
ms.set_seed(0)
net = create_model("repvgg", 5, num_blocks=(1, 1, 2, 1), widths=(4, 4, 8, 8, 8))
step = TrainStep(NetworkWithLoss(net, build_loss()), build_optimizer(net, np.full(9, 0.1)), loss_scale=LossScale(2.0))
images = ms.Tensor(np.random.default_rng(0).normal(size=(4, 3, 32, 32)), ms.float32)
start = time.process_time()
labels = ms.Tensor([0, 1, 2, 3], ms.int32)
with kept_graphs(sys.argv[1], sys.argv[2]):
    losses = [float(step(images, labels)[0].asnumpy())]
losses.append(float(step(images, labels)[0].asnumpy()))
net.set_train(False)
losses.append(float(net(images).asnumpy().sum()))
print("seconds", time.process_time() - start, *losses)
"""


class TestCompileCache:
    def folder(self, tmp_path, facts):
        with kept_graphs(tmp_path, facts) as folder:
            return folder

    @pytest.fixture(autouse=True)
    def _no_settings(self, monkeypatch):
        for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
            monkeypatch.delenv(name, raising=False)

    def test_each_set_of_facts_has_its_folder(self, tmp_path, monkeypatch):
        facts = {"model": "repvgg_a0", "lr": 0.1}
        folder = self.folder(tmp_path, facts)
        assert folder.parent == tmp_path
        assert self.folder(tmp_path, json.loads(json.dumps(facts))) == folder
        assert self.folder(tmp_path, {**facts, "lr": 0.2}) != folder
        monkeypatch.setattr(compile_cache, "__version__", "0")
        assert self.folder(tmp_path, facts) != folder

    def test_every_source_file_counts(self, tmp_path, monkeypatch):
        """Several of them share a name: data/__init__.py and train/__init__.py."""
        package = tmp_path / "package"
        for part in ("data", "train"):
            (package / part).mkdir(parents=True)
            (package / part / "__init__.py").write_text("")
        monkeypatch.setattr(compile_cache, "__file__", str(package / "runtime" / "compile_cache.py"))
        found = {self.folder(tmp_path, 0)}
        for part in ("data", "train"):
            (package / part / "__init__.py").write_text("changed")
            found.add(self.folder(tmp_path, 0))
        assert len(found) == 3

    def test_it_is_on_inside_and_off_outside(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MS_COMPILER_CACHE_PATH", "/mine")
        with kept_graphs(tmp_path, 1) as folder:
            assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "1"
            assert os.environ["MS_COMPILER_CACHE_PATH"] == str(folder.resolve())
        assert "MS_COMPILER_CACHE_ENABLE" not in os.environ
        assert os.environ["MS_COMPILER_CACHE_PATH"] == "/mine"

    def test_the_users_switch_stays(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "0")
        with kept_graphs(tmp_path, 1):
            assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "0"
            assert "MS_COMPILER_CACHE_PATH" not in os.environ

    @pytest.mark.slow
    def test_a_second_start_compiles_nothing(self, tmp_path):
        """In processor time, which a busy machine does not stretch; with other facts it compiles again."""
        script = tmp_path / "first_step.py"
        script.write_text(FIRST_STEP)

        def start(facts):
            result = subprocess.run(
                [sys.executable, script, tmp_path / "cache", facts],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            line = next(line for line in result.stdout.splitlines() if line.startswith("seconds "))
            seconds, *losses = map(float, line.split()[1:])
            return seconds, losses

        first, second, other = start("a"), start("a"), start("b")
        assert other[1] == first[1]
        # The last bit alone: a graph from the disk may be put together otherwise.
        np.testing.assert_allclose(second[1], first[1], rtol=1e-5)
        assert second[0] < 0.6 * first[0]
        assert other[0] > 0.7 * first[0]
