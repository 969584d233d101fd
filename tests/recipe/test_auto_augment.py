"""The texts that name a policy of augmentation: what is refused, and how."""

import pytest

from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe.auto_augment import parse_policy
from mindrepvgg.recipe.sources import load_recipe


def test_a_text_gives_every_part_of_its_policy():
    assert parse_policy("autoaug") == ("autoaug", {"mstd": 0.5})
    assert parse_policy("autoaug-mstd0") == ("autoaug", {"mstd": 0})
    randaug = {"m": 9, "n": 2, "w": None, "mstd": 0.25, "mmax": 10, "inc": 1}
    assert parse_policy("randaug-m9-mstd0.25-inc1") == ("randaug", randaug)
    assert parse_policy("augmix-d2") == ("augmix", {"m": 3, "w": 3, "d": 2, "a": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenet", "unknown policy 'imagenet'"),
        ("", "unknown policy ''"),
        ("AutoAug", "unknown policy 'AutoAug'"),
        ("rand-m9", "unknown policy 'rand'"),
        ("autoaug-m9", "autoaug has no part 'm9'"),
        ("3a-n2", "3a has no part 'n2'"),
        ("randaug-x3", "randaug has no part 'x3'"),
        ("randaug-m", "randaug has no part 'm'"),
        ("randaug-", "randaug has no part ''"),
        ("randaug--m9", "randaug has no part ''"),
        ("randaug-m9.5", "part 'm9.5' needs a whole number"),
        ("autoaug-mstd1.2.3", "part 'mstd1.2.3' needs a number"),
        ("randaug-m9-m8", "part 'm8' gives m a second time"),
        ("randaug-n0", "part 'n0' must be at least 1 and at most 13"),
        ("randaug-w1", "part 'w1' must be at least 0 and at most 0"),
        ("randaug-inc2", "part 'inc2' must be at least 0 and at most 1"),
        ("randaug-mmax0", "part 'mmax0' must be at least 1"),
        ("trivialaugwide-m32", "part 'm32' must be at least 1 and at most 31"),
        ("augmix-a0", "part 'a0' must be at least 0.01"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused_in_one_line(text, message):
    known = "autoaug (mstd), autoaugr (mstd), 3a (mstd), randaug (m, n, w, mstd, mmax, inc), trivialaugwide (m), augmix"
    with pytest.raises(ValueError, match="the policies and their parts are") as caught:
        parse_policy(text)
    assert str(caught.value) == f"{message}; the policies and their parts are: {known} (m, w, d, a)"


def test_a_recipe_with_such_a_policy_is_refused_with_its_place():
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, {"auto_augment": "nonsense"})
    expected = "auto_augment (='nonsense' on the command line): unknown policy 'nonsense'; the policies and their parts"
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_a_long_value_is_quoted_once():
    for text in ("x" * 5000, f"randaug-{'m' * 5000}", f"randaug-m{'1' * 5000}", f"randaug-m{'.' * 5000}"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(None, {"auto_augment": text})
        assert len(str(caught.value)) < 550, text[:20]
