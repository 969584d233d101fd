"""docs/scaling.md: the arithmetic by hand, the published figures it starts from, and every number in the text."""

import re
from pathlib import Path

import pytest
from support import script

from mindrepvgg import cli, variants

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"

scaling = script("tools/scaling")
GIVEN = scaling.Assumptions()
NO_LATENCY = scaling.Assumptions(host_hop_us=0, network_hop_us=0, host_gb_per_s=20, network_gb_per_s=5)


def test_an_all_reduce_by_hand():
    size = 80e6
    assert scaling.all_reduce_ms(size, 1, NO_LATENCY) == 0
    # One host: 2 * 7 / 8 of the bytes at 20 GB/s.
    assert scaling.all_reduce_ms(size, 8, NO_LATENCY) == pytest.approx(1.75 * 4)
    # Four hosts: 2 * 3 / 4 of an eighth of the bytes at 5 GB/s more.
    assert scaling.all_reduce_ms(size, 32, NO_LATENCY) == pytest.approx(1.75 * 4 + 1.5 * 2)
    slow = scaling.Assumptions(host_hop_us=1000, network_hop_us=100, host_gb_per_s=1e9, network_gb_per_s=1e9)
    assert scaling.all_reduce_ms(size, 8, slow) == pytest.approx(14, rel=1e-6)
    assert scaling.all_reduce_ms(size, 1024, slow) == pytest.approx(14 + 0.1 * 2 * 7, rel=1e-6)


def test_what_is_waited_for_by_hand():
    size, given = 32e6, scaling.Assumptions(**{**vars(NO_LATENCY), "bucket_mb": 16.0, "backward_share": 0.5})
    whole = scaling.all_reduce_ms(size, 8, given)  # 2.8 ms: two buckets of 1.4
    assert whole == pytest.approx(2.8)
    assert scaling.waiting_ms(size, 8, False, 100, given) == whole
    assert scaling.waiting_ms(size, 8, True, 100, given) == pytest.approx(1.4), "the last bucket alone"
    assert scaling.waiting_ms(size, 8, True, 1, given) == pytest.approx(1.4 + 0.9), "0.5 ms of the first are hidden"
    assert scaling.waiting_ms(size, 1, True, 1, given) == 0


@pytest.mark.parametrize("model", scaling.NETWORKS)
@pytest.mark.parametrize("overlap", [False, True])
def test_one_host_is_where_it_starts_and_more_is_never_better(model, overlap):
    assert scaling.step_ms(model, 8, overlap, GIVEN) == pytest.approx(scaling.one_host_step_ms(model, GIVEN))
    efficiencies = [scaling.efficiency(model, cards, overlap, GIVEN) for cards in scaling.CARDS]
    assert efficiencies[0] == pytest.approx(1)
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[-1] > 0.5


def test_overlapping_helps_everywhere():
    for model in scaling.NETWORKS:
        for cards in scaling.CARDS[1:]:
            steps = [scaling.step_ms(model, cards, overlap, GIVEN) for overlap in (True, False)]
            assert steps[0] < steps[1]


def test_mindcvs_two_published_figures_agree():
    assert scaling.images_per_second("repvgg_a1", 8, False, GIVEN) == pytest.approx(12367, abs=1)


def test_the_arithmetic_is_near_the_published_resnet():
    """Overlapped, within five points of the published efficiency; not overlapped, twenty off: that it is not."""
    batch, rates = scaling.RESNET50
    one_card = 1e3 * batch / rates[1]
    for cards in (8, 16):
        published = rates[cards] / rates[1] / cards
        overlapped, waiting = (
            one_card / (one_card + scaling.waiting_ms(4 * 25_557_032, cards, overlap, one_card, GIVEN))
            for overlap in (True, False)
        )
        assert overlapped == pytest.approx(published, abs=0.05)
        assert waiting < published - 0.2


def test_the_document_holds_what_the_tool_writes(tmp_path):
    copy = tmp_path / "scaling.md"
    copy.write_text(
        re.sub(r"(?s)(begin -->\n).*(\n<!-- tables: end)", r"\1stale\2", DOCUMENT.read_text("utf-8")), "utf-8"
    )
    assert copy.read_text("utf-8") != DOCUMENT.read_text("utf-8")
    assert scaling.main(["--write", str(copy)]) == 0
    assert copy.read_text("utf-8") == DOCUMENT.read_text("utf-8"), "python tools/scaling.py --write docs/scaling.md"


def ms(size, cards):
    return f"{scaling.all_reduce_ms(size, cards, GIVEN):.1f}"


def percent(overlap):
    return f"{scaling.efficiency('repvgg_a1', 1024, overlap, GIVEN):.0%}"


def megabytes(size):
    return f"{size / 1e6:.1f}" if size < 1e8 else f"{size / 1e6:.0f}"


def facts():
    """Sentences of the text, each with its numbers computed."""
    a1, b3 = (scaling.gradient_bytes(model) for model in scaling.NETWORKS)
    macs = {model: variants.cost(variants.find(model), False).macs for model in ("repvgg_a0", *scaling.NETWORKS)}
    fewest, most = scaling.decode_cores("repvgg_a1", GIVEN)
    step = scaling.step_ms("repvgg_a1", 1024, False, GIVEN)
    halved = scaling.all_reduce_ms(a1, 1024, GIVEN) - scaling.all_reduce_ms(a1 / 2, 1024, GIVEN)
    flag = scaling.all_reduce_ms(8, 1024, GIVEN)
    rate = scaling.images_per_second("repvgg_a1", 8, False, GIVEN)
    epoch = 1_281_167 // 32768 * step / 1e3
    assert epoch < 1
    assert 60 < 120 * epoch < 120
    assert b3 > 64e6 > a1
    return [
        f"| {scaling.one_host_step_ms('repvgg_b3', GIVEN):.1f} ms |",
        f"the above times {macs['repvgg_b3'] / macs['repvgg_a1']:.1f}, the ratio",
        f"multiplies {macs['repvgg_a1'] / macs['repvgg_a0']:.2f} times as much",
        f"{GIVEN.step_ms:.2f} ms",
        f"80%: {0.8 * 30:.0f} and {0.8 * 12.5:.0f} GB/s",
        f"{GIVEN.host_hop_us:.0f} and {GIVEN.network_hop_us:.0f} us",
        f"{GIVEN.bucket_mb:.0f} MB",
        f"about {10 * round(1_281_167 * GIVEN.image_kb / 1e7):.0f} GB",
        f"{rate:,.0f} images a second want {fewest:.0f} to {most:.0f} cores",
        f"repvgg_a1's gradients are {megabytes(a1)} MB and A0's {megabytes(scaling.gradient_bytes('repvgg_a0'))} MB",
        f'column "not overlapped", {percent(False)} at 1,024 cards; buckets of 16 MB are the other, {percent(True)}',
        f"grows from {ms(a1, 8)} to {ms(a1, 1024)} ms",
        f"gains {halved:.1f} ms of {step:.0f}",
        f"{flag:.2f} ms at 1,024 cards, {flag / step:.0%} of A1's step",
        f"is {1_281_167 // 32768} steps, under a second; 120 epochs are under two minutes",
        f"read {128 * rate * GIVEN.image_kb / 1e6:.0f} GB/s",
        f"{megabytes(scaling.checkpoint_bytes('repvgg_a1')[1])} MB for A1 or "
        f"{megabytes(scaling.checkpoint_bytes('repvgg_b3')[1])} MB for B3",
    ]


@pytest.mark.parametrize("fact", facts())
def test_the_text_says_what_the_calculator_says(fact):
    assert fact in " ".join(DOCUMENT.read_text("utf-8").split())


def test_a_checkpoint_is_as_large_as_its_parameters():
    parameters = variants.cost(variants.find("repvgg_a1"), False).params
    network, with_state = scaling.checkpoint_bytes("repvgg_a1")
    assert with_state - network == 4 * parameters
    assert 1 < network / (4 * parameters) < 1.01, "the BN statistics"


def test_figures_of_ones_own_change_the_tables(capsys):
    assert scaling.main([]) == 0
    given = capsys.readouterr().out
    assert scaling.main(["--host_gb_per_s", "12", "--step_ms", "30"]) == 0
    own = capsys.readouterr().out
    assert own != given
    assert f"{8 * 32 / 30e-3:,.0f} (100%)" in own


def test_a_document_without_markers_is_refused(tmp_path, capsys):
    other = tmp_path / "other.md"
    other.write_text("no tables")
    assert cli.run(scaling.main, ["--write", str(other)]) == 2
    assert "must hold one <!-- tables: begin -->" in capsys.readouterr().err
    assert other.read_text() == "no tables"
