"""Loaders as recipes and checkpoints describe them; data of other classes than the network's are refused."""

from types import SimpleNamespace

import pytest

from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loaders import check_classes, eval_loader, train_loader
from mindrepvgg.errors import DataError, RecipeError
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.models.variants import find
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.runtime.ranks import Ranks

PREPROCESSING = {"mean": [0.1], "std": [0.3], "crop_pct": 0.9, "interpolation": "bicubic"}


def known(**metadata):
    """A network whose checkpoint told this."""
    variant = find("repvgg", num_blocks=(1, 1, 2, 1), widths=(4, 4, 8, 8, 8))
    return SimpleNamespace(metadata=metadata, variant=variant, num_classes=10, in_channels=1)


def test_a_folder_that_is_named_nowhere():
    with pytest.raises(RecipeError, match=r"data_dir is not given .* add --data_dir FOLDER, or --dataset mnist5k"):
        eval_loader(recipe_of(known(preprocessing=PREPROCESSING), {}))


def test_a_folder_that_has_moved_since_training(tmp_path):
    net = known(preprocessing=PREPROCESSING, recipe={"dataset": "folder", "data_dir": str(tmp_path / "photos")})
    with pytest.raises(DataError) as caught:
        eval_loader(recipe_of(net, {}))
    assert str(caught.value) == (
        f"data_dir (='{tmp_path}/photos' in the checkpoint) is not here, or no longer; add --data_dir FOLDER with the "
        "folder's place now"
    )
    with pytest.raises(DataError, match=r"^data_dir .*/none does not exist; give the folder that holds train and val"):
        eval_loader(recipe_of(net, {"data_dir": str(tmp_path / "none")}))


def test_a_divided_folder_is_divided_again(tmp_path):
    for path in [tmp_path / f"{name}/{i}.jpg" for name in range(10) for i in range(4)]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    net = known(preprocessing=PREPROCESSING, recipe={"dataset": "imagenet", "val_share": 0.25})
    folder = {"data_dir": str(tmp_path)}
    own = recipe_of(net, folder)
    train, val = train_loader(own.replace(batch_size=1), Ranks()).source, eval_loader(own).source
    assert (len(train), len(val)) == (30, 10)
    assert not set(map(train.name, range(len(train)))) & set(map(val.name, range(len(val))))
    assert eval_loader(recipe_of(net, {**folder, "val_share": "0"})).num_images == 40


def test_the_loader_is_the_recipes():
    net = known(preprocessing=PREPROCESSING, image_size=[24, 32], dataset="mnist5k")
    built = eval_loader(recipe_of(net, {"batch_size": "5000"}))
    assert (built.num_images, built.batch_size) == (1000, 1000)
    assert built.preprocessing == Preprocessing(
        image_size=(24, 32), mean=(0.1,), std=(0.3,), in_channels=1, crop_pct=0.9, interpolation="bicubic"
    )


class TestCheckClasses:
    @staticmethod
    def check(names, expected):
        net = SimpleNamespace(metadata={} if expected is None else {"class_names": expected})
        check_classes(net, SimpleNamespace(class_names=tuple(names)))

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
            "the data have 3 classes, not the checkpoint's 2: missing ['bee'], unknown ['cow', 'dog']; "
            "give the data set the network was trained on"
        )

    def test_many_others(self):
        with pytest.raises(DataError, match=r"missing \[0, 1, 2, 3, 4\], unknown \[100, 101, 102, 103, 104\];"):
            self.check(range(100, 150), list(range(60)))

    def test_mnist5k_is_what_it_says(self):
        self.check(open_source("mnist5k", None, "val").class_names, list("0123456789"))
