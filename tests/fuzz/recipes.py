"""Recipes: yaml texts, chains of files, and values on the command line."""

from __future__ import annotations

from types import SimpleNamespace

import yaml
from hypothesis import strategies as st

from fuzz.cases import Case, json_values, mixed, mutated
from mindrepvgg.cli import verbs
from mindrepvgg.models.summary import summarise
from mindrepvgg.models.variants import list_models
from mindrepvgg.recipe import configs, mindcv_keys
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.recipe.sources import explain_recipe, format_recipe, load_recipe
from mindrepvgg.training.assemble import build_learning_rates, count_steps

# What yaml texts may hold besides plain values: constructors that raise, aliases, odd numbers, odd text.
FRAGMENTS = [
    *(
        "!!bool maybe",
        "!!int ''",
        "!!int '0x'",
        "!!float ''",
        "!!timestamp x",
        "!!null x",
        "!!binary '!'",
        "!!set {a, b}",
    ),
    *(
        "!!omap [a]",
        "!!pairs [a]",
        "!!python/object/apply:os.system [true]",
        "!nobody x",
        "!!str [a]",
        "!!map 3",
        "!!seq 3",
    ),
    *("&a [*a]", "&a {a: *a}", "&a {*a : 1}", "*nothing", "&a 1", "[&a 1, *a]", "{<<: *a}", "{<<: 3}", "{<<: [3]}"),
    *("1:60:60", "190:20:30.15", "1__0", "0b", "0x", "0o", "0_", ".", "+.inf", "-.INF", ".nan", "1e400", "-0", "1.e+"),
    *("2024-13-45", "2024-02-30 25:61:61", "0001-01-01T00:00:00-23:59", "9999-12-31T23:59:59+00:00"),
    *(
        r'"\0"',
        r'"\ud800"',
        r'"\uFFFE"',
        '"a\\\n  b"',
        "|\n  a\n  b",
        ">\n  a\n\n  b",
        "'",
        '"',
        "%",
        "@",
        "`",
        "? ",
        "- ",
    ),
    *("---", "...", "--- a\n--- b", "%YAML 9.9", "%TAG ! !", "\t", "\x85", "\u2028", "[", "{", "]", "{a: 1, a: 2}"),
    *(
        "on",
        "~",
        "NO",
        "=",
        "<<",
        "{=: 1}",
        "{? [a] : b}",
        "{? {a: b} : c}",
        "9" * 5000,
        "0x" + "f" * 5000,
        "1" * 400 + ".0",
    ),
    *(
        "[" * 5000,
        "{a: " * 2000,
        "- " * 2000,
        "? " * 2000,
        "[" * 80 + "]" * 80,
        "a" * 100_000,
        "!!int " + "1:" * 3000 + "1",
    ),
]
BASES = [
    "0.yaml",
    "1.yaml",
    "../0.yaml",
    ".",
    "/dev/null",
    "/proc/self/cmdline",
    "nothing.yaml",
    "quickstart",
    "",
    "3",
    "[a]",
]


def _file(path):
    recipe = load_recipe(path)
    text = explain_recipe(recipe)
    with open("again.yaml", "w", encoding="utf-8") as stream:
        stream.write(format_recipe(recipe))
    assert load_recipe("again.yaml") == recipe, text
    _prepare(recipe)


def _prepare(recipe):
    """What a run computes of its recipe before it reads data: the network's layers, and the rate of every step."""
    summarise(recipe.variant, recipe.num_classes, recipe.in_channels, recipe.image_resize)
    steps = count_steps(recipe, SimpleNamespace(steps_per_epoch=100 * recipe.gradient_accumulation_steps))
    build_learning_rates(recipe, steps, recipe.global_batch(1))


def _option(given):
    name, _, value = given.partition("=")
    _prepare(load_recipe(None, {name: value}))


DOORS = {
    "file": _file,
    "option": _option,
    "model_args": lambda text: verbs.main(["summary", "repvgg", f"--model_args={text}"]),
    "train": lambda path: verbs.main(["train", "-c", path, "--show_config"]),
}


def _bomb(levels, mapping):
    """250 bytes that stand for 10^levels values."""
    opening, closing = ("{a: ", "}") if mapping else ("[", "]")
    text = "&a0 [x, x]"
    for level in range(levels):
        more = ", ".join(f"{'b' * i + ': ' if mapping else ''}*a{level}" for i in range(1, 10))
        text = f"[{text}, &a{level + 1} {opening}*a{level}, {more}{closing}]"
    return text


def _values():
    """The text behind a key."""
    plain = json_values().map(
        lambda value: yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    )
    digits = st.sampled_from([0, 1, -1, 10**5, 10**8, 10**9, 10**15, 10**30, 10**400]).map(str)
    lists = st.lists(digits | st.sampled_from(FRAGMENTS), max_size=4).map(lambda items: f"[{', '.join(items)}]")
    bombs = st.builds(_bomb, st.integers(1, 9), st.booleans())
    return (
        st.sampled_from(FRAGMENTS)
        | digits
        | lists
        | plain
        | bombs
        | st.text("[]{}:,&*!|>'\"%@#-? \n\tab01.", max_size=30)
    )


def _plausible(name):
    """A key with a value of its own type, as large as nobody bounded it."""
    number = st.sampled_from([0, 1, 2, 5, 100, 10**4, 10**6, 10**8, 10**9, 10**15, 10**30, 0.5, 1e-30, 1e300])
    default = KEYS[name].default
    if isinstance(default, bool):
        value = st.sampled_from(["true", "false"])
    elif isinstance(default, int | float) or default is None:
        value = number.map(str)
    elif isinstance(default, tuple):
        value = st.lists(number, min_size=1, max_size=4).map(str)
    else:
        choices = [str(choice) for choice in KEYS[name].kind.metavar.split("|")]
        value = st.sampled_from([*choices, *list_models()]) | st.text(max_size=12)
    return value.map(lambda text: (name, text))


def _sizes():
    number = st.sampled_from([0, 1, 2, 4, 8, 63, -1, 800_000, 10**9, 10**18])

    def entry(name, count):
        return st.lists(number, min_size=count - 1, max_size=count).map(lambda found: f"{name}: {found}")

    more = st.tuples(st.sampled_from(["group_size", "se", "se_ratio", "aux_heads", "nothing"]), _values())
    texts = st.lists(more.map(": ".join), max_size=2)
    return st.builds(lambda a, b, c: f"{{{', '.join([a, b, *c])}}}", entry("num_blocks", 4), entry("widths", 5), texts)


@st.composite
def _texts(draw):
    names = st.sampled_from([*KEYS, *KEYS, "base", "<<", "augmentation", *mindcv_keys.RULES])
    odd = st.tuples(names | st.text(max_size=8), _values())
    plausible = st.sampled_from(list(KEYS)).flatmap(_plausible)
    lines = draw(st.lists(mixed((1, odd), (3, plausible)).map(": ".join), min_size=1, max_size=5))
    if draw(st.integers(0, 3)) == 0:
        lines.append(f"model: repvgg\nmodel_args: {draw(_sizes())}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def _chains(draw):
    """Files that name each other as `base`."""
    count = draw(st.sampled_from([1, 2, 3, 5, 20, 20, 1200]))
    bases = [draw(st.sampled_from(BASES)) for _ in range(min(count, 5))]
    files = {f"{i}.yaml": f"base: {i + 1}.yaml\n".encode() for i in range(count)}
    files |= {
        f"{count - 1 - i}.yaml": f"base: {base}\n".encode() for i, base in enumerate(bases) if draw(st.booleans())
    }
    return Case("file", "0.yaml", files)


def cases():
    """Texts, mutated recipes of the package, chains, options."""
    recipes = [path.read_bytes() for path in configs.recipes().values()]
    content = mixed((4, _texts()), (3, mutated(recipes)), (1, st.binary(max_size=60)))
    doors = st.sampled_from(["file", "file", "file", "train"])
    bases = {f"base/{path.name}": path.read_bytes() for path in (configs.folder() / "base").glob("*.yaml")}
    files = st.builds(lambda door, data: Case(door, "r.yaml", {**bases, "r.yaml": data}), doors, content)
    odd = st.tuples(st.sampled_from(list(KEYS)), _values() | st.text(max_size=12))
    given = mixed((1, odd), (1, st.sampled_from(list(KEYS)).flatmap(_plausible))).map("=".join)
    options = given.map(lambda text: Case("option", text))
    model_args = (_sizes() | _values()).map(lambda text: Case("model_args", text))
    return mixed((4, files), (3, options), (2, model_args), (1, _chains()))
