"""Text tables, and names and values in messages."""

from mindrepvgg.text import counted, duration, markdown_table, printable, quoted, table


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


def test_names_keep_their_letters_and_lose_what_would_move_the_cursor():
    assert printable("Fotos/Größe 猫.jpg") == "Fotos/Größe 猫.jpg"
    assert printable("a\nb\x1b[2J\0\udc80\u202e") == r"a\nb\x1b[2J\x00\udc80\u202e"


def test_a_message_never_quotes_more_than_was_asked_for():
    for value in ["x" * 10**7, "\x1b" * 10**7, list(range(10**5)), 10**5000, {"a": [10**5000]}]:
        assert len(quoted(value)) <= 200
        assert "\x1b" not in quoted(value)


def test_a_long_text_loses_its_middle():
    shown = printable("begin" + "x" * 10**6 + "end")
    assert len(shown) == 80
    assert shown.startswith("beginx")
    assert shown.endswith("xend")
    assert "x...x" in shown


def test_values_are_quoted_as_python_writes_them():
    assert quoted("it") == "'it'"
    assert quoted(["a", 1, None]) == "['a', 1, None]"
    loop = []
    for _ in range(10**5):
        loop = [loop]
    assert quoted(loop) == "a list too long to be shown"


def test_things_are_counted_in_english():
    numbers = [(0, "epoch"), (1, "epoch"), (1200, "epoch"), (1, "class"), (2, "class"), (1, "batch"), (2, "batch")]
    words = ["0 epochs", "1 epoch", "1,200 epochs", "1 class", "2 classes", "1 batch", "2 batches"]
    assert [counted(*pair) for pair in numbers] == words


def test_times_are_said_in_the_unit_people_would_use():
    seconds = (0.4, 40, 99.4, 101, 1800, 12240, 200000)
    assert [*map(duration, seconds)] == ["0 s", "40 s", "99 s", "2 min", "30 min", "3.4 h", "2.3 days"]
