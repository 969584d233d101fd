"""Augmentation of single pictures: what can be asked for, colour jitter, automatic policies, random erasing.

The operations are Pillow's ImageOps, ImageEnhance and affine transforms, with which the policies were published,
computed by OpenCV and tables in a fraction of Pillow's time: the same values where a table gives them, at most one gray
level off where colours are blended or sharpened (Pillow cuts fractions off, OpenCV rounds), and OpenCV's kernels where
pixels move. Pictures are uint8, (H, W) or (H, W, 3) RGB, and never changed in place. All random numbers come from the
generator a caller hands in.

Why not a library's policies: those of MindSpore and of MindCV draw from generators of the whole process, so that their
pictures depend on the number of workers and on everything drawn before. MindCV's (0.3) also shear by at most 0.3
degrees, where 0.3 is the published tangent, posterize to 8 - n bits instead of n, and take mstd for 0.5 whatever it is.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from mindrepvgg.errors import RecipeError

_ERASE_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to its pictures; names and meaning are those of the recipe's section "augmentation".

    scale, ratio: see `random_resized_crop`; hflip, vflip, re_prob: probabilities for a picture, cutmix_prob: for a
    batch to be mixed at all; color_jitter: see `color_jitter`, without effect beside auto_augment; auto_augment: see
    `check_policy`; re_*: see `random_erasing`; mixup, cutmix: see `mindrepvgg.data.mix.draw_mix`; aug_repeats: times a
    picture is used in a step, augmented anew each time; 0 and 1: once.
    Raises RecipeError for the first value that cannot be used.
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

    def __post_init__(self):
        for name in ("scale", "re_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise RecipeError(
                    f"{name} (={[low, high]}) must be two rising shares of the area above 0 and at most 1"
                )
        for name, sides in (("ratio", "width / height"), ("re_ratio", "height / width")):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise RecipeError(f"{name} (={[low, high]}) must be two rising {sides} ratios above 0")
        for name in ("hflip", "vflip", "re_prob", "cutmix_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} (={getattr(self, name)}) must be a probability from 0 to 1")
        for name in ("color_jitter", "mixup", "cutmix", "aug_repeats"):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"{name} (={getattr(self, name)}) must be at least 0")
        if self.auto_augment is not None:
            check_policy(self.auto_augment)

    @classmethod
    def of(cls, recipe):
        """Return the augmentation a recipe asks for."""
        return cls(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)})

    @property
    def mixes(self):
        """Whether batches are mixed, and labels therefore soft."""
        return self.mixup > 0 or self.cutmix > 0


# Operations


def _luma(picture):
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _toward(picture, level, factor):
    """Return level + factor * (picture - level); a table, though exact, takes twice the time and more."""
    return cv2.addWeighted(picture, factor, picture, 0, (1 - factor) * level)


def _brightness(picture, factor):
    return _toward(picture, 0, factor)


def _contrast(picture, factor):
    return _toward(picture, int(cv2.mean(_luma(picture))[0] + 0.5), factor)


def _color(picture, factor):
    if picture.ndim == 2:
        return picture
    return cv2.transform(picture, factor * np.eye(3) + (1 - factor) * np.array([0.299, 0.587, 0.114]))


def _sharpness(picture, factor):
    # factor * picture + (1 - factor) * smoothed picture in one filter; Pillow smooths all but the outermost pixels.
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    result = picture.copy()
    result[1:-1, 1:-1] = cv2.filter2D(picture, -1, kernel)[1:-1, 1:-1]
    return result


def _posterize(picture, bits):
    return cv2.LUT(picture, (np.arange(256) & (256 - (1 << (8 - bits)))).astype(np.uint8))


def _solarize(picture, threshold):
    values = np.arange(256)
    return cv2.LUT(picture, np.where(values < threshold, values, 255 - values).astype(np.uint8))


def _invert(picture, _):
    return cv2.bitwise_not(picture)


def _by_channel(picture, table):
    """Send each channel through table(channel)."""
    return cv2.merge([cv2.LUT(channel, table(channel)) for channel in cv2.split(picture)])


def _auto_contrast(picture, _):
    def table(channel):
        low, high, *_ = cv2.minMaxLoc(channel)
        values = np.arange(256)
        if high > low:
            scale = 255 / (high - low)
            values = np.clip(values * scale - low * scale, 0, 255)
        return values.astype(np.uint8)

    return _by_channel(picture, table)


def _equalize(picture, _):
    def table(channel):
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256])[:, 0].astype(np.int64)
        step = (channel.size - counts[counts.nonzero()[0][-1]]) // 255
        values = (step // 2 + counts.cumsum() - counts) // step if step else np.arange(256)
        return np.minimum(values, 255).astype(np.uint8)

    return _by_channel(picture, table)


def _gaussian_blur(picture, radius):
    return cv2.GaussianBlur(picture, (0, 0), radius, borderType=cv2.BORDER_REPLICATE)


_CHANGES = {
    "AutoContrast": _auto_contrast,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Equalize": _equalize,
    "GaussianBlur": _gaussian_blur,
    "Identity": lambda picture, _: picture,
    "Invert": _invert,
    "Posterize": _posterize,
    "Sharpness": _sharpness,
    "Solarize": _solarize,
}


def _rotation(degrees, height, width):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)


# Rows of the matrix from a place in the result to its place in the picture; as in Pillow (0, 0) is the corner and
# (0.5, 0.5) the middle of the first pixel.
_MOVES = {
    "Rotate": _rotation,
    "ShearX": lambda tangent, _height, _width: ((1, tangent, 0), (0, 1, 0)),
    "ShearY": lambda tangent, _height, _width: ((1, 0, 0), (tangent, 1, 0)),
    "TranslateX": lambda share, _height, width: ((1, 0, share * width), (0, 1, 0)),
    "TranslateY": lambda share, height, _width: ((1, 0, 0), (0, 1, share * height)),
}


class _Canvas(NamedTuple):
    """What a picture that is moved lies on: fill: its colour; kernel: OpenCV's number of the interpolation."""

    fill: tuple[int, ...]
    kernel: int


def _operate(picture, name, amount, canvas):
    """Return the picture after operation `name`."""
    if name in _CHANGES:
        return _CHANGES[name](picture, amount)
    height, width = picture.shape[:2]
    matrix = np.array(_MOVES[name](amount, height, width), np.float64)
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV has (0, 0) in the middle of the first pixel
    flags = canvas.kernel | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (width, height), flags=flags, borderValue=canvas.fill)


def color_jitter(picture, strength, rng):
    """Change brightness, contrast and saturation, in random order, by factors uniform in 1 - strength ... 1 + strength.

    Factors below 0 become 0. Gray pictures have no saturation to change.
    """
    factors = rng.uniform(max(0, 1 - strength), 1 + strength, 3)
    for index in rng.permutation(3):
        picture = (_brightness, _contrast, _color)[index](picture, factors[index])
    return picture


def random_erasing(image, scale, ratio, value, rng):
    """Write value into a random box of image (C, H, W), in place.

    scale: (lowest, highest) share of the area, uniform; ratio: (lowest, highest) height / width, uniform. A box that
    does not fit is drawn again; after ten that do not, nothing is written. Source: arXiv:1708.04896, algorithm 1.
    """
    _, height, width = image.shape
    for _ in range(_ERASE_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = rng.uniform(*ratio)
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = rng.integers(height - box_height + 1)
            left = rng.integers(width - box_width + 1)
            image[:, top : top + box_height, left : left + box_width] = value
            return


# Policies: an operation's amount for a level, which is magnitude / 10, of which one is the usual most


def _signed(most):
    return lambda level, rng: most * level * (1 if rng.random() < 0.5 else -1)


def _rising(low, high):
    return lambda level, _rng: low + (high - low) * level


def _around_one(level, rng):
    return max(0.1, 1 + _signed(0.9)(level, rng))


def _none(_level, _rng):
    return None


_NO_AMOUNT = dict.fromkeys(("Identity", "AutoContrast", "Equalize", "Invert"), _none)
_ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")

# arXiv:1805.09501, table 6; posterize as in arXiv:1909.13719. Translations: of the side, as timm and MindCV have them.
_AMOUNTS = {
    **_NO_AMOUNT,
    **dict.fromkeys(_ENHANCERS, _rising(0.1, 1.9)),
    **dict.fromkeys(("ShearX", "ShearY"), _signed(0.3)),
    **dict.fromkeys(("TranslateX", "TranslateY"), _signed(0.45)),
    "Rotate": _signed(30),
    "Posterize": lambda level, _rng: min(int(4 * level), 8),
    "Solarize": lambda level, _rng: int(256 * level),
}
_POSTERIZE_MORE = {**_AMOUNTS, "Posterize": lambda level, _rng: max(4 - int(4 * level), 0)}
_AUTOAUGMENT_AMOUNTS = {**_AMOUNTS, "Posterize": lambda level, _rng: 4 + int(4 * level)}
# A higher level changes a picture more, whatever the operation.
_INCREASING = {
    **_POSTERIZE_MORE,
    **dict.fromkeys(_ENHANCERS, _around_one),
    "Solarize": lambda level, _rng: 256 - int(256 * level),
}
_AUGMIX_AMOUNTS = {**_INCREASING, **dict.fromkeys(("TranslateX", "TranslateY"), _signed(0.3))}
# arXiv:2204.07118, section 3.3
_THREE_AMOUNTS = {
    "Solarize": _AMOUNTS["Solarize"],
    "Color": lambda level, _rng: 0.5 - 0.5 * level,
    "GaussianBlur": lambda level, rng: rng.uniform(0.1, max(0.1, 2 * level)),
}
# arXiv:2103.10158, the wide space; its 32 pixels of translation are a share of the 224 they were published for.
_WIDE = {
    **_NO_AMOUNT,
    **dict.fromkeys(_ENHANCERS, _rising(0.01, 2)),
    **dict.fromkeys(("ShearX", "ShearY"), _signed(0.99)),
    **dict.fromkeys(("TranslateX", "TranslateY"), _signed(32 / 224)),
    "Rotate": _signed(135),
    "Posterize": lambda level, _rng: 8 - int(6 * level),
    "Solarize": lambda level, _rng: 256 - int(256 * level),
}

# arXiv:1805.09501, table 9 (ImageNet): operation, probability, magnitude
_AUTOAUGMENT = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
_THREE_AUGMENT = ((("Solarize", 1.0, 5),), (("Color", 1.0, 10),), (("GaussianBlur", 1.0, 10),))

# An operation and its weight under w0. timm's and MindCV's choice; the paper has Identity in place of Invert, and they
# leave each operation out with probability 0.5 instead.
_RANDAUGMENT = {
    "AutoContrast": 0.025,
    "Equalize": 0.005,
    "Invert": 0.0,
    "Rotate": 0.3,
    "Posterize": 0.005,
    "Solarize": 0.005,
    "Color": 0.025,
    "Contrast": 0.005,
    "Brightness": 0.005,
    "Sharpness": 0.025,
    "ShearX": 0.2,
    "ShearY": 0.2,
    "TranslateX": 0.1,
    "TranslateY": 0.1,
}
_RANDAUGMENT_PROBABILITY = 0.5
_TRIVIALAUGMENT = tuple(name for name in _WIDE if name != "Invert")
_AUGMIX = tuple(name for name in _RANDAUGMENT if name != "Invert")

_MOST = 10  # magnitude
_UNIFORM_ABOVE = 100  # mstd


def _noisy_level(magnitude, mstd, most, rng):
    """Draw a level: the magnitude with normal noise of deviation mstd (huge: anything up to it), cut off, over 10."""
    noisy = rng.uniform(0, magnitude) if mstd > _UNIFORM_ABOVE else rng.normal(magnitude, mstd)
    return min(max(noisy, 0), most) / 10


def _from_table(table, amounts):
    """Return the builder of a policy that takes one row of a table."""

    def build(canvas, mstd):
        def augment(picture, rng):
            for name, probability, magnitude in table[rng.integers(len(table))]:
                if rng.random() < probability:
                    amount = amounts[name](_noisy_level(magnitude, mstd, _MOST, rng), rng)
                    picture = _operate(picture, name, amount, canvas)
            return picture

        return augment

    return build


def _randaugment(canvas, m, n, w, mstd, mmax, inc):
    """Return a policy of n operations, each applied with probability 0.5; w0: weighted, none of them twice."""
    amounts = _INCREASING if inc else _AMOUNTS
    names = tuple(_RANDAUGMENT)
    weights = None if w is None else np.array(list(_RANDAUGMENT.values())) / sum(_RANDAUGMENT.values())

    def augment(picture, rng):
        for index in rng.choice(len(names), n, replace=weights is None, p=weights):
            if rng.random() < _RANDAUGMENT_PROBABILITY:
                amount = amounts[names[index]](_noisy_level(m, mstd, mmax, rng), rng)
                picture = _operate(picture, names[index], amount, canvas)
        return picture

    return augment


def _trivialaugment(canvas, m):
    """Return a policy of one operation, of one of the m weakest of 31 strengths."""

    def augment(picture, rng):
        name = _TRIVIALAUGMENT[rng.integers(len(_TRIVIALAUGMENT))]
        return _operate(picture, name, _WIDE[name](rng.integers(m) / 30, rng), canvas)

    return augment


def _augmix(canvas, m, w, d, a):
    """Return a policy that blends a picture with w chains of d (None: 1 to 3) operations. Source: arXiv:1912.02781."""

    def chain(picture, rng):
        for _ in range(d or rng.integers(1, 4)):
            name = _AUGMIX[rng.integers(len(_AUGMIX))]
            amount = _AUGMIX_AMOUNTS[name](_noisy_level(m, math.inf, _MOST, rng), rng)
            picture = _operate(picture, name, amount, canvas)
        return picture

    def augment(picture, rng):
        share = rng.beta(a, a)
        mixed = (1 - share) * picture
        for weight in rng.dirichlet([a] * w):
            mixed += share * weight * chain(picture, rng)
        return np.rint(mixed).clip(0, 255).astype(np.uint8)

    return augment


class _Part(NamedTuple):
    """A part of a policy's text: what it is when absent, the type of its number, and the number's bounds."""

    default: float | None
    read: type
    least: float
    most: float = math.inf


class _Policy(NamedTuple):
    """build(canvas, **parts) returns the function of (picture, rng)."""

    build: Callable
    parts: dict[str, _Part]


_MSTD = _Part(0.5, float, 0)
_POLICIES = {
    "autoaug": _Policy(_from_table(_AUTOAUGMENT, _AUTOAUGMENT_AMOUNTS), {"mstd": _MSTD}),
    "autoaugr": _Policy(_from_table(_AUTOAUGMENT, _POSTERIZE_MORE), {"mstd": _MSTD}),
    "3a": _Policy(_from_table(_THREE_AUGMENT, _THREE_AMOUNTS), {"mstd": _MSTD}),
    "randaug": _Policy(
        _randaugment,
        {
            "m": _Part(10, int, 0),
            "n": _Part(2, int, 1, 13),  # as many as w0 can tell apart
            "w": _Part(None, int, 0, 0),
            "mstd": _MSTD,
            "mmax": _Part(_MOST, int, 1),
            "inc": _Part(0, int, 0, 1),
        },
    ),
    "trivialaugwide": _Policy(_trivialaugment, {"m": _Part(31, int, 1, 31)}),
    "augmix": _Policy(
        _augmix,
        {"m": _Part(3, int, 0), "w": _Part(3, int, 1), "d": _Part(None, int, 1), "a": _Part(1.0, float, 0.01)},
    ),
}


def _parse(text):
    """Return the `_Policy` a text names and its parts' values; ValueError, with the problem in words, otherwise."""
    name, *given = text.split("-")
    if name not in _POLICIES:
        raise ValueError(f"unknown policy {name!r}")
    policy = _POLICIES[name]
    values = {key: part.default for key, part in policy.parts.items()}
    seen = set()
    for text_part in given:
        match = re.fullmatch(r"([a-z]+)([0-9.]+)", text_part)
        if match is None or match[1] not in policy.parts:
            raise ValueError(f"{name} has no part {text_part!r}")
        key, part = match[1], policy.parts[match[1]]
        if key in seen:
            raise ValueError(f"part {text_part!r} gives {key} a second time")
        seen.add(key)
        try:
            values[key] = part.read(match[2])
        except ValueError:
            raise ValueError(
                f"part {text_part!r} needs {'a whole number' if part.read is int else 'a number'}"
            ) from None
        if not part.least <= values[key] <= part.most:
            most = "" if part.most == math.inf else f" and at most {part.most}"
            raise ValueError(f"part {text_part!r} must be at least {part.least}{most}")
    return policy, values


def check_policy(text):
    """Raise RecipeError unless text is a policy as MindCV and timm write it: a name, then parts, as in autoaug-mstd0.

    autoaug: AutoAugment's policy for ImageNet; autoaugr: with posterizing that grows with its magnitude; 3a: one of
    solarizing, graying and blurring. mstd: standard deviation of a normal noise on every magnitude; default 0.5, as in
    MindCV; mstd0 is the published policy.
    randaug: n (2) operations of magnitude m (10), which mstd (0.5; above 100: uniform from 0 to m) makes noisy and mmax
    (10) cuts off; inc1: all operations grow with the magnitude; w0: likely operations first, none twice.
    trivialaugwide: one operation of one of the m (31) weakest of 31 strengths.
    augmix: w (3) chains of d (default: 1 to 3) operations of magnitudes from 0 to m (3), blended with each other by
    Dirichlet(a) and with the picture by Beta(a, a), a being 1; without the paper's loss, which wants three views.
    """
    try:
        _parse(text)
    except ValueError as error:
        known = ", ".join(f"{name} ({', '.join(policy.parts)})" for name, policy in _POLICIES.items())
        raise RecipeError(f"auto_augment (={text!r}): {error}; the policies and their parts are: {known}") from None


def build_policy(text, fill, kernel):
    """Return the function of (picture, generator) that a policy's text describes; the text is as for `check_policy`.

    fill: a number per channel, the colour where a moved picture ends; kernel: OpenCV's number of the interpolation.
    """
    policy, values = _parse(text)
    return policy.build(_Canvas(tuple(fill), kernel), **values)
