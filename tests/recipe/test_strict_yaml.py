"""Yaml of people and of strangers: each fault is one error with its line, at once."""

import time

import pytest

from mindrepvgg.recipe import strict_yaml

_BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

FAULTS = {
    "bomb": (_BOMB, "line 2: the alias '*a' is not read; write its value out"),
    "merged": ("a: &a {b: 1}\nc: 2\n<<: *a", "line 3: the alias '*a' is not read"),
    "itself": ("a: 1\nb: &b [*b]", "line 2: the alias '*b' is not read"),
    "bool": ("a: 1\nb: !!bool maybe", "line 2: 'maybe' is not of yaml's type 'bool'"),
    "empty int": ("a: !!int ''", "line 1: '' is not of yaml's type 'int'"),
    "timestamp": ("a: !!timestamp x", "line 1: 'x' is not of yaml's type 'timestamp'"),
    "date": ("a: 2026-99-99", "line 1: '2026-99-99' is not of yaml's type 'timestamp'"),
    "float": ("a: !!float x", "line 1: 'x' is not of yaml's type 'float'"),
    "digits": ("a: " + "1" * 5000, "line 1: the number '1111"),
    "hexadecimal": ("a: 0x" + "f" * 50_000, "line 1: the number '0xff"),
    "sexagesimal": ("a: 1" + ":1" * 30_000, "line 1: the number '1:1:"),
    "sexagesimal float": ("a: 1" + ":1" * 30_000 + ".5", "line 1: the number '1:1:"),
    "levels": ("a: 1\nb: " + "[" * 5000 + "]" * 5000, "line 2: more than 20 lists and mappings lie within"),
    "block levels": ("- " * 5000, "line 1: more than 20 lists and mappings lie within"),
    "values": ("a: [" + "1," * 30_000 + "]", "line 1: the text holds more than 2000 values"),
    "NUL": ("a: 1\nb: \0", r"line 2: '\x00' is not allowed in yaml"),
    "no UTF-8": (b"a: 1\n\nb: \xff", "line 3: this is not UTF-8 text, expected yaml"),
    "twice": ("a: 1\nb: 2\na: 3", "line 3: key 'a' is given twice; keep one"),
    "documents": ("a: 1\n---\nb: 2", "line 2: expected a single document in the stream, but found another document"),
    "tag": ("a: !!python/object:a.b {}", "line 1: 'tag:yaml.org,2002:python/object:a.b' is not read; write a plain"),
    "long tag": ("a: !" + "x" * 50_000 + " 1", "line 1: '!xxx"),
    "sign": ("a: =", "line 1: '=' is not read; write a plain value, or quote it"),
    "base 60": ("a: 1\nb: 1:30", "line 2: yaml reads '1:30' as a number to the base 60; write it without colons"),
    "escaped NUL": ('a: 1\nb: "x\\0y"', r"line 2: 'x\x00y' holds a character that no text and no path can have"),
    "lone surrogate": (r'a: ["\ud800"]', r"line 1: '\ud800' holds a character that no text"),
    "key with NUL": (r'"\0": 1', r"line 1: '\x00' holds a character that no text"),
    "map": ("!!map a", "line 1: expected a mapping node"),
    "key": ("{[a]: 1}", "line 1: a list or mapping cannot be a key; write `key: value`"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_number_at_once(name):
    text, message = FAULTS[name]
    start = time.process_time()
    with pytest.raises(strict_yaml.YamlError) as caught:
        strict_yaml.load(text)
    assert time.process_time() - start < 1
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 350
    assert "\n" not in str(caught.value)


def test_what_is_no_fault_is_read():
    text = "a: &unused {b: 0x1F, c: 1_000}\n<<: {e: [1.5, .inf, yes, ~]}\nf: 2026-01-31\n"
    read = strict_yaml.load(text)
    assert read["a"] == {"b": 31, "c": 1000}
    assert read["e"] == [1.5, float("inf"), True, None]
    assert str(read["f"]) == "2026-01-31"
    assert strict_yaml.load(b"\xef\xbb\xbfa: \xc3\xa4\r\nb: 1\r\n") == {"a": "ä", "b": 1}
    assert strict_yaml.load("") is None
