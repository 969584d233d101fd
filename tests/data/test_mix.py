import numpy as np
import pytest

from mindrepvgg.data.mix import Mix, draw_mix, mix_pair, soft_targets

CASES = [(0.8, 0, 1), (0, 1, 1), (0.8, 1, 1), (0.2, 1, 0.5), (0, 0.3, 0.5)]


@pytest.mark.parametrize(("mixup", "cutmix", "probability"), CASES)
def test_mixing_is_mindcvs_when_both_draw_the_same_numbers(monkeypatch, mixup, cutmix, probability):
    theirs = pytest.importorskip("mindcv.data.mixup").Mixup(
        mixup, cutmix, prob=probability, label_smoothing=0, num_classes=7
    )
    kinds = set()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        with monkeypatch.context() as patch:
            for name, draw in (("rand", rng.random), ("beta", rng.beta), ("randint", rng.integers)):
                patch.setattr(np.random, name, draw)
            data = np.random.default_rng(1)
            images, labels = data.normal(size=(6, 3, 10, 14)).astype(np.float32), data.integers(7, size=6)
            expected_images, expected_targets = theirs(images.copy(), labels)
        mix = draw_mix(mixup, cutmix, probability, (10, 14), np.random.default_rng(seed))
        kinds.add("none" if mix is None else "cutmix" if mix.box else "mixup")
        targets = soft_targets(labels, 7, mix)
        for row in range(3) if mix else ():
            mix_pair(images[row], images[5 - row], mix)
        np.testing.assert_allclose(images, expected_images, atol=1e-6)
        np.testing.assert_allclose(targets, expected_targets, atol=1e-6)
    possible = {"mixup": mixup, "cutmix": cutmix, "none": probability < 1}
    assert kinds == {kind for kind, does_occur in possible.items() if does_occur}


def test_alpha_shapes_the_shares():
    def shares(alpha):
        rng = np.random.default_rng(0)
        return np.array([draw_mix(alpha, 0, 1, (4, 4), rng).share for _ in range(4000)])

    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    for alpha in (0.2, 1, 5):
        assert shares(alpha).mean() == pytest.approx(0.5, abs=0.03)
        assert shares(alpha).var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_of_both_each_takes_half_of_the_mixed_batches():
    rng = np.random.default_rng(0)
    mixes = [draw_mix(0.8, 1, 0.6, (32, 32), rng) for _ in range(2000)]
    mixed = [mix for mix in mixes if mix]
    assert 1100 <= len(mixed) <= 1300
    assert 0.45 <= np.mean([mix.box is None for mix in mixed]) <= 0.55


def test_a_box_reaches_every_pixel_and_its_share_is_what_it_leaves():
    rng = np.random.default_rng(0)
    covered = np.zeros((9, 13))
    for _ in range(500):
        mix = draw_mix(0, 1, 1, covered.shape, rng)
        mask = np.zeros(covered.shape)
        mask[mix.box] = 1
        assert mix.share == pytest.approx(1 - mask.mean())
        covered += mask
    assert covered.min() > 0


def test_pairs_exchange_what_they_give():
    rng = np.random.default_rng(0)
    for mix in (Mix(0.3, None), Mix(0.75, (slice(0, 2), slice(1, 3)))):
        first, second = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
        total = first + second
        mix_pair(first, second, mix)
        np.testing.assert_allclose(first + second, total, atol=1e-5)


def test_targets_of_equal_labels_stay_one_hot():
    targets = soft_targets(np.array([2, 1, 2]), 4, Mix(0.3, None))
    np.testing.assert_allclose(targets, np.eye(4)[[2, 1, 2]], atol=1e-7)
