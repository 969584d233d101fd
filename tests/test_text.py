"""Text tables."""

from mindrepvgg.text import markdown_table, table


def test_a_table_aligns_each_column_on_its_widest_cell():
    rows = [("layer", "shape", "numbers"), ("stage0", "64x112x112", 1728), ("total", "", 12345678)]
    assert table(rows) == (
        "layer        shape   numbers\n"  # the first column left, the others right
        "stage0  64x112x112      1728\n"
        "total               12345678"
    )
    assert table(rows, align="<<>", gap=" | ").splitlines()[0] == "layer  | shape      |  numbers"
    assert table(rows, align="<").splitlines()[0] == "layer   shape       numbers"


def test_short_rows_rules_and_headings_over_columns():
    rows = [("block", "train", "deploy", "train", "deploy"), ("a", 1, 2, 3, 4), ("total",)]
    assert table(rows, rules=(1, -1), spans=(("", 1), ("parameters", 2), ("memory", 2))).splitlines() == [
        "          parameters         memory",
        "block  train  deploy  train  deploy",
        "-----------------------------------",
        "a          1       2      3       4",
        "-----------------------------------",
        "total",
    ]


def test_markdown_escapes_bars():
    assert markdown_table(("a", "b"), [("x|y", 1)]) == "| a | b |\n|---|---|\n| x\\|y | 1 |"
