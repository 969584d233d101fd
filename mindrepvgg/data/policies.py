"""Automatic policies of augmentation, from their published tables and parameters.

Why not a library's: those of MindSpore and of MindCV draw from generators of the whole process, so that their pictures
depend on the number of workers and on everything drawn before. MindCV's (0.3) also shear by at most 0.3 degrees, where
0.3 is the published tangent, posterize to 8 - n bits instead of n, and take mstd for 0.5 whatever it is.
"""

import math

import numpy as np

from mindrepvgg.data.image_operations import Canvas, operate
from mindrepvgg.recipe.auto_augment import MOST_MAGNITUDE, parse_policy

# An operation's amount for a level, which is magnitude / 10, of which one is the usual most


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
                    amount = amounts[name](_noisy_level(magnitude, mstd, MOST_MAGNITUDE, rng), rng)
                    picture = operate(picture, name, amount, canvas)
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
                picture = operate(picture, names[index], amount, canvas)
        return picture

    return augment


def _trivialaugment(canvas, m):
    """Return a policy of one operation, of one of the m weakest of 31 strengths."""

    def augment(picture, rng):
        name = _TRIVIALAUGMENT[rng.integers(len(_TRIVIALAUGMENT))]
        return operate(picture, name, _WIDE[name](rng.integers(m) / 30, rng), canvas)

    return augment


def _augmix(canvas, m, w, d, a):
    """Return a policy that blends a picture with w chains of d (None: 1 to 3) operations. Source: arXiv:1912.02781."""

    def chain(picture, rng):
        for _ in range(d or rng.integers(1, 4)):
            name = _AUGMIX[rng.integers(len(_AUGMIX))]
            amount = _AUGMIX_AMOUNTS[name](_noisy_level(m, math.inf, MOST_MAGNITUDE, rng), rng)
            picture = operate(picture, name, amount, canvas)
        return picture

    def augment(picture, rng):
        share = rng.beta(a, a)
        mixed = (1 - share) * picture
        for weight in rng.dirichlet([a] * w):
            mixed += share * weight * chain(picture, rng)
        return np.rint(mixed).clip(0, 255).astype(np.uint8)

    return augment


# Each maps (canvas, **parts) to the function of (picture, rng).
_BUILDERS = {
    "autoaug": _from_table(_AUTOAUGMENT, _AUTOAUGMENT_AMOUNTS),
    "autoaugr": _from_table(_AUTOAUGMENT, _POSTERIZE_MORE),
    "3a": _from_table(_THREE_AUGMENT, _THREE_AMOUNTS),
    "randaug": _randaugment,
    "trivialaugwide": _trivialaugment,
    "augmix": _augmix,
}


def build_policy(text, fill, kernel):
    """Return the function of (picture, generator) that a policy's text describes; see `mindrepvgg.recipe.auto_augment`.

    fill: a number per channel, the colour where a moved picture ends; kernel: OpenCV's number of the interpolation.
    """
    policy = parse_policy(text)
    return _BUILDERS[policy.name](Canvas(tuple(fill), kernel), **policy.parts)
