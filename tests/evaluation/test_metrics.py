import math

import numpy as np
import pytest

from mindrepvgg.evaluation.metrics import ConfusionSum, MetricSum, cross_entropy, topk_correct
from mindrepvgg.runtime.ranks import Ranks


def make_batch(seed, count, classes):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, classes)).astype(np.float32), rng.integers(classes, size=count).astype(np.int32)


def test_topk_agrees_with_a_stable_sort():
    logits, labels = make_batch(0, 500, 20)
    logits = np.round(logits, 1)  # plenty of ties
    first = np.argsort(-logits, axis=1, kind="stable")
    expected = tuple(sum(label in row[:k] for row, label in zip(first, labels, strict=True)) for k in (1, 3, 5))
    assert topk_correct(logits, labels, ks=(1, 3, 5)) == expected


@pytest.mark.parametrize(("label", "expected"), [(0, (1, 1)), (1, (0, 1)), (2, (0, 0))])
def test_among_ties_the_lower_class_index_comes_first(label, expected):
    assert topk_correct(np.zeros((1, 4)), np.array([label]), ks=(1, 2)) == expected


def test_images_that_are_not_valid_do_not_count():
    logits = np.eye(4, 10)
    labels = np.array([0, 1, 9, 3])
    assert topk_correct(logits, labels, np.array([True, True, True, False]), ks=(1,)) == (2,)


@pytest.mark.parametrize("place", [0, 1])
def test_nan_anywhere_in_the_logits_is_wrong(place):
    logits = np.array([[5.0, 1.0, 0.0]])
    logits[0, place] = np.nan
    assert topk_correct(logits, np.array([0]), ks=(1, 5)) == (0, 0)


def test_k_above_the_number_of_classes_counts_every_image():
    logits, labels = make_batch(1, 30, 3)
    assert topk_correct(logits, labels, ks=(5,)) == (30,)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_an_error(label):
    with pytest.raises(ValueError, match=rf"labels {label} \.\.\. {label} must be in 0 \.\.\. 2"):
        topk_correct(np.zeros((1, 3)), np.array([label]))


def test_shapes_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match=r"logits \(2, 3\), labels \(1,\) and valid \(1,\)"):
        topk_correct(np.zeros((2, 3)), np.array([0]))


def test_cross_entropy_agrees_with_the_formula():
    logits, labels = make_batch(2, 40, 7)
    expected = [
        math.log(sum(math.exp(v) for v in row)) - float(row[label]) for row, label in zip(logits, labels, strict=True)
    ]
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-12)


def test_cross_entropy_of_large_logits_does_not_overflow():
    assert cross_entropy(np.array([[1e4, 0.0]], np.float32), np.array([1]))[0] == 1e4


def test_sums_over_ragged_batches_equal_one_batch():
    logits, labels = make_batch(3, 100, 12)
    whole, parts = MetricSum(), MetricSum()
    whole.update(logits, labels)
    for start in range(0, 100, 32):
        padded, padded_labels, valid = np.full((32, 12), np.nan), np.zeros(32, int), np.zeros(32, bool)
        count = len(labels[start : start + 32])
        padded[:count], padded_labels[:count], valid[:count] = (
            logits[start : start + 32],
            labels[start : start + 32],
            True,
        )
        parts.update(padded, padded_labels, valid)
    assert (parts.top1_correct, parts.top5_correct, parts.num_images) == (whole.top1_correct, whole.top5_correct, 100)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert whole.top1 == np.mean(logits.argmax(axis=1) == labels)


def test_ranks_add_up():
    logits, labels = make_batch(4, 60, 6)
    whole, ranks = MetricSum(), [MetricSum(), MetricSum()]
    whole.update(logits, labels)
    for rank, part in enumerate(ranks):
        part.update(logits[rank::2], labels[rank::2])
    total = ranks[0] + ranks[1]
    assert (total.top1, total.top5, total.num_images) == (whole.top1, whole.top5, whole.num_images)


def test_rates_before_the_first_image_are_nan():
    empty = MetricSum()
    empty.update(np.zeros((4, 3)), np.zeros(4, int), np.zeros(4, bool))
    assert all(math.isnan(rate) for rate in (empty.loss, empty.top1, empty.top5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_show_in_the_loss(value):
    metrics = MetricSum()
    metrics.update(np.array([[value, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    assert math.isnan(metrics.loss)
    assert metrics.num_images == 2


class OneAfterTheOther(Ranks):
    """A rank that is given what the others would send: their arrays, in the order in which they are asked for."""

    def __init__(self, rank, size, sent):
        super().__init__(rank, size)
        self.sent = sent

    def gather(self, array):
        return np.stack([array, *self.sent.pop(0)])


def counted(logits, labels, valid=None, classes=None):
    found = ConfusionSum.of(classes or logits.shape[1])
    found.update(logits, labels, valid)
    return found


def arrays(confusion):
    return confusion.matrix, confusion.images, confusion.top5_correct


class TestConfusionSum:
    def test_it_agrees_with_counting_one_by_one(self):
        logits, labels = make_batch(5, 400, 9)
        logits = np.round(logits, 1)  # plenty of ties
        logits[np.random.default_rng(6).random(logits.shape) < 0.01] = -np.inf
        matrix, images, top5 = [[0] * 9 for _ in range(9)], [0] * 9, [0] * 9
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            order = sorted(range(9), key=lambda index: (-row[index], index))
            matrix[label][order[0]] += 1
            images[label] += 1
            top5[label] += label in order[:5]
        found = counted(logits, labels)
        for array, expected in zip(arrays(found), (matrix, images, top5), strict=True):
            assert array.dtype == np.int64
            assert array.tolist() == expected
        assert found.correct.tolist() == [matrix[i][i] for i in range(9)]

    def test_it_agrees_with_torch(self):
        torch = pytest.importorskip("torch")
        logits, labels = make_batch(7, 500, 40)
        first = torch.from_numpy(logits).topk(5).indices
        of_pairs = torch.zeros(40 * 40, dtype=torch.int64)
        of_pairs.index_add_(0, torch.from_numpy(labels).long() * 40 + first[:, 0], torch.ones(500, dtype=torch.int64))
        among = (first == torch.from_numpy(labels)[:, None]).any(1).numpy()
        found = counted(logits, labels)
        assert found.matrix.tolist() == of_pairs.reshape(40, 40).tolist()
        assert found.top5_correct.tolist() == [int(among[labels == label].sum()) for label in range(40)]

    def test_it_adds_up_to_what_all_images_have(self):
        logits, labels = make_batch(8, 300, 12)
        logits[::17, 3] = np.nan
        total, found = MetricSum(), counted(logits, labels)
        total.update(logits, labels)
        assert found.correct.sum() == total.top1_correct
        assert found.top5_correct.sum() == total.top5_correct
        assert found.images.sum() == total.num_images == 300

    def test_nan_is_wrong_and_taken_for_no_class(self):
        logits = np.array([[5.0, 1.0, np.nan], [np.nan] * 3, [0.0, 2.0, 1.0]])
        found = counted(logits, np.array([0, 1, 1]))
        assert found.images.tolist() == [1, 2, 0]
        assert found.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
        assert found.top5_correct.tolist() == [0, 1, 0]

    def test_batches_with_padding_equal_one_batch(self):
        logits, labels = make_batch(9, 100, 8)
        parts = ConfusionSum.of(8)
        for start in range(0, 100, 30):
            filled = np.arange(30) < 100 - start
            rows = np.minimum(start + np.arange(30), 99)
            parts.update(logits[rows], labels[rows], filled)
        for array, expected in zip(arrays(parts), arrays(counted(logits, labels)), strict=True):
            np.testing.assert_array_equal(array, expected)

    @pytest.mark.parametrize("classes", [7, 64, 150])  # less than, exactly and more than what is exchanged at once
    def test_ranks_add_up(self, classes):
        logits, labels = make_batch(10, 600, classes)
        own, other = (counted(logits[rank::2], labels[rank::2]) for rank in range(2))
        sent = [[array[start : start + 64]] for array in arrays(other) for start in range(0, classes, 64)]
        own.add_ranks(OneAfterTheOther(0, 2, sent))
        assert not sent, "all that the other one has was asked for"
        for array, expected in zip(arrays(own), arrays(counted(logits, labels)), strict=True):
            np.testing.assert_array_equal(array, expected)

    def test_alone_nothing_is_added(self):
        logits, labels = make_batch(11, 50, 4)
        found = counted(logits, labels)
        found.add_ranks(Ranks())
        np.testing.assert_array_equal(found.matrix, counted(logits, labels).matrix)

    def test_logits_of_other_classes_are_an_error(self):
        with pytest.raises(ValueError, match="logits of 3 classes do not add to 4 classes"):
            counted(np.zeros((1, 3)), np.array([0]), classes=4)
