"""Runs that RepOptimizer trains: the search, the scales' file, resuming, and the authors' scales."""

import numpy as np
import pytest
from mindspore import Tensor
from support import relative_difference, weights
from support.processes import assert_same_run
from support.repopt import authors_scales
from support.runs import run_until, tiny

from mindrepvgg import create_model, load_weights, save_checkpoint
from mindrepvgg.errors import CheckpointError, RecipeError
from mindrepvgg.models.scales import scale_shapes
from mindrepvgg.models.variants import find
from mindrepvgg.recipe.provenance import CODE
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.assemble import build_network, build_step
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.containers import read_weights
from mindrepvgg.weights.scales import STATE_PREFIX, initial_scales, read_scales

pytestmark = pytest.mark.usefixtures("digits_read_once", "no_curves")

MODEL = {"model": "repopt_vgg", "model_args": {"num_blocks": [1, 1, 2, 1], "widths": [4, 4, 6, 6, 8]}}
VARIANT = find("repopt_vgg", **MODEL["model_args"])


@pytest.fixture(scope="module")
def search(tmp_path_factory, digits_read_once):
    """The folder of a search of one epoch."""
    folder = tmp_path_factory.mktemp("search")
    Trainer(tiny(folder, **MODEL, block="linear_addition", epoch_size=1, use_nesterov=True)).run()
    return folder


@pytest.mark.slow
def test_a_search_writes_its_scales(search):
    file = search / "repopt_vgg_scales.safetensors"
    found = read_scales(file, VARIANT)
    net = load_weights(search / "repopt_vgg_last.ckpt")
    assert {name: array.shape for name, array in found.items()} == scale_shapes(VARIANT)
    for name, array in initial_scales(VARIANT).items():
        assert np.array_equal(found[name], weights(net)[name])
        assert not np.array_equal(found[name], array), "they were trained"
    assert all(
        np.array_equal(array, found[name])
        for name, array in read_scales(search / "repopt_vgg_last.ckpt", VARIANT).items()
    )


@pytest.mark.slow
def test_a_resumed_run_needs_no_file_and_is_the_whole_run(search, tmp_path):
    file = tmp_path / "scales.safetensors"
    file.write_bytes((search / "repopt_vgg_scales.safetensors").read_bytes())
    options = {**MODEL, "scales": str(file), "use_nesterov": True, "loss_scale_type": "dynamic", "loss_scale": 1024}
    whole = Trainer(tiny(tmp_path / "whole", **options))
    whole.run()
    run_until(Trainer(tiny(tmp_path / "parted", **options)), 7)
    kept = read_scales(file, VARIANT)
    file.unlink()
    last = tmp_path / "parted" / "repopt_vgg_last.ckpt"
    resumed = Trainer(tiny(tmp_path / "parted", **options), resume=last)
    for name, array in kept.items():
        assert np.array_equal(resumed.step.optimizer.scales[name], array)
    resumed.run()
    assert_same_run(tmp_path / "parted", tmp_path / "whole")
    for checkpoint in ("last", "best"):
        path = tmp_path / "whole" / f"repopt_vgg_{checkpoint}.ckpt"
        assert all(np.array_equal(array, kept[name]) for name, array in read_scales(path, VARIANT).items())
    names = read_weights(last).arrays
    assert not any("multiplier" in name for name in names), "they are as large as the weights"
    assert sum(name.startswith(f"training_state.{STATE_PREFIX}") for name in names) == len(kept)


def test_without_scales_it_is_refused_before_it_starts(tmp_path):
    with pytest.raises(RecipeError, match=r"repopt_vgg is trained by RepOptimizer.*--scales FILE.*--scales none"):
        Trainer(tiny(tmp_path, **MODEL))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing.pth", r"nothing.pth\) is no file; give one of the authors'"),
        ("repopt_vgg_scales.safetensors", r"holds scales of another network: \d+ missing: "),
        ("log.jsonl", "log.jsonl"),
    ],
)
def test_files_that_do_not_fit(search, name, text):
    with pytest.raises(CheckpointError, match=text):
        read_scales(search / name, find("repopt_vgg_b1"))


def test_a_checkpoint_without_scales_says_so(tmp_path):
    save_checkpoint(create_model("repopt_vgg", 10, **MODEL["model_args"]), tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="holds no scales of RepOptimizer"):
        read_scales(tmp_path / "plain.ckpt", VARIANT)


class TestTheAuthors:
    """The scales of the authors' repository, where they are on this machine."""

    @pytest.mark.parametrize(("name", "count"), [("b1", 79), ("b2", 79), ("l1", 139), ("l2", 139)])
    def test_their_files_are_read(self, name, count):
        found = read_scales(authors_scales(name), find(f"repopt_vgg_{name}"))
        assert len(found) == count

    def test_the_published_check_values(self):
        found = read_scales(authors_scales("b1"), find("repopt_vgg_b1"))
        means = [found[f"stage3.1.scale_{name}.weight"].mean() for name in ("1x1", "conv", "identity")]
        assert [round(float(mean), 4) for mean in means] == [1.4157, 1.3271, 0.4793]

    @pytest.mark.slow
    def test_a_network_that_starts_from_them_trains(self):
        """RepOpt-VGG-B1 on a few small pictures."""
        recipe = tiny(".", model="repopt_vgg_b1", model_args={}, scales=str(authors_scales("b1")), use_nesterov=True)
        recipe = recipe.replace(CODE, batch_size=16, image_resize=32, weight_decay=4e-5)
        net = build_network(recipe, Ranks())
        u = read_scales(authors_scales("b1"), net.variant)["stage3.1.scale_identity.weight"]
        kernel = net.stage3[1].conv.weight.asnumpy()
        assert relative_difference(kernel[:, :, 1, 1].diagonal(), u) < 0.3, "the rest of the centre is small beside it"
        rng = np.random.default_rng(0)
        step = build_step(recipe, net, np.full(30, 0.05, np.float32), Ranks())
        batch = Tensor(rng.normal(size=(16, 1, 32, 32)).astype("f4")), Tensor(rng.integers(0, 10, 16).astype("i4"))
        losses = [float(step(*batch)[0].asnumpy()) for _ in range(12)]
        assert losses[-1] < losses[0] / 2, losses
