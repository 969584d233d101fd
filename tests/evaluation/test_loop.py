"""Validation: every image counts once, a checkpoint says how it is to be judged, wrong data are refused."""

import math
import threading

import cv2
import numpy as np
import pytest
from mindspore import Tensor
from support import loaders

from mindrepvgg import create_model, to_deploy
from mindrepvgg.data.source import Source, spread
from mindrepvgg.errors import DataError, UnreadableImageError
from mindrepvgg.evaluation.loop import evaluate
from mindrepvgg.evaluation.metrics import ConfusionSum
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.runtime.ranks import Ranks

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("graph_mode")]

SHAPE = {"num_blocks": (1, 1, 2, 1), "widths": (4, 4, 8, 8, 8)}
NUM_IMAGES, NUM_CLASSES, SIDE = 23, 7, 16
MEAN, STD = 0.5, 0.25


@pytest.fixture(scope="module")
def net():
    net = create_model("repvgg", NUM_CLASSES, 1, **SHAPE)
    rng = np.random.default_rng(1)
    for parameter in net.get_parameters():
        if parameter.name.endswith(("moving_mean", "beta")):
            parameter.set_data(Tensor(rng.normal(0, 0.3, parameter.shape), parameter.dtype))
        if parameter.name == "linear.weight":  # Logits that differ from image to image.
            parameter.set_data(Tensor(rng.normal(0, 30, parameter.shape), parameter.dtype))
    return net.set_train(False)


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 1)).astype(np.uint8)
    # Smooth pictures of different brightness, which the network can tell apart.
    images = (images // 4 + rng.integers(0, 190, (NUM_IMAGES, 1, 1, 1))).astype(np.uint8)
    labels = rng.integers(0, NUM_CLASSES, NUM_IMAGES).astype(np.int32)
    return Source("mnist5k", tuple("abcdefg"), labels, images=images)


def loader(source, batch_size, **changes):
    return loaders.eval_loader(source, batch_size, (SIDE, SIDE), mean=(MEAN,), std=(STD,), **changes)


def prepared(source):
    """The images of a source as the network sees them."""
    return ((source.images.transpose(0, 3, 1, 2) / 255.0 - MEAN) / STD).astype(np.float32)


class Recorder:
    """In a `ConfusionSum`'s place: the logits that were judged."""

    def __init__(self):
        self.logits = []

    def update(self, logits, labels, valid):
        self.logits += list(logits[valid])


@pytest.fixture(scope="module")
def expected(net, source):
    """top1, top5, loss and correct, image by image in NumPy and plain Python."""
    logits = net(Tensor(prepared(source))).asnumpy().astype(np.float64)
    correct = among_five = 0
    losses = []
    for row, label in zip(logits, source.labels, strict=True):
        best = sorted(range(NUM_CLASSES), key=lambda i: -row[i])
        correct += best[0] == label
        among_five += label in best[:5]
        losses.append(math.log(sum(math.exp(x - row[label]) for x in row)))
    assert 0 < correct < among_five < NUM_IMAGES, "the figures must be able to be wrong"
    return {
        "top1": 100 * correct / NUM_IMAGES,
        "top5": 100 * among_five / NUM_IMAGES,
        "loss": sum(losses) / NUM_IMAGES,
        "correct": correct,
    }


def test_every_image_counts_once(net, source, expected):
    """The last of five batches is not full."""
    result = evaluate(net, loader(source, 5))
    assert result.num_images == NUM_IMAGES
    assert result.correct == expected["correct"]
    assert result.top1 == pytest.approx(expected["top1"], abs=1e-9)
    assert result.top5 == pytest.approx(expected["top5"], abs=1e-9)
    assert result.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert result.images_per_second > 0


def test_the_network_is_left_as_it_was(net, source):
    net.set_train(True)
    net.stage1.set_train(False)
    before = {name: cell.training for name, cell in net.cells_and_names()}
    statistics = net.stage2[0].rbr_dense.bn.moving_mean.asnumpy()
    try:
        evaluate(net, loader(source, 23))
        assert {name: cell.training for name, cell in net.cells_and_names()} == before
        np.testing.assert_array_equal(net.stage2[0].rbr_dense.bn.moving_mean.asnumpy(), statistics)
    finally:
        net.set_train(False)


def linear(images):
    """A network of a few lines: a function of images (N, C, H, W) that returns logits (N, NUM_CLASSES)."""
    weights = np.random.default_rng(3).normal(size=(images[0].size, NUM_CLASSES))
    return (images.reshape(len(images), -1) @ weights).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 5, 22, 23, 64])
def test_any_function_of_images_in_batches_of_any_size(source, batch_size):
    logits = linear(prepared(source))
    found = evaluate(linear, loader(source, batch_size))
    assert found.correct == np.sum(logits.argmax(axis=1) == source.labels)
    assert found.num_images == NUM_IMAGES
    assert found.images_per_second > 0


def test_flip_is_the_mean_of_both_views(net, source):
    images = prepared(source)
    views = [
        net(Tensor(np.ascontiguousarray(view))).asnumpy().astype(np.float64) for view in (images, images[..., ::-1])
    ]
    assert np.abs(views[0] - views[1]).max() > 1e-2 * np.abs(views[0]).max(), "the network is not symmetrical"
    recorder = Recorder()
    found = evaluate(net, loader(source, NUM_IMAGES), flip=True, confusion=recorder)
    mean = (views[0] + views[1]) / 2
    np.testing.assert_allclose(recorder.logits, mean, rtol=0, atol=1e-5 * np.abs(mean).max())
    assert found.correct == np.sum(mean.argmax(axis=1) == source.labels)
    assert found.num_images == NUM_IMAGES


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_half_precision(net, source, form):
    other = create_model("repvgg", NUM_CLASSES, 1, **SHAPE)
    for parameter, trained in zip(other.get_parameters(), net.get_parameters(), strict=True):
        parameter.set_data(trained)
    single, half = Recorder(), Recorder()
    evaluate(net, loader(source, NUM_IMAGES), confusion=single)
    other = set_precision(to_deploy(other) if form == "deploy" else other, "O2")
    evaluate(other.set_train(False), loader(source, NUM_IMAGES), confusion=half)
    assert half.logits[0].dtype == np.float16
    difference = np.abs(np.array(half.logits, np.float64) - np.array(single.logits)).max()
    assert 1e-6 < difference / np.abs(single.logits).max() < 5e-3


class Together(Ranks):
    """Ranks as threads of this process: what one gives to gather, all get."""

    def __init__(self, rank, size, barrier, table):
        super().__init__(rank, size)
        self._barrier, self._table = barrier, table

    def gather(self, array):
        self._table[self.rank] = np.array(array)
        self._barrier.wait(30)
        rows = np.stack([self._table[rank] for rank in range(self.size)])
        self._barrier.wait(30)
        return rows


def on_ranks(size, work):
    """What work(rank) returns, or raises, for each of `size` ranks that run at once."""
    barrier, table, found = threading.Barrier(size), {}, [None] * size

    def run(rank):
        try:
            found[rank] = work(Together(rank, size, barrier, table))
        except DataError as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class SomeDamaged:
    """Files in memory, some of which cannot be read."""

    def __init__(self, images, damaged):
        self._encoded = [cv2.imencode(".png", image)[1] for image in images]
        self._damaged = damaged

    def __len__(self):
        return len(self._encoded)

    def name(self, index):
        return f"file {index}"

    def read(self, index):
        if index in self._damaged:
            raise UnreadableImageError(f"file {index} is damaged")
        return self._encoded[index]


def judged(source, batch_size=4, ranks=None, **changes):
    """Evaluation without the speed, and the confusion, of `linear`."""
    confusion = ConfusionSum.of(NUM_CLASSES)
    place = {"rank": ranks.rank, "rank_size": ranks.size} if ranks else {}
    found = evaluate(linear, loader(source, batch_size, **place, **changes), ranks=ranks, confusion=confusion)
    facts = {name: value for name, value in vars(found).items() if name not in ("images_per_second", "loss")}
    return facts, round(found.loss, 9), *(array.tolist() for array in vars(confusion).values())


@pytest.mark.parametrize(("size", "batch_size"), [(2, 4), (3, 5), (4, 1), (5, 64)])
def test_ranks_count_what_one_counts(source, size, batch_size):
    """23 images are shared out unevenly, and the last batches are not full."""
    expected = judged(source)
    assert on_ranks(size, lambda ranks: judged(source, batch_size, ranks)) == [expected] * size


def test_a_rank_without_images(source):
    few = spread(source, 2)
    assert on_ranks(3, lambda ranks: judged(few, 4, ranks)) == [judged(few)] * 3


@pytest.mark.parametrize("damaged", [(), (0,), (3, 7, 22)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_unreadable_images_are_in_no_denominator(source, damaged, size):
    files = Source("photos", source.class_names, source.labels, files=SomeDamaged(source.images, damaged))
    readable = np.setdiff1d(np.arange(NUM_IMAGES), damaged)
    expected = judged(Source("mnist5k", source.class_names, source.labels[readable], images=source.images[readable]))
    assert expected[0]["num_images"] == NUM_IMAGES - len(damaged)
    expected[0]["unreadable"] = len(damaged)
    options = {"on_bad_image": "skip", "bad_image_limit": 0.2}
    assert on_ranks(size, lambda ranks: judged(files, 4, ranks, **options)) == [expected] * size


def test_ranks_know_together_that_too_many_are_unreadable(source, monkeypatch):
    """Each of them has one, which is allowed."""
    monkeypatch.setattr("mindrepvgg.data.faults.FEWEST", 0)
    files = Source("photos", source.class_names, source.labels, files=SomeDamaged(source.images, (3, 8)))
    options = {"on_bad_image": "skip", "bad_image_limit": 1 / 23}
    found = on_ranks(2, lambda ranks: judged(files, 4, ranks, **options))
    assert len({type(error) for error in found}) == 1
    for error, known in zip(found, ("file 3; file 8 is damaged", "file 3 is damaged; file 8"), strict=True):
        assert str(error) == (
            f"2 of 23 pictures could not be read, more than the 1 that bad_image_limit (=0.0434783) allows: {known}. "
            "mindrepvgg check-data finds them all; a larger --bad_image_limit goes on without them"
        )


def test_a_part_of_a_source(source):
    few = spread(source, 9)
    chosen = [np.flatnonzero((source.images == image).all(axis=(1, 2, 3)))[0] for image in few.images]
    logits = linear(prepared(source))[chosen]
    found = evaluate(linear, loader(few, 4))
    assert (found.num_images, found.correct) == (9, np.sum(logits.argmax(axis=1) == source.labels[chosen]))
