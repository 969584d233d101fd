"""Two processes that train together under msrun: what they agree on, what they write, and the death of one of them."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from support import context_mode, relative_difference
from support.processes import (
    ROOT,
    Printed,
    assert_same_run,
    checkpoints,
    command,
    last_step,
    once,
    records,
    run_two,
    start_two,
    wait_until,
    write_recipe,
)
from support.ranks_script import (
    CLASSES,
    FROZEN,
    GATHERED,
    STEPS,
    batches_of,
    build,
    own_gradients,
    recipe,
    run,
    validation,
)

from mindrepvgg import create_model, load_checkpoint
from mindrepvgg.data.loaders import eval_loader
from mindrepvgg.evaluation.loop import evaluate
from mindrepvgg.recipe import choices
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.precise_bn import precise_bn
from mindrepvgg.training.step import bn_statistics
from mindrepvgg.weights.containers import read_weights

EPOCHS, STEPS_PER_EPOCH = 2, 3
SCRIPT = ROOT / "tests" / "support" / "ranks_script.py"
STATISTICS = ("moving_mean", "moving_variance")

pytestmark = pytest.mark.processes


class Found:
    """What the two ranks of ranks_script.py wrote."""

    def __init__(self, folder):
        self.facts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
        self.arrays = [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]

    def parts(self, prefix):
        """Both ranks' arrays under `prefix`, without it."""
        return [
            {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{prefix}/")}
            for arrays in self.arrays
        ]


def assert_equal(one, other):
    assert list(one) == list(other)
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


def differing(one, other):
    assert list(one) == list(other)
    return [name for name, array in one.items() if array.tobytes() != other[name].tobytes()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The folder of an msrun of ranks_script.py and then the command, to a good end; nothing may be changed there."""

    def make(place):
        # PyNative: the run would spend most of its time compiling, and the script has graphs.
        yaml = write_recipe(place / "tiny.yaml", batch_size=320, epoch_size=EPOCHS, mode=1)
        run_two([SCRIPT, place, *command(yaml, place / "run")[1:]], place)

    return once(tmp_path_factory, "cluster", make)[0]


@pytest.fixture(scope="module")
def found(cluster):
    return Found(cluster)


@pytest.fixture(scope="module")
def whole(cluster):
    """The folder of the command's run."""
    return cluster / "run"


class TestCollectives:
    def test_who_they_are(self, found):
        assert [(f["rank"], f["size"], f["is_first"]) for f in found.facts] == [(0, 2, True), (1, 2, False)]
        assert [f["again"] for f in found.facts] == [2, 2], "joining twice does no harm"

    @pytest.mark.parametrize("name", GATHERED)
    def test_gather_keeps_every_bit(self, found, name):
        kind, values = GATHERED[name]
        expected = np.stack([np.roll(np.array(values, kind), rank).reshape(5, 1) for rank in range(2)])
        for arrays in found.arrays:
            gathered = arrays[f"gather/{name}"]
            assert (gathered.shape, gathered.dtype) == (expected.shape, expected.dtype)
            assert gathered.tobytes() == expected.tobytes()

    def test_the_union_of_ragged_numbers(self, found):
        for arrays in found.arrays:
            assert arrays["union/some"].tolist() == [3, 5, 7, 2**40]
            assert arrays["union/few"].tolist() == [9]
            assert arrays["union/none"].tolist() == []

    def test_gather_of_other_shapes(self, found):
        for arrays in found.arrays:
            assert arrays["gather/scalar"].tolist() == [0.1, 1.1]
            expected = np.arange(6).reshape(2, 3).T
            np.testing.assert_array_equal(arrays["gather/transposed"], [expected, expected + 1])

    def test_any(self, found):
        assert [facts["any"] for facts in found.facts] == [[False, True, True, True]] * 2

    def test_average_and_broadcast(self, found):
        own, averages, broadcast = found.parts("own"), found.parts("average"), found.parts("broadcast")
        assert len(differing(*own)) == len(own[0]) == 5
        assert_equal(*averages)
        assert_equal(*broadcast)
        for name, average in averages[0].items():
            assert average.tobytes() == ((own[0][name] + own[1][name]) / np.float32(2)).tobytes()
        assert_equal(broadcast[0], {**own[0], **averages[0]})


class TestTheMeanOfGradients:
    @pytest.mark.parametrize("kind", choices.ALL_REDUCES)
    def test_bit_for_bit(self, found, kind):
        """MindSpore's own reducer is what runs of before were made with."""
        for parts in found.parts(f"mean of {kind}"):
            for mean, *own in zip(parts.values(), *map(own_gradients, range(2)), strict=True):
                expected = (own[0] + own[1]) * np.float32(0.5)
                assert (mean.shape, mean.tobytes()) == (expected.shape, expected.tobytes())

    def test_training_leaves_mindspores_parallel_context_alone(self, found):
        assert [facts["parallel_mode"] for facts in found.facts] == ["stand_alone"] * 2


class TestTraining:
    @pytest.mark.parametrize("name", FROZEN)
    def test_it_starts_from_one_network(self, found, name):
        """Although each rank has a seed of its own."""
        assert_equal(*found.parts(f"start of {name}"))

    @pytest.mark.parametrize("name", FROZEN)
    def test_two_halves_of_a_batch_are_the_batch(self, found, name):
        """With clipping, momentum and weight decay; BN is frozen, as its statistics are those of a rank's half."""
        first, second = found.parts(name)
        assert_equal(first, second)
        with context_mode("pynative"):
            net, step = build(recipe(**FROZEN[name]), Ranks())
            (start, _) = found.parts(f"start of {name}")
            for parameter in net.get_parameters():
                parameter.set_data(type(parameter.data)(start[parameter.name]))
            outcomes = run(step, Ranks(), range(STEPS))
        np.testing.assert_allclose(np.array(found.facts[0][name])[:, 0], np.array(outcomes)[:, 0], rtol=1e-5)
        assert found.facts[0][name] == found.facts[1][name]
        for parameter in net.get_parameters():
            assert relative_difference(first[parameter.name], parameter) < 1e-5, parameter.name
            if parameter.name.endswith(("conv.weight", "linear.weight")):
                assert relative_difference(start[parameter.name], parameter) > 1e-2, "negative control"

    def test_only_the_statistics_differ(self, found):
        names = differing(*found.parts("free"))
        assert all(name.endswith(STATISTICS) for name in names)
        assert any(name.startswith("ema.") for name in names)
        every = [name for name in found.parts("free")[0] if name.endswith(STATISTICS)]
        assert sorted(names) == sorted(every)
        assert found.facts[0]["free"] == found.facts[1]["free"], "the loss is that of the whole batch"

    def test_averaging_makes_them_equal(self, found):
        first, second = found.parts("averaged")
        assert_equal(first, second)
        own = found.parts("spoilt")
        for name, array in own[0].items():
            if name.endswith(STATISTICS):
                assert first[name].tobytes() == ((array + own[1][name]) / np.float32(2)).tobytes()
            else:
                assert first[name].tobytes() == array.tobytes()
        good = [name for name in first if name.startswith("good.")]
        assert len(good) == len([name for name in own[0] if name.endswith(STATISTICS)]) / 2
        for name in good:
            assert first[name].tobytes() == first[name.removeprefix("good.")].tobytes()

    def test_a_checkpoint_gets_the_statistics_of_all(self, found):
        rows, others = (arrays["statistics_of_ranks"] for arrays in found.arrays)
        assert rows.tobytes() == others.tobytes()
        for row, own in zip(rows, found.parts("spoilt"), strict=True):
            values = [array for name, array in own.items() if name.endswith(STATISTICS)]
            assert row.tobytes() == np.concatenate(values).tobytes()

    def test_an_overflow_on_one_is_skipped_by_both(self, found):
        for facts in found.facts:
            assert [done for _, done in facts["free"]] == [True] * 4
            assert [done for _, done in facts["spoilt"]] == [False]
            assert facts["scale"] == 512
        for before, after in zip(found.parts("free"), found.parts("spoilt"), strict=True):
            assert_equal(before, after)
            assert all(np.isfinite(array).all() for array in after.values())

    def test_precise_bn_counts_every_batch(self, found):
        first, second = found.parts("precise")
        assert_equal(first, second)
        net = create_model("repvgg", CLASSES, **recipe().model_args)
        (averaged, _) = found.parts("averaged")
        for parameter in net.get_parameters():
            parameter.set_data(type(parameter.data)(averaged[parameter.name]))
        with context_mode("pynative"):
            precise_bn(net, [type(net.linear.bias.data)(x) for rank in range(2) for x in batches_of(rank)], Ranks())
        for parameter in bn_statistics(net):
            np.testing.assert_allclose(first[parameter.name], parameter.asnumpy(), rtol=1e-5, atol=1e-6)

    def test_what_the_cpu_cannot_do(self, found):
        for facts in found.facts:
            assert re.fullmatch(
                r"RecipeError: sync_bn \(=True\) is not possible on this device: .*; leave it out", facts["sync_bn"]
            )


def test_validation_is_that_of_one_process(found):
    """23 images: the second rank has one less, and the last batch of both is not full."""
    with context_mode("pynative"):
        expected = validation(Ranks())
    assert expected["num_images"] == 23
    assert 0 < expected["correct"] < 23
    for facts in found.facts:
        assert facts["validation"].pop("loss") == pytest.approx(expected["loss"], rel=1e-12)
        assert facts["validation"] == {name: value for name, value in expected.items() if name != "loss"}


class TestTheCommand:
    def test_one_writes(self, whole):
        folder = whole
        assert sorted(path.name for path in folder.iterdir()) == [
            *(".lock", "curves.png", "log.jsonl", "recipe.yaml"),
            *("repvgg-2.ckpt", "repvgg_best.ckpt", "repvgg_ema_best.ckpt", "repvgg_last.ckpt"),
        ]
        places = [(r["event"], r["step"]) for r in records(folder)]
        assert len(set(places)) == len(places) == EPOCHS * (STEPS_PER_EPOCH + 2)
        assert [r["num_images"] for r in records(folder) if r["event"].startswith("validate")] == [1000] * 2 * EPOCHS

    def test_one_speaks(self, whole):
        first, second = (Printed(whole.parent).of_rank(rank) for rank in range(2))
        assert "2 epochs of 3 steps of 1,280 images (320 x 2 devices x 2 batches)" in first
        assert first.count("done: ") == 1
        assert (
            f"\n2 processes; rank 0 prints into {whole.parent / 'msrun' / 'worker_0.log'}, the others beside it\n"
            in first
        )
        assert "Constant value tensor" not in first, "gradients would be compiled into the step, anew each time"
        assert "epoch" not in second
        assert "done" not in second

    def test_what_it_saved_is_as_good_as_it_said(self, whole):
        net = load_checkpoint(whole / "repvgg_best.ckpt")
        claimed = net.metadata["metrics"]
        with context_mode("pynative"):
            judged = evaluate(net, eval_loader(recipe_of(net, {})))
        assert (judged.correct, judged.num_images) == (claimed["correct"], 1000)
        assert judged.loss == pytest.approx(claimed["loss"], rel=1e-6)


@pytest.fixture(scope="module")
def bereft(whole, tmp_path_factory):
    """The folder of the same run, whose second worker is killed in the second epoch, and what happened then."""

    def make(place):
        with start_two(command(whole.parent / "tiny.yaml", place / "run"), place) as started:
            assert wait_until(lambda: last_step(place / "run") > STEPS_PER_EPOCH, started), started.text()
            workers = started.workers()
            assert sorted(workers) == [0, 1]
            # msrun, which would kill the other within a second, must not help.
            with started.launcher_stopped():
                os.kill(workers[1], signal.SIGKILL)
                killed = time.monotonic()
                while 0 in started.workers() and time.monotonic() < killed + 60:
                    time.sleep(0.05)
                survived = time.monotonic() - killed
            return {"pid": workers[1], "survived": survived, "status": started.wait(120)}

    place, happened = once(tmp_path_factory, "bereft", make)
    return place / "run", happened


@pytest.mark.slow  # the default suite has the guard that ends the other one, in runtime/test_gathering.py
class TestAWorkerThatDies:
    def test_the_other_ends_soon_and_tells(self, bereft):
        folder, happened = bereft
        assert happened["survived"] < 10
        assert happened["status"] != 0
        (line,) = [line for line in Printed(folder.parent).of_rank(0).splitlines() if line.startswith("error: ")]
        assert line == (
            f"error: rank 1 (process {happened['pid']}) died, so rank 0 ends too; its own output tells why. Every "
            f"checkpoint is whole: start again with --resume"
        )

    def test_the_last_checkpoint_is_whole(self, bereft):
        folder = bereft[0]
        net = load_checkpoint(folder / "repvgg_last.ckpt")
        assert net.metadata["position"]["epoch"] >= 1
        assert all(np.isfinite(parameter.asnumpy()).all() for parameter in net.get_parameters())

    @pytest.mark.slow  # the default suite has one process that is killed, in test_kill.py
    def test_two_go_on_exactly(self, whole, bereft, tmp_path):
        shutil.copytree(bereft[0], tmp_path / "run")
        run_two(command(whole.parent / "tiny.yaml", tmp_path / "run", "--resume"), tmp_path)
        assert_same_run(tmp_path / "run", whole)

    def test_one_goes_on_and_says_so(self, whole, bereft, tmp_path, call, caplog):
        """With the global batch of two, so that the epochs are those of before."""
        folder = shutil.copytree(bereft[0], tmp_path / "run")
        done = read_weights(folder / "repvgg_last.ckpt").description["step"]
        yaml = whole.parent / "tiny.yaml"
        options = ["--ckpt_save_dir", folder, "--resume", "--batch_size", "640"]
        status, _, err = call("train", "-c", yaml, *options)
        assert status == 0, err
        said = "\n".join(caplog.messages)
        assert "was saved on 2 devices (1280 images a step), this run is on 1 (1280): it goes on, but not bit" in said
        assert "is started again" not in said
        steps = [r["step"] for r in records(folder) if r["event"] == "train"]
        assert steps == list(range(1, STEPS_PER_EPOCH * EPOCHS + 1))
        kept = [r for r in records(whole) if r["step"] <= done]
        assert records(folder)[: len(kept)] == kept
        assert checkpoints(folder) == checkpoints(whole)
