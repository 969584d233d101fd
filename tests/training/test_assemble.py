"""The parts around the training step: losses, BN statistics, folder, device queue, compiled graphs, what watches."""

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import context_mode, images, randomise_bn, relative_difference, weights
from support.torch_reference import Network, copy_weights, torch_name

from mindrepvgg import create_model
from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.errors import RecipeError, TrainingError, UserError
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime import compile_cache
from mindrepvgg.runtime.compile_cache import kept_graphs
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training import monitor
from mindrepvgg.training.batches import DeviceQueue, host_batches
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.monitor import EventFiles, Meter, Profile, RunLog
from mindrepvgg.training.precise_bn import precise_bn
from mindrepvgg.training.resume import Position
from mindrepvgg.training.run_folder import RunFolder, find_last

TINY = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}
ROOT = Path(__file__).parents[2]


class TestLoss:
    """Against PyTorch's losses of probabilities, value and gradient; the smoothing spelled out."""

    @pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("name", ["CE", "BCE"])
    @pytest.mark.usefixtures("mode")
    def test_value_and_gradient(self, name, smoothing, soft):
        rng = np.random.default_rng(0)
        logits = 3 * rng.normal(size=(6, 5)).astype(np.float32)
        labels = rng.integers(0, 5, 6).astype(np.int32)
        targets = rng.dirichlet(np.ones(5), 6).astype(np.float32) if soft else labels
        value, gradient = ms.value_and_grad(build_loss(name, smoothing))(Tensor(logits), Tensor(targets))

        truth = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        probabilities = torch.tensor(targets if soft else np.eye(5)[labels], dtype=torch.float64)
        if name == "CE":
            expected = torch.nn.functional.cross_entropy(truth, probabilities, label_smoothing=smoothing)
        else:
            smoothed = (1 - smoothing) * probabilities + smoothing / 5
            expected = torch.nn.functional.binary_cross_entropy_with_logits(truth, smoothed)
        expected.backward()
        assert float(value.asnumpy()) == pytest.approx(float(expected.detach()), rel=1e-6)
        assert relative_difference(gradient, truth.grad) < 1e-6


class Recorder(Ranks):
    """The rank of two that comes first: what it gathers is kept for the other."""

    def __init__(self):
        super().__init__()
        self.given = []

    def gather(self, array):
        self.given.append(np.array(array))
        return super().gather(array)


class Second(Ranks):
    """The other one: it gathers what the first gave, and its own."""

    def __init__(self, first):
        super().__init__(1, 2)
        self.given = list(first.given)

    def gather(self, array):
        return np.stack([self.given.pop(0), array])


def batch_statistics(net, batches):
    """By BN's name, the mean and the biased variance of its input in every batch, of PyTorch in float64."""
    truth = copy_weights(net, Network(net.variant, 5).double()).train()
    found = {}

    def record(name):
        def hook(_, inputs):
            x = inputs[0].detach()
            count = x.numel() / x.shape[1]
            found.setdefault(name, []).append((x.mean((0, 2, 3)).numpy(), x.var((0, 2, 3)).numpy(), count))

        return hook

    for name, module in truth.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(record(name))
    for batch in batches:
        truth(torch.from_numpy(batch).double())
    return found


def expected_statistics(net, batches):
    """The pooled mean and variance of each of the network's moving statistics, by its name."""
    expected = {}
    for name, values in batch_statistics(net, batches).items():
        means, variances = (np.stack([value[i] for value in values]) for i in (0, 1))
        expected[f"{name}.running_mean"] = means.mean(0)
        expected[f"{name}.running_var"] = variances.mean(0) + means.var(0)
    names = [p.name for p in net.get_parameters() if ".moving_" in p.name]
    return {name: expected[torch_name(name)] for name in names}


class TestPreciseBN:
    BATCHES = tuple(images(8, 3, 64, 64, seed=seed) for seed in range(4))

    @staticmethod
    def network():
        ms.set_seed(0)
        return randomise_bn(create_model("repvgg", 5, **TINY))

    def assert_statistics(self, net, expected):
        found = weights(net)
        for name, values in expected.items():
            assert relative_difference(found[name], values) < 1e-5, name

    @pytest.mark.usefixtures("mode")
    def test_mean_and_variance_over_all_batches(self):
        """In graph mode after a validation, as at the end of a run: its graph must not be taken for this one."""
        net = self.network().set_train(False)
        before = weights(net)
        net(Tensor(self.BATCHES[0]))
        expected = expected_statistics(net, self.BATCHES)
        precise_bn(net, self.BATCHES, Ranks())
        self.assert_statistics(net, expected)
        assert not net.training
        after = weights(net)
        assert all((before[n] != after[n]).any() == (n in expected) for n in before)
        # Negative control: without the part between the batches the variance would be another.
        within = batch_statistics(net, self.BATCHES)["stage0.rbr_dense.bn"]
        within = np.mean([variance for _, variance, _ in within], axis=0)
        assert relative_difference(after["stage0.rbr_dense.bn.moving_variance"], within) > 1e-2
        # Validation knows the new statistics.
        truth = copy_weights(net, Network(net.variant, 5).double()).eval()
        expected = truth(torch.from_numpy(self.BATCHES[0]).double())
        assert relative_difference(net(Tensor(self.BATCHES[0])), expected) < 1e-5

    @pytest.mark.usefixtures("pynative_mode")
    def test_the_mean_is_torchs_cumulative_one(self):
        net = self.network()
        truth = copy_weights(net, Network(net.variant, 5).double()).train()
        for module in truth.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        for batch in self.BATCHES:
            truth(torch.from_numpy(batch).double())
        precise_bn(net, self.BATCHES, Ranks())
        state, found = truth.state_dict(), weights(net)
        means = [name for name in found if name.endswith("moving_mean")]
        assert means
        for name in means:
            assert relative_difference(found[name], state[torch_name(name)]) < 1e-5, name

    @pytest.mark.usefixtures("pynative_mode")
    def test_on_its_one_batch_inference_is_training(self):
        """Up to the variance: BN normalises by the biased one and keeps the unbiased one, as PyTorch's does."""
        net, x = self.network(), Tensor(images(16, 3, 64, 64))
        expected = net.set_train(True)(x).asnumpy()
        precise_bn(net, [x.asnumpy()], Ranks())
        found = net.set_train(False)(x).asnumpy()
        assert relative_difference(found, expected) < 0.1, "16 * 2 * 2 numbers a channel in the last stage"
        counts = {name: values[0][2] for name, values in batch_statistics(net, [x.asnumpy()]).items()}
        for name, cell in net.cells_and_names():
            if isinstance(cell, nn.BatchNorm2d):
                count = counts[name]
                biased = cell.moving_variance.asnumpy() * np.float32((count - 1) / count)
                cell.moving_variance.set_data(Tensor(biased))
        assert relative_difference(net(x), expected) < 1e-5
        assert relative_difference(found, expected) > 1e-4, "negative control"

    @pytest.mark.usefixtures("pynative_mode")
    def test_two_ranks_share_the_batches(self):
        """An unequal share too: every batch counts the same."""
        net = self.network()
        expected = expected_statistics(net, self.BATCHES)
        first = Recorder()
        precise_bn(self.network(), self.BATCHES[:1], first)
        precise_bn(net, self.BATCHES[1:], Second(first))
        self.assert_statistics(net, expected)

    @pytest.mark.usefixtures("pynative_mode")
    def test_frozen_bn_stays(self):
        net = freeze(self.network(), stages=2).set_train()
        before = weights(net)
        precise_bn(net, self.BATCHES[:2], Ranks())
        after = weights(net)
        moving = [name for name in before if ".moving_" in name]
        changed = {name for name in moving if before[name].tobytes() != after[name].tobytes()}
        assert changed == {name for name in moving if not name.startswith(("stage0", "stage1"))}
        assert net.training
        net = freeze(self.network(), bn=True)
        precise_bn(net, self.BATCHES[:1], Ranks())
        assert all(values.tobytes() == before[name].tobytes() for name, values in weights(net).items())


class TestRunFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        """A folder with a run, another model's run, and what is nobody's."""
        for name in (
            "repvgg_last.ckpt",
            "repvgg_best.ckpt",
            "repvgg_ema_best.ckpt",
            "repvgg_precise_bn.ckpt",
            "repvgg-1.ckpt",
            "repvgg-12.ckpt",
            "repvgg_a0_last.ckpt",
            "repvgg_a0_best.ckpt",
            "repvgg_a0-3.ckpt",
            *self.OTHERS,
        ):
            (tmp_path / name).write_text(name)
        return RunFolder(tmp_path, "repvgg")

    OTHERS = ("repvgg_b0_best.ckpt", "repvgg-final.ckpt", "repvgg-1.txt", "notes.md", "log.jsonl", "repvgg_deploy.ckpt")

    def test_start_anew_removes_the_runs_alone(self, folder):
        folder.start_anew()
        assert sorted(path.name for path in folder.path.iterdir()) == sorted(self.OTHERS)
        folder.start_anew()
        folder.check(None, overwrite=False)

    def test_nothing_is_removed_where_nothing_was(self, tmp_path):
        RunFolder(tmp_path / "none", "repvgg").start_anew()
        assert not (tmp_path / "none").exists()

    def test_check(self, folder, tmp_path_factory):
        with pytest.raises(
            TrainingError, match=r"holds a run already \(repvgg_a0_last\.ckpt\); add --resume .+ --over"
        ):
            folder.check(None, overwrite=False)
        folder.check(None, overwrite=True)
        folder.check(folder.last, overwrite=False)
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "repvgg_last.ckpt"
        elsewhere.write_text("")
        with pytest.raises(TrainingError, match=r"holds another run \(repvgg_a0_last\.ckpt\) than .+elsewhere"):
            folder.check(elsewhere, overwrite=False)
        # A checkpoint that is not there is another's error.
        folder.check(folder.path / "none.ckpt", overwrite=False)
        RunFolder(folder.path / "new", "repvgg").check(elsewhere, overwrite=False)
        RunFolder(folder.path / "new", "repvgg").check(None, overwrite=False)

    @pytest.mark.parametrize(
        ("policy", "most", "kept", "chosen"),
        [
            ("latest_k", 2, [(1, 90.0), (2, 10.0), (3, None)], [2, 3]),
            ("latest_k", 5, [(1, 90.0), (2, 10.0)], [1, 2]),
            ("top_k", 2, [(1, 90.0), (2, 10.0), (3, 50.0)], [1, 3]),
            ("top_k", 2, [(1, 50.0), (2, 50.0), (3, 50.0)], [2, 3]),
            ("top_k", 1, [(1, 50.0), (2, 60.0), (3, 60.0), (4, 50.0)], [3]),
            ("top_k", 2, [(1, None), (2, 0.0), (3, None)], [2, 3]),
            ("top_k", 1, [(1, 0.0), (2, None)], [1]),
        ],
    )
    def test_keep(self, tmp_path, policy, most, kept, chosen):
        folder = RunFolder(tmp_path, "repvgg")
        others = ["repvgg_last.ckpt", "repvgg-99.ckpt"]
        for path in (*(folder.epoch(epoch) for epoch, _ in kept), *(tmp_path / name for name in others)):
            path.write_text("")
        assert [entry[0] for entry in folder.keep(kept, most, policy)] == chosen
        expected = {*others, *(f"repvgg-{epoch}.ckpt" for epoch in chosen)}
        assert {path.name for path in tmp_path.iterdir()} == expected

    def test_a_file_that_is_gone_is_no_matter(self, tmp_path):
        assert RunFolder(tmp_path, "repvgg").keep([[1, None], [2, None]], 1, "latest_k") == [[2, None]]

    def test_find_last(self, folder):
        assert find_last(folder.path, "repvgg_a0") == folder.path / "repvgg_a0_last.ckpt"
        with pytest.raises(TrainingError, match=r"repvgg_b0_last\.ckpt does not exist: there is no run to resume"):
            find_last(folder.path, "repvgg_b0")


@pytest.fixture(scope="module")
def loader():
    """Digits in four batches an epoch."""
    recipe = load_recipe(None, {"model": "repvgg_nano", "dataset": "mnist5k", "num_classes": 10})
    return TrainLoader(
        open_source("mnist5k", None, "train", 10),
        Preprocessing(image_size=(8, 8), mean=(0.5,), std=(0.5,), in_channels=1),
        Augmentation.of(recipe),
        batch_size=1000,
        seed=1,
        num_parallel_workers=1,
    )


class TestDeviceQueue:
    @pytest.fixture(autouse=True)
    def _stand_in(self, monkeypatch):
        """What a device does, without one: MindSpore's own iterator over the dataset, endless epochs."""

        def data_sink(function, dataset):
            assert dataset.get_dataset_size() > 0
            rows = dataset.create_tuple_iterator(num_epochs=1)
            return lambda: function(*next(rows))

        monkeypatch.setattr(ms, "data_sink", data_sink)

    @pytest.mark.parametrize(("epoch", "start"), [(0, 0), (1, 3), (2, 1)])
    @pytest.mark.parametrize("batches_per_epoch", [4, 3])
    def test_the_batches_are_the_hosts(self, loader, epoch, start, batches_per_epoch):
        start = min(start, batches_per_epoch)
        queue = DeviceQueue(loader, epoch, start, 3, batches_per_epoch)
        for now in range(epoch, 3):
            first = start if now == epoch else 0
            found = [tuple(x.asnumpy() for x in batch) for batch in queue.batches(first)]
            expected = [tuple(x.asnumpy() for x in batch) for batch in host_batches(loader, now, first)]
            expected = expected[: batches_per_epoch - first]
            assert len(found) == batches_per_epoch - first
            for batch, other in zip(found, expected, strict=True):
                for array, truth in zip(batch, other, strict=True):
                    assert array.dtype == truth.dtype
                    np.testing.assert_array_equal(array, truth)
        with pytest.raises(StopIteration):
            queue._fetch()


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has an Ascend device")
def test_a_cpu_takes_no_queue(loader):
    """Negative control for the stand-in, which is not what runs there."""
    with pytest.raises(ValueError, match=r"(?i)ascend"):
        next(DeviceQueue(loader, 0, 0, 1, 4).batches(0))


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


class TestMeter:
    def test_speed_and_waiting(self, monkeypatch):
        clock = SimpleNamespace(now=100.0)
        clock.perf_counter = lambda: clock.now
        monkeypatch.setattr(monitor, "time", clock)
        meter = Meter()
        clock.now += 5  # compilation, say
        meter.restart()
        for _ in range(4):
            with meter.waiting():
                clock.now += 0.5
            clock.now += 1.5
            meter.count(32)
        assert meter.read() == (128 / 8, 2 / 8)
        clock.now += 2
        meter.count(10)
        with contextlib.suppress(StopIteration), meter.waiting():
            clock.now += 2
            raise StopIteration
        assert meter.read() == (10 / 4, 2 / 4)
        assert meter.read() == (0, 0), "no time has passed"


class TestEventFiles:
    def test_the_package_may_be_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(UserError) as caught:
            EventFiles(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("which is not installed: pip install tensorboardX")

    def test_what_is_written(self, tmp_path):
        writer = pytest.importorskip("tensorboardX")
        events = EventFiles(tmp_path)
        log = RunLog(None, events=events)
        log.write("train", 1, 4, loss=0.5, lr=0.25, note="text", missing=None)
        log.write("train", 1, 8, loss=0.125, lr=0.25)
        log.write("validate", 1, 8, top1=12.5, correct=125)
        events.close()
        (path,) = tmp_path.iterdir()
        loader = writer.proto.event_pb2.Event
        found = {}
        for record in _records(path.read_bytes()):
            event = loader.FromString(record)
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
        assert found == {
            ("train/loss", 4): 0.5,
            ("train/lr", 4): 0.25,
            ("train/loss", 8): 0.125,
            ("train/lr", 8): 0.25,
            ("validate/top1", 8): 12.5,
            ("validate/correct", 8): 125,
        }


def _records(content):
    """The records of a TFRecord file: length (8 bytes), its checksum (4), content, its checksum (4)."""
    while content:
        length = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + length]
        content = content[16 + length :]


class TestProfile:
    def test_closed_before_it_was_started(self, tmp_path):
        profile = Profile(tmp_path / "profile", steps=2)
        profile.step()
        profile.step()
        profile.step()
        profile.close()
        assert not (tmp_path / "profile").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("taken", [3, 1, 0])
    def test_something_is_written(self, tmp_path, taken):
        """After its last step, and when the run ends before."""
        with context_mode("pynative"):
            profile = Profile(tmp_path / "profile", steps=3)
            profile.start()
            for _ in range(taken):
                (Tensor(np.ones(8, np.float32)) + 1).asnumpy()
                profile.step()
            profile.close()
            profile.close()
        assert [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]


class TestPosition:
    def test_a_round_trip_through_json(self):
        position = Position(
            ranks=8,
            images_per_step=256,
            epoch=3,
            step_in_epoch=7,
            skipped=2,
            best_top1=71.25,
            best_epoch=2,
            kept=[[2, 71.25], [3, None]],
            interval_losses=[0.5, None, 0.1],
        )
        text = json.dumps(position.to_dict(), allow_nan=False)
        found = Position.from_dict(json.loads(text))
        assert found == position
        assert found.best_ema_top1 == -math.inf
        assert json.loads(text)["best_ema_top1"] is None

    def test_a_fresh_one(self):
        found = Position.from_dict(json.loads(json.dumps(Position().to_dict(), allow_nan=False)))
        assert found == Position()
        assert found.best_top1 == -math.inf
        assert found.kept is not Position().kept


def test_recomputing_needs_graph_mode():
    load_recipe(None, {"dataset": "mnist5k", "recompute": True})
    with pytest.raises(RecipeError, match=r"recompute.+ needs mode 0: in PyNative mode BN's statistics would take"):
        load_recipe(None, {"dataset": "mnist5k", "recompute": True, "mode": 1})
