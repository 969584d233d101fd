"""Turns: who is called when, what counts, and figures of known times."""

import statistics

import pytest

from mindrepvgg.runtime import timing


def test_each_round_has_everybody_once_in_an_order_of_its_own():
    said = list(timing.turns("abcd", rounds=20, warmup=2))
    rounds = [said[start : start + 4] for start in range(0, len(said), 4)]
    assert [{counts for _, counts in found} for found in rounds] == [{False}] * 2 + [{True}] * 20
    orders = {"".join(name for name, _ in found) for found in rounds}
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(orders) > 5


def test_who_is_removed_gets_no_further_turn():
    names, met = dict.fromkeys("abc"), []
    for name, _ in timing.turns(names, rounds=3):
        met.append(name)
        if len(met) == 2:
            del names["b"]
    assert sorted(met[:3]) == ["a", "b", "c"]
    assert sorted(met[3:]) == ["a", "a", "c", "c"]


def test_values_of_the_rounds_that_count_and_the_rest_before_each_turn(monkeypatch):
    rests = []
    monkeypatch.setattr(timing.time, "sleep", rests.append)
    counts = {name: iter(range(10)) for name in "ab"}
    calls = {name: lambda name=name: next(counts[name]) for name in counts}
    assert timing.take_turns(calls, rounds=3, warmup=2, rest=0.5) == {"a": [2, 3, 4], "b": [2, 3, 4]}
    assert rests == [0.5] * 10


def test_seconds_of_one_call():
    calls, ticks = [], iter((10.0, 16.0))
    assert timing.timed(lambda: calls.append(1), count=3, clock=lambda: next(ticks))() == 2
    assert len(calls) == 3


def test_figures_of_known_times():
    own, other = (1, 2, 4, 40), (4, 4, 20, 20)
    assert timing.quartiles(own) == (*statistics.quantiles(own, n=4, method="inclusive"),)
    # The rounds' ratios are 4, 2, 5 and 0.5; the ratio of the medians would be 4.
    assert timing.times_as_fast(own, other) == 3
    assert timing.times_as_fast(other, own) == pytest.approx((1 / 4 + 1 / 2) / 2)
