"""The recipe's augmentation as one value."""

import dataclasses

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.recipe.schema import KEYS, Recipe

LEAST = {"scale": (0.08, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}


def test_every_key_of_the_recipes_section_is_passed_on():
    names = [field.name for field in dataclasses.fields(Augmentation)]
    assert names == [name for name, key in KEYS.items() if key.section == "augmentation"]
    values = {"scale": (0.2, 0.9), "ratio": (0.5, 2.0), "crop_padding": 2, "hflip": 0.1, "vflip": 0.2,
              "color_jitter": 0.3, "auto_augment": "autoaug", "re_prob": 0.4, "re_scale": (0.1, 0.2),
              "re_ratio": (0.4, 2.5), "re_value": 0.5, "mixup": 0.6, "cutmix": 0.7, "cutmix_prob": 0.8,
              "aug_repeats": 3}  # fmt: skip
    assert dataclasses.asdict(Augmentation.of(Recipe(**values))) == values


def test_what_is_not_asked_for_is_off():
    least, recipes = Augmentation(**LEAST), Augmentation.of(Recipe())
    for field in dataclasses.fields(Augmentation):
        if field.name not in LEAST:
            assert getattr(least, field.name) == getattr(recipes, field.name), field.name
    assert not least.mixes
    assert Augmentation(**LEAST, mixup=0.1).mixes
    assert Augmentation(**LEAST, cutmix=0.1).mixes
