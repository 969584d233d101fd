"""The recipe's augmentation as one value."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to its pictures, in the words of the recipe's section "augmentation", which checks the values.

    Attributes:
        scale, ratio: see `crop.random_resized_crop`; without effect beside crop_padding.
        crop_padding: see `crop.padded_crop`; 0: the random resized crop.
        hflip, vflip: probabilities of a flip.
        color_jitter: see `operations.color_jitter`; without effect beside auto_augment.
        auto_augment: a policy, see `mindrepvgg.recipe.auto_augment`.
        re_prob: probability of random erasing; re_scale, re_ratio, re_value: see `operations.random_erasing`.
        mixup, cutmix, cutmix_prob: see `mix.draw_mix`.
        aug_repeats: times a picture is used in a step, augmented anew each time; 0 and 1: once.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    crop_padding: int = 0
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
    def of(cls, recipe) -> "Augmentation":
        """The augmentation that a recipe describes."""
        return cls(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)})

    @property
    def keeps_pixels(self) -> bool:
        """Whether pictures stay whole gray levels, because nothing is done after they are normalised."""
        return not (self.re_prob or self.mixes)

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, so that labels are soft."""
        return self.mixup > 0 or self.cutmix > 0
