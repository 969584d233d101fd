"""Policies: their tables are MindCV's, and what is drawn has the published distribution."""

import collections
import itertools
import math
import random
import re

import cv2
import numpy as np
import pytest

from mindrepvgg.data import policies
from mindrepvgg.data.image_operations import Canvas
from mindrepvgg.data.policies import build_policy

FILL = (124, 116, 104)
CANVAS = Canvas(FILL, cv2.INTER_LINEAR)

# MindCV's help texts, recipes and docstrings, and the plain names.
POLICIES = [
    "autoaug", "autoaug-mstd0.5", "autoaugr", "autoaugr-mstd0.5", "3a", "randaug", "randaug-m7-mstd0.5",
    "randaug-m9-mstd0.5-inc1", "randaug-w0-n3-mstd0.5", "randaug-m10-n2-w0-mstd0.5-mmax10-inc0",
    "randaug-m9-n2-mstd0.5-mmax10-inc1-w0", "randaug-m15-mmax20-mstd101", "trivialaugwide", "trivialaugwide-m20",
    "augmix", "augmix-m5-w4-d2",
]  # fmt: skip


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
