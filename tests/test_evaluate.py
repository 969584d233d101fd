"""Validation: every image counts once, a checkpoint says how it is to be judged, wrong data are refused."""

import math
import types

import numpy as np
import pytest
from mindspore import Tensor
from support import context_mode

from mindrepvgg import create_model, load_checkpoint, save_checkpoint
from mindrepvgg.data import EvalLoader, Source, open_source
from mindrepvgg.errors import DataError, RecipeError
from mindrepvgg.evaluate import check_classes, eval_loader, evaluate, recipe_of
from mindrepvgg.ranks import Ranks
from mindrepvgg.train.build import build_train_loader

pytestmark = pytest.mark.compat

SHAPE = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}
NUM_IMAGES, NUM_CLASSES, SIDE = 23, 7, 16
MEAN, STD = 0.5, 0.25


@pytest.fixture(scope="module", autouse=True)
def _graph_mode():
    with context_mode("graph"):
        yield


@pytest.fixture(scope="module")
def net():
    net = create_model("repvgg", NUM_CLASSES, 1, **SHAPE)
    rng = np.random.default_rng(1)
    for parameter in net.get_parameters():
        if parameter.name.endswith(("moving_mean", "beta")):
            parameter.set_data(Tensor(rng.normal(0, 0.3, parameter.shape), parameter.dtype))
        if parameter.name == "linear.weight":  # Logits that differ from image to image.
            parameter.set_data(Tensor(rng.normal(0, 30, parameter.shape), parameter.dtype))
    return net.set_train(False)


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 1)).astype(np.uint8)
    # Smooth pictures of different brightness, which the network can tell apart.
    images = (images // 4 + rng.integers(0, 190, (NUM_IMAGES, 1, 1, 1))).astype(np.uint8)
    labels = rng.integers(0, NUM_CLASSES, NUM_IMAGES).astype(np.int32)
    return Source("mnist5k", tuple("abcdefg"), labels, images=images)


def loader(source, batch_size):
    return EvalLoader(
        source,
        batch_size,
        (SIDE, SIDE),
        crop_pct=1.0,
        mean=(MEAN,),
        std=(STD,),
        in_channels=1,
        interpolation="bilinear",
        num_parallel_workers=1,
    )


@pytest.fixture(scope="module")
def expected(net, source):
    """top1, top5, loss and correct, image by image in NumPy and plain Python."""
    images = (source.images.transpose(0, 3, 1, 2) / 255.0 - MEAN) / STD
    logits = net(Tensor(images.astype(np.float32))).asnumpy().astype(np.float64)
    correct = among_five = 0
    losses = []
    for row, label in zip(logits, source.labels, strict=True):
        best = sorted(range(NUM_CLASSES), key=lambda i: -row[i])
        correct += best[0] == label
        among_five += label in best[:5]
        losses.append(math.log(sum(math.exp(x - row[label]) for x in row)))
    assert 0 < correct < among_five < NUM_IMAGES, "the figures must be able to be wrong"
    return {
        "top1": 100 * correct / NUM_IMAGES,
        "top5": 100 * among_five / NUM_IMAGES,
        "loss": sum(losses) / NUM_IMAGES,
        "correct": correct,
    }


@pytest.mark.parametrize("batch_size", [1, 5, 22, 23, 64])
def test_every_image_counts_once(net, source, expected, batch_size):
    result = evaluate(net, loader(source, batch_size))
    assert result.num_images == NUM_IMAGES
    assert result.correct == expected["correct"]
    assert result.top1 == pytest.approx(expected["top1"], abs=1e-9)
    assert result.top5 == pytest.approx(expected["top5"], abs=1e-9)
    assert result.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert result.images_per_second > 0


def test_the_network_is_left_as_it_was(net, source):
    net.set_train(True)
    net.stage1.set_train(False)
    before = {name: cell.training for name, cell in net.cells_and_names()}
    statistics = net.stage2[0].rbr_dense.bn.moving_mean.asnumpy()
    try:
        evaluate(net, loader(source, 23))
        assert {name: cell.training for name, cell in net.cells_and_names()} == before
        np.testing.assert_array_equal(net.stage2[0].rbr_dense.bn.moving_mean.asnumpy(), statistics)
    finally:
        net.set_train(False)


class TestRecipeOf:
    """How a checkpoint says it is to be validated."""

    PREPROCESSING = {"mean": [0.1], "std": [0.3], "crop_pct": 0.9, "interpolation": "bicubic"}  # noqa: RUF012

    @pytest.fixture
    def known(self, tmp_path):
        """A network with this metadata, as it comes from a file."""

        def make(**metadata):
            net = create_model("repvgg", 10, 1, **SHAPE)
            save_checkpoint(net, tmp_path / "net.ckpt", **metadata)
            return load_checkpoint(tmp_path / "net.ckpt")

        return make

    def test_everything_is_told(self, known):
        net = known(preprocessing=self.PREPROCESSING, image_size=[24, 32], dataset="mnist5k")
        recipe = recipe_of(net, {})
        assert (recipe.mean, recipe.std, recipe.crop_pct, recipe.interpolation) == ((0.1,), (0.3,), 0.9, "bicubic")
        assert (recipe.image_size, recipe.dataset) == ((24, 32), "mnist5k")
        assert (recipe.model, recipe.num_classes, recipe.in_channels) == ("repvgg", 10, 1)
        assert recipe.variant == net.variant

    def test_the_training_recipe_is_the_rest(self, known):
        recipe = {"batch_size": 17, "in_channels": 1, "mean": [0.7], "std": [0.7], "image_resize": 99, "num_classes": 3}
        found = recipe_of(
            known(recipe=recipe, preprocessing=self.PREPROCESSING, image_size=[24, 32]), {"dataset": "mnist5k"}
        )
        assert found.batch_size == 17
        assert (found.image_size, found.mean, found.num_classes) == ((24, 32), (0.1,), 10)

    def test_the_command_line_comes_last(self, known):
        net = known(preprocessing=self.PREPROCESSING, image_size=[24, 32], dataset="mnist5k")
        recipe = recipe_of(net, {"image_resize": "64", "batch_size": "9", "crop_pct": "0.5"})
        assert (recipe.image_size, recipe.batch_size, recipe.crop_pct) == ((64, 64), 9, 0.5)
        assert recipe.sources["crop_pct"] == "command line"

    def test_an_override_that_does_not_fit(self, known):
        net = known(preprocessing=self.PREPROCESSING, dataset="mnist5k")
        with pytest.raises(RecipeError, match=r"batch_size \(='0' on the command line\) must be a whole number"):
            recipe_of(net, {"batch_size": "0"})

    def test_a_folder_that_is_named_nowhere(self, known):
        with pytest.raises(RecipeError, match=r"data_dir is not given .* add --data_dir FOLDER, or --dataset mnist5k"):
            recipe_of(known(preprocessing=self.PREPROCESSING), {})

    def test_a_divided_folder_is_divided_again(self, known, tmp_path):
        for path in [tmp_path / f"{name}/{i}.jpg" for name in range(10) for i in range(4)]:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        net = known(preprocessing=self.PREPROCESSING, recipe={"dataset": "imagenet", "val_share": 0.25})
        folder = {"data_dir": str(tmp_path)}
        own = recipe_of(net, folder)
        train, val = build_train_loader(own.replace(batch_size=1), Ranks()).source, eval_loader(own).source
        assert (len(train), len(val)) == (30, 10)
        assert not set(train.files.paths) & set(val.files.paths)
        assert eval_loader(recipe_of(net, {**folder, "val_share": "0"})).num_images == 40

    def test_a_key_of_a_later_version(self, known):
        net = known(preprocessing=self.PREPROCESSING, recipe={"colour_of_2030": 0.4}, dataset="mnist5k")
        with pytest.raises(RecipeError, match="unknown key 'colour_of_2030' in the checkpoint"):
            recipe_of(net, {})

    def test_the_loader_is_the_recipes(self, known):
        net = known(preprocessing=self.PREPROCESSING, image_size=[24, 32], dataset="mnist5k")
        built = eval_loader(recipe_of(net, {"batch_size": "5000"}))
        assert (built.num_images, built.batch_size, built.image_size) == (1000, 1000, (24, 32))
        assert (built.crop_pct, built.interpolation) == (0.9, "bicubic")


class TestCheckClasses:
    @staticmethod
    def check(names, expected):
        net = types.SimpleNamespace(metadata={} if expected is None else {"class_names": expected})
        check_classes(net, types.SimpleNamespace(class_names=tuple(names)))

    @pytest.mark.parametrize("expected", [["cat", "dog"], None])
    def test_the_same_or_unknown(self, expected):
        self.check(["cat", "dog"], expected)

    def test_another_order(self):
        with pytest.raises(DataError, match=r"are the checkpoint's in another order: \['dog', 'cat'\]\.\.\., not \['c"):
            self.check(["dog", "cat"], ["cat", "dog"])

    def test_others(self):
        with pytest.raises(DataError) as caught:
            self.check(["cat", "cow", "dog"], ["bee", "cat"])
        assert str(caught.value) == (
            "the data's 3 classes are not the checkpoint's 2: missing ['bee'], unknown ['cow', 'dog']; "
            "give the data set the network was trained on"
        )

    def test_many_others(self):
        with pytest.raises(DataError, match=r"missing \[0, 1, 2, 3, 4\], unknown \[100, 101, 102, 103, 104\];"):
            self.check(range(100, 150), list(range(60)))

    def test_mnist5k_is_what_it_says(self):
        self.check(open_source("mnist5k", None, "val").class_names, list("0123456789"))
