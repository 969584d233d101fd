"""What can be asked of augmentation: the recipe's section of that name."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to its pictures; names and meaning are those of the recipe's section "augmentation".

    scale, ratio: see `random_resized_crop`; hflip, vflip, re_prob: probabilities for a picture, cutmix_prob: for a
    batch to be mixed at all; color_jitter: see `color_jitter`, without effect beside auto_augment; auto_augment: see
    `mindrepvgg.recipe.policies`; re_*: see `random_erasing`; mixup, cutmix: see `mindrepvgg.data.mix.draw_mix`;
    aug_repeats: times a picture is used in a step, augmented anew each time; 0 and 1: once.
    The values are not checked here: `Recipe` has checked them.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    vflip: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str | None = None
    re_prob: float = 0.0
    re_scale: tuple[float, float] = (0.02, 0.33)
    re_ratio: tuple[float, float] = (0.3, 3.3)
    re_value: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_prob: float = 1.0
    aug_repeats: int = 0

    @classmethod
    def of(cls, recipe):
        """Return the augmentation a recipe asks for."""
        return cls(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)})

    @property
    def keeps_pixels(self):
        """Whether what comes out are whole gray levels: nothing is done to pictures once they are normalised."""
        return not (self.re_prob or self.mixes)

    @property
    def mixes(self):
        """Whether batches are mixed, and labels therefore soft."""
        return self.mixup > 0 or self.cutmix > 0
