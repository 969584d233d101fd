import collections
import dataclasses
import itertools
import math
import random
import re

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mindrepvgg.data import policies
from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.operations import Canvas, color_jitter, operate, random_erasing
from mindrepvgg.data.policies import build_policy
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.recipe.schema import KEYS, Recipe

FILL = (124, 116, 104)
CANVAS = Canvas(FILL, cv2.INTER_LINEAR)
LEAST = {"scale": (0.08, 1), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}

# MindCV's help texts, recipes and docstrings, and the plain names.
POLICIES = [
    "autoaug", "autoaug-mstd0.5", "autoaugr", "autoaugr-mstd0.5", "3a", "randaug", "randaug-m7-mstd0.5",
    "randaug-m9-mstd0.5-inc1", "randaug-w0-n3-mstd0.5", "randaug-m10-n2-w0-mstd0.5-mmax10-inc0",
    "randaug-m9-n2-mstd0.5-mmax10-inc1-w0", "randaug-m15-mmax20-mstd101", "trivialaugwide", "trivialaugwide-m20",
    "augmix", "augmix-m5-w4-d2",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    """Real photographs, (N, 96, 128, 3); flat colours and few colours among them, where tables have corner cases."""
    photos = labelled_photos()
    if photos is None:
        pytest.skip("needs real photographs: pip install --no-deps foolbox==3.3.4")
    arrays = [np.asarray(Image.open(path).convert("RGB").resize((128, 96))) for path in photos.files.paths[:8]]
    flat = np.full((96, 128, 3), (9, 200, 30), np.uint8)
    few = np.where(np.random.default_rng(0).random((96, 128, 3)) < 0.001, 250, flat).astype(np.uint8)
    stack = np.stack([*arrays, flat, few])
    stack.setflags(write=False)
    return stack


def largest_difference(got, expected):
    return np.abs(got.astype(int) - np.asarray(expected)).max()


# Operations against Pillow


def enhance(kind):
    return lambda picture, factor: kind(picture).enhance(factor)


EXACT = {
    "AutoContrast": (lambda picture, _: ImageOps.autocontrast(picture), [None]),
    "Equalize": (lambda picture, _: ImageOps.equalize(picture), [None]),
    "Identity": (lambda picture, _: picture, [None]),
    "Invert": (lambda picture, _: ImageOps.invert(picture), [None]),
    "Posterize": (ImageOps.posterize, range(1, 9)),
    "Solarize": (ImageOps.solarize, [0, 1, 127, 128, 255, 256, 300]),
}
BLENDED = {
    "Brightness": (enhance(ImageEnhance.Brightness), [0, 0.1, 0.37, 0.999, 1, 1.4, 1.9, 2.8]),
    "Color": (enhance(ImageEnhance.Color), [0, 0.1, 0.37, 1, 1.4, 1.9]),
    "Contrast": (enhance(ImageEnhance.Contrast), [0, 0.1, 0.37, 1, 1.4, 1.9]),
    "Sharpness": (enhance(ImageEnhance.Sharpness), [0.1, 0.37, 1, 1.4, 1.9]),
}


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(("name", "tolerance"), [*zip(EXACT, itertools.repeat(0)), *zip(BLENDED, itertools.repeat(1))])
def test_an_operation_is_pillows(pictures, name, tolerance, gray):
    pillows, amounts = (EXACT | BLENDED)[name]
    for picture, amount in itertools.product(pictures, amounts):
        original = Image.fromarray(picture).convert("L" if gray else "RGB")
        got = operate(np.asarray(original), name, amount, CANVAS)
        assert got.dtype == np.uint8
        assert largest_difference(got, pillows(original, amount)) <= tolerance, amount


def test_the_comparison_sees_a_slightly_different_amount(pictures):
    for name, amount, other in (("Posterize", 4, 5), ("Solarize", 128, 130), ("Brightness", 1.4, 1.42),
                                ("Color", 1.4, 1.45), ("Contrast", 0.6, 0.63), ("Sharpness", 1.9, 1.8)):  # fmt: skip
        pillows = (EXACT | BLENDED)[name][0]
        difference = largest_difference(
            operate(pictures[0], name, amount, CANVAS), pillows(Image.fromarray(pictures[0]), other)
        )
        assert difference > (name in BLENDED), name


def test_posterizing_to_no_bit_is_black(pictures):
    assert not operate(pictures[0], "Posterize", 0, CANVAS).any()


def test_blurring_is_pillows_gaussian(pictures):
    for radius in (0.1, 0.5, 1, 2):
        expected = Image.fromarray(pictures[0]).filter(ImageFilter.GaussianBlur(radius))
        got = operate(pictures[0], "GaussianBlur", radius, CANVAS)
        assert np.abs(got.astype(int) - np.asarray(expected)).mean() < 0.8  # Pillow's is an approximation
        assert radius < 0.5 or np.abs(got.astype(int) - pictures[0]).mean() > 2


def pillow_moved(picture, name, amount, kernel):
    original = Image.fromarray(picture)
    fill = FILL if picture.ndim == 3 else FILL[0]
    if name == "Rotate":
        return original.rotate(amount, resample=kernel, fillcolor=fill)
    matrix = {
        "ShearX": (1, amount, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, amount, 1, 0),
        "TranslateX": (1, 0, amount * original.width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, amount * original.height),
    }[name]
    return original.transform(original.size, Image.Transform.AFFINE, matrix, resample=kernel, fillcolor=fill)


KERNELS = {cv2.INTER_LINEAR: Image.Resampling.BILINEAR, cv2.INTER_CUBIC: Image.Resampling.BICUBIC}
MOVES = [("Rotate", 24.0), ("Rotate", -135.0), ("ShearX", 0.3), ("ShearX", -0.9), ("ShearY", 0.3), ("ShearY", -0.15),
         ("TranslateX", 0.45), ("TranslateX", -0.1), ("TranslateY", 0.45), ("TranslateY", -0.1)]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("name", "amount"), MOVES)
def test_a_moved_picture_lies_where_pillow_puts_it(pictures, name, amount, kernel):
    canvas = Canvas(FILL, kernel)
    # On a ramp every kernel gives the position itself; 4x is well inside both pictures and away from their seams.
    rows, columns = np.mgrid[:96, :128]
    ramp = np.dstack([2 * rows, columns, rows + columns]).astype(np.uint8)
    got = operate(ramp, name, amount, canvas).astype(int)
    expected = np.asarray(pillow_moved(ramp, name, amount, KERNELS[kernel])).astype(int)
    filled = (expected == FILL).all(axis=2).astype(np.uint8)
    inside = cv2.dilate(filled, np.ones((7, 7))) == 0
    inside[:4], inside[-4:], inside[:, :4], inside[:, -4:] = 0, 0, 0, 0
    assert inside.mean() > 0.2
    assert np.abs(got - expected)[inside].max() <= 1
    outside = cv2.erode(filled, np.ones((5, 5)), borderValue=1) == 1
    assert outside.mean() > 0.03
    assert (got[outside] == FILL).all()
    for picture in pictures[:3]:
        for view in (picture, picture[..., 1]):
            got = operate(view, name, amount, canvas).astype(int)
            expected = np.asarray(pillow_moved(view, name, amount, KERNELS[kernel]))
            mirrored = np.asarray(pillow_moved(view, name, -amount, KERNELS[kernel]))
            assert np.abs(got - expected).mean() < 3
            assert np.abs(got - mirrored).mean() > 10


# Colour jitter


class Scripted:
    """A generator whose numbers are given."""

    def __init__(self, factors, order):
        self.factors, self.order = factors, order

    def uniform(self, low, high, size):
        assert (low, high, size) == (0.6, 1.4, 3)
        return np.array(self.factors)

    def permutation(self, count):
        assert count == 3
        return np.array(self.order)


def blended(values, index, factor):
    """The definition in float64: brightness, contrast or saturation of (H, W) or (H, W, 3)."""
    luma = values if values.ndim == 2 else values @ [0.299, 0.587, 0.114]
    start = (0, luma.mean(), luma if values.ndim == 2 else luma[..., None])[index]
    return np.clip(start + factor * (values - start), 0, 255)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_jitter_changes_colours_in_the_order_drawn(pictures, order):
    factors = (1.4, 0.65, 1.35)
    for picture in (*pictures[:4], *pictures[:2, ..., 1]):
        expected, others = picture.astype(float), picture.astype(float)
        for index, other in zip(order, reversed(order), strict=True):
            expected, others = blended(expected, index, factors[index]), blended(others, other, factors[other])
        got = color_jitter(picture, 0.4, Scripted(factors, order))
        # Each stage rounds, which the later factors enlarge.
        assert np.abs(got - expected).max() <= 3
        assert np.abs(got - expected).mean() < 0.7
        assert np.abs(got - others).mean() > 2


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 60, 140), (0, 100, 100), (1.5, 0, 250)])
def test_jitter_factors_are_uniform(strength, low, high):
    # Contrast and saturation do not change a flat gray picture, which shows the factor of brightness alone.
    rng = np.random.default_rng(0)
    flat = np.full((2, 2, 3), 100, np.uint8)
    values = [color_jitter(flat, strength, rng)[0, 0, 0] for _ in range(3000)]
    quartiles = np.linspace(low, high, 5)
    assert np.abs(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]) - quartiles).max() <= 0.04 * (high - low) + 1


# Random erasing


def erased(shape, scale, ratio, rng, value=5):
    image = np.zeros((3, *shape), np.float32)
    random_erasing(image, scale, ratio, value, rng)
    assert ((image == 0) | (image == value)).all()
    assert (image == image[:1]).all()
    rows, columns = np.nonzero(image[0])
    if not len(rows):
        return None
    box = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == box[2] * box[3]
    return box


def test_erased_boxes_are_as_published():
    rng = np.random.default_rng(0)
    # Small enough that every first draw fits, so the distributions are the plain ones.
    boxes = np.array([erased((200, 200), (0.02, 0.2), (0.5, 2), rng) for _ in range(3000)])
    area, aspect = boxes[:, 2] * boxes[:, 3] / 200**2, boxes[:, 2] / boxes[:, 3]
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.02, 0.065, 0.11, 0.155, 0.2], atol=0.008)
    np.testing.assert_allclose(np.quantile(aspect, [0, 0.25, 0.5, 0.75, 1]), [0.5, 0.875, 1.25, 1.625, 2], atol=0.08)
    room = 200 - boxes[:, 2:]
    place = boxes[:, :2] / room
    assert place.min() == 0
    assert place.max() == 1
    np.testing.assert_allclose(place.mean(axis=0), 0.5, atol=0.03)


def test_a_box_that_does_not_fit_is_drawn_ten_times():
    class Counting:
        draws = 0

        def uniform(self, low, high):
            self.draws += 1
            return high

    rng = Counting()
    assert erased((10, 10), (0.9, 0.9), (3, 3), rng) is None
    assert rng.draws == 20
    assert erased((10, 10), (1, 1), (1, 1), np.random.default_rng(0)) == (0, 0, 10, 10)


# Policies


@pytest.fixture
def record(monkeypatch):
    """Leave the picture alone and note each operation with its amount."""
    done = []
    monkeypatch.setattr(policies, "operate", lambda picture, name, amount, _: done.append((name, amount)) or picture)
    return done


def drawn(record, text, count=4000, seed=0):
    """The operations on each of `count` pictures."""
    policy, rng, results = build_policy(text, FILL, cv2.INTER_LINEAR), np.random.default_rng(seed), []
    for _ in range(count):
        record.clear()
        policy(np.zeros((4, 4, 3), np.uint8), rng)
        results.append(tuple(record))
    return results


def frequencies(results):
    """How often each sequence of names was drawn."""
    counts = collections.Counter(tuple(name for name, _ in operations) for operations in results)
    return {names: count / len(results) for names, count in counts.items()}


def assert_close_frequencies(got, expected, count):
    """Each within five standard deviations."""
    for names in got.keys() | expected.keys():
        probability = expected.get(names, 0)
        allowed = 5 * math.sqrt(probability * (1 - probability) / count)
        assert abs(got.get(names, 0) - probability) <= allowed + 1e-12, names


def amounts(results):
    """All amounts of each operation."""
    found = collections.defaultdict(list)
    for name, amount in itertools.chain.from_iterable(results):
        found[name].append(amount)
    return found


# MindCV has a name for each of the ways to turn a magnitude into an amount; here a policy has one of them.
def plain_name(name):
    return {"Desaturate": "Color"}.get(name, re.sub("Original|Increasing|Rand$", "", name))


def mindcv_policy(name):
    """Rows of (operation's plain name, MindCV's own, probability, magnitude)."""
    theirs = pytest.importorskip("mindcv.data.auto_augment").auto_augment_policy(name, {"magnitude_std": 0})
    return [[(plain_name(op.name), op.name, op.prob, op.magnitude) for op in row] for row in theirs]


@pytest.mark.parametrize("name", ["autoaug", "autoaugr", "3a"])
def test_sub_policies_are_mindcvs_and_drawn_evenly(record, name):
    table = mindcv_policy(name)
    ours = policies._THREE_AUGMENT if name == "3a" else policies._AUTOAUGMENT
    assert [list(row) for row in ours] == [[(plain, *numbers) for plain, _, *numbers in row] for row in table]
    expected = collections.Counter()
    for row in table:
        for applied in itertools.product([True, False], repeat=len(row)):
            probability = math.prod(op[2] if done else 1 - op[2] for op, done in zip(row, applied, strict=True))
            names = tuple(op[0] for op, done in zip(row, applied, strict=True) if done)
            expected[names] += probability / len(table)
    assert sum(expected.values()) == pytest.approx(1)
    assert_close_frequencies(frequencies(drawn(record, name, 20000)), expected, 20000)


def mindcv_amounts(name, magnitude):
    """The amounts of MindCV's operation, of both signs."""
    function = pytest.importorskip("mindcv.data.auto_augment").LEVEL_TO_ARG[name]
    return {None} if function is None else {function(magnitude, {})[0] for _ in range(40)}


@pytest.mark.parametrize("name", ["autoaug", "autoaugr"])
def test_published_magnitudes_without_noise_give_mindcvs_amounts(record, name):
    expected = collections.defaultdict(set)
    for plain, theirs, _, magnitude in itertools.chain.from_iterable(mindcv_policy(name)):
        expected[plain] |= mindcv_amounts(theirs, magnitude)
    got = {key: set(values) for key, values in amounts(drawn(record, f"{name}-mstd0")).items()}
    assert got.keys() == expected.keys()
    for key, values in got.items():
        # The published threshold goes up to 256, MindCV's to 255.
        tolerance = 1 if key == "Solarize" else 1e-9
        assert values == expected[key] == {None} or np.allclose(sorted(values), sorted(expected[key]), atol=tolerance)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
def test_randaugment_amounts_are_mindcvs(record, magnitude, increasing):
    theirs = pytest.importorskip("mindcv.data.auto_augment")
    names = theirs._RAND_INCREASING_TRANSFORMS if increasing else theirs._RAND_TRANSFORMS
    got = amounts(drawn(record, f"randaug-m{magnitude}-mstd0-inc{int(increasing)}"))
    assert got.keys() == {plain_name(name) for name in names}
    for name in names:
        values, expected = set(got[plain_name(name)]), mindcv_amounts(name, magnitude)
        tolerance = 1 if name.startswith("Solarize") else 1e-9
        assert values == expected == {None} or np.allclose(sorted(values), sorted(expected), atol=tolerance), name


def test_signs_are_fair(record):
    values = amounts(drawn(record, "randaug-n4-mstd0", 8000))
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        assert 0.45 < np.mean(np.array(values[name]) > 0) < 0.55


def test_magnitudes_are_noisy_around_m_and_cut_off_at_mmax(record):
    def degrees(text):
        return np.abs(amounts(drawn(record, text, 12000))["Rotate"])  # three a unit of magnitude

    noisy = degrees("randaug-m6-n4-mstd0.5")
    assert noisy.mean() == pytest.approx(18, abs=0.15)
    assert noisy.std() == pytest.approx(1.5, rel=0.1)
    assert degrees("randaug-m6-n4").std() == pytest.approx(1.5, rel=0.1)
    assert set(degrees("randaug-m6-n4-mstd0")) == {18}
    cut = degrees("randaug-m9-n4-mstd2")
    assert cut.max() == 30
    assert 0.25 < np.mean(cut == 30) < 0.37  # of a normal distribution 0.31 lie half a deviation and more above
    assert degrees("randaug-m9-n4-mstd2-mmax20").max() > 35
    uniform = degrees("randaug-m8-n4-mstd101")
    np.testing.assert_allclose(np.quantile(uniform, [0, 0.25, 0.5, 0.75, 1]), [0, 6, 12, 18, 24], atol=1.5)


def test_randaugment_applies_each_of_n_even_choices_half_the_time(record):
    results = drawn(record, "randaug-n2", 20000)
    lengths = np.bincount([len(operations) for operations in results]) / len(results)
    np.testing.assert_allclose(lengths, [0.25, 0.5, 0.25], atol=0.02)
    names = [name for name, _ in itertools.chain.from_iterable(results)]
    assert_close_frequencies(
        {name: count / len(names) for name, count in collections.Counter(names).items()},
        dict.fromkeys(policies._RANDAUGMENT, 1 / 14),
        len(names),
    )
    assert any(len(operations) == 2 and operations[0][0] == operations[1][0] for operations in results)


def test_randaugment_weights_are_mindcvs_and_allow_no_operation_twice(record):
    theirs = pytest.importorskip("mindcv.data.auto_augment")._RAND_CHOICE_WEIGHTS_0
    first = [operations[0][0] for operations in drawn(record, "randaug-n1-w0", 20000) if operations]
    got = {name: count / len(first) for name, count in collections.Counter(first).items()}
    assert_close_frequencies(got, {name: weight / sum(theirs.values()) for name, weight in theirs.items()}, len(first))
    for chain in drawn(record, "randaug-n13-w0", 200):
        assert len({name for name, _ in chain}) == len(chain)


def test_trivialaugment_draws_one_of_31_strengths_of_the_wide_space(record):
    results = drawn(record, "trivialaugwide", 20000)
    names = ("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color", "Posterize", "Contrast",
             "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY")  # fmt: skip
    assert_close_frequencies(frequencies(results), {(name,): 1 / 14 for name in names}, 20000)
    got = {name: sorted(set(values)) for name, values in amounts(results).items()}
    assert got["Identity"] == got["AutoContrast"] == got["Equalize"] == [None]
    strengths = np.arange(31) / 30
    for name, most in (
        ("Rotate", 135),
        ("ShearX", 0.99),
        ("ShearY", 0.99),
        ("TranslateX", 1 / 7),
        ("TranslateY", 1 / 7),
    ):
        np.testing.assert_allclose(got[name], most * np.concatenate([-strengths[:0:-1], strengths]), atol=1e-12)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        np.testing.assert_allclose(got[name], 0.01 + 1.99 * strengths)
    assert got["Posterize"] == list(range(2, 9))
    assert (got["Solarize"][0], got["Solarize"][-1], len(got["Solarize"])) == (0, 256, 31)
    weak = amounts(drawn(record, "trivialaugwide-m11"))
    assert max(weak["Rotate"]) == pytest.approx(45)
    assert len(set(weak["Color"])) == 11


def test_augmix_runs_w_chains_of_d_operations(record):
    assert {len(operations) for operations in drawn(record, "augmix-w4-d2", 50)} == {8}
    lengths = collections.Counter(len(operations) for operations in drawn(record, "augmix-w1", 3000))
    assert set(lengths) == {1, 2, 3}
    assert min(lengths.values()) > 850
    found = amounts(drawn(record, "augmix", 3000))
    assert "Invert" not in found
    assert 8.5 < np.abs(found["Rotate"]).max() <= 9
    assert 0.085 < np.abs(found["TranslateX"]).max() <= 0.09


def test_augmix_blends_the_picture_with_its_chains(pictures):
    policy, rng = build_policy("augmix-w1", FILL, cv2.INTER_LINEAR), np.random.default_rng(0)
    shares = []
    for _ in range(200):
        monochrome = np.full((8, 8, 3), 100, np.uint8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policies, "operate", lambda picture, *_: np.full_like(picture, 200))
            result = policy(monochrome, rng)
        assert (result == result[0, 0, 0]).all()
        shares.append((int(result[0, 0, 0]) - 100) / 100)
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.12)  # Beta(1, 1)


@pytest.mark.parametrize("text", POLICIES)
def test_a_policy_changes_pictures_and_depends_on_its_generator_alone(pictures, text):
    policy, again = (build_policy(text, FILL, cv2.INTER_CUBIC) for _ in range(2))
    changed = 0
    for gray, index in itertools.product((False, True), range(len(pictures))):
        picture = pictures[index, ..., 1] if gray else pictures[index]
        result = policy(picture, np.random.default_rng(index))
        random.seed(index)
        np.random.seed(index)
        assert (result.dtype, result.shape) == (picture.dtype, picture.shape)
        np.testing.assert_array_equal(again(picture, np.random.default_rng(index)), result)
        changed += not np.array_equal(result, picture)
    assert changed >= 4


# What can be asked for


def test_every_key_of_the_recipes_section_is_passed_on():
    names = [field.name for field in dataclasses.fields(Augmentation)]
    assert names == [name for name, key in KEYS.items() if key.section == "augmentation"]
    values = {"scale": (0.2, 0.9), "ratio": (0.5, 2.0), "hflip": 0.1, "vflip": 0.2, "color_jitter": 0.3,
              "auto_augment": "autoaug", "re_prob": 0.4, "re_scale": (0.1, 0.2), "re_ratio": (0.4, 2.5),
              "re_value": 0.5, "mixup": 0.6, "cutmix": 0.7, "cutmix_prob": 0.8, "aug_repeats": 3}  # fmt: skip
    assert dataclasses.asdict(Augmentation.of(Recipe(**values))) == values


def test_what_is_not_asked_for_is_off():
    least, recipes = Augmentation(**LEAST), Augmentation.of(Recipe())
    for field in dataclasses.fields(Augmentation):
        if field.name not in LEAST:
            assert getattr(least, field.name) == getattr(recipes, field.name), field.name
    assert not least.mixes
    assert Augmentation(**LEAST, mixup=0.1).mixes
    assert Augmentation(**LEAST, cutmix=0.1).mixes
